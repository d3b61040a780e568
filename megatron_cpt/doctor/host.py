"""Python, memory, limits, disk and clock of this host."""

from __future__ import annotations

import ctypes
import fcntl
import ipaddress
import os
import platform
import resource
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

from packaging.specifiers import SpecifierSet

from megatron_cpt.doctor.finding import Finding

PACKAGE = "megatron-cpt"
MIN_OPEN_FILES = 4096  # data files, checkpoint shards, sockets to other ranks and wandb's; many systems begin with 1,024
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - the mount itself, nothing is made in it
MIN_SHARED_BYTES = 64 << 20  # what containers give /dev/shm by default, too little for NCCL beside data workers
_TIMEX_BYTES = 256  # more than any system's struct timex
_UNSYNCHRONISED = 5  # TIME_ERROR of adjtimex(2)


def host_findings(folder: Path, *, needed_bytes: float | None, num_nodes: int) -> Iterator[Finding]:
    """Look at this host; `folder` is where runs are kept, `needed_bytes` what the planned run keeps there, None if none is."""
    yield python_finding(platform.python_version())
    yield memory_finding()
    yield open_files_finding(*resource.getrlimit(resource.RLIMIT_NOFILE))
    yield disk_finding(folder, needed_bytes=needed_bytes)
    yield lock_finding(folder)
    yield clock_finding(kernel_clock_state())
    yield name_finding(num_nodes)


def python_finding(version: str) -> Finding:
    """Judge a version of Python by what this package was installed for."""
    try:
        wanted = metadata(PACKAGE)["Requires-Python"]
    except PackageNotFoundError:
        return Finding("python", "note", f"{version} at {sys.executable}", f"{PACKAGE} itself is not installed, so its range is not known")
    if version in SpecifierSet(wanted):
        return Finding("python", "good", f"{version} at {sys.executable}")
    return Finding(
        "python", "bad", f"{version} at {sys.executable}", f"{PACKAGE} is tested with Python {wanted}", "make setup PYTHON=python3.12"
    )


def memory_finding() -> Finding:
    values = {}
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        key, _, rest = line.partition(":")
        values[key] = int(rest.split()[0]) * 1024
    shared = shutil.disk_usage(SHARED_MEMORY)
    found = f"{values['MemAvailable'] / 1e9:.1f} of {values['MemTotal'] / 1e9:.1f} GB free, /dev/shm {shared.total / 1e9:.1f} GB"
    if shared.total <= MIN_SHARED_BYTES:
        return Finding(
            "memory", "warning", found, "ranks of one node exchange data through /dev/shm and may stop for want of it",
            "docker run --shm-size=16g ..., or apptainer/enroot with the host's /dev/shm",
        )  # fmt: skip
    return Finding("memory", "good", found)


def open_files_finding(soft: int, hard: int) -> Finding:
    """Judge the limits on open files."""
    found = f"{soft:,} open files for a process (at most {hard:,})" if hard != resource.RLIM_INFINITY else f"{soft:,} open files"
    if soft == resource.RLIM_INFINITY or soft >= MIN_OPEN_FILES:
        return Finding("limits", "good", found)
    return Finding(
        "limits", "warning", found, "large layouts open a socket for each other rank, beside data and checkpoints", "ulimit -n 65536"
    )


def existing(folder: Path) -> Path:
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def disk_finding(folder: Path, *, needed_bytes: float | None) -> Finding:
    """Judge the free space where runs are kept, and whether a file can be made there."""
    place = existing(folder)
    free = shutil.disk_usage(place).free
    found = f"{free / 1e9:.1f} GB free at {place}"
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        return Finding("disk", "bad", f"{place}: {error.strerror}", "the run's folder cannot be made", "runs_dir=/a/folder/you/may/write")
    if needed_bytes is None:
        return Finding("disk", "good", found)
    found += f", the planned run keeps about {needed_bytes / 1e9:.1f} GB"
    if free < needed_bytes:
        return Finding("disk", "bad", found, "its checkpoints do not fit", "runs_dir=/a/larger/disk, or a smaller checkpoint.keep")
    return Finding("disk", "good", found)


def lock_finding(folder: Path) -> Finding:
    """Try the two promises of a file system that records rely on: locks, and renames that replace."""
    place = existing(folder)
    try:
        with tempfile.TemporaryDirectory(dir=place, prefix=".doctor-") as name:
            first, second = Path(name) / "a", Path(name) / "b"
            with first.open("w") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.write("a")
            second.write_text("b")
            os.replace(first, second)
            whole = second.read_text() == "a"
    except OSError as error:
        return Finding(
            "file locks", "bad", f"{place}: {error.strerror}", "two processes could write one run's records at a time",
            "runs_dir= on a file system with flock (NFS 4, or Lustre mounted with -o flock)",
        )  # fmt: skip
    if not whole:
        return Finding(
            "file locks", "bad", f"{place}: a rename did not replace a file", "finished records could be lost", "runs_dir= elsewhere"
        )
    return Finding("file locks", "good", f"locks and renames work at {place}")


def kernel_clock_state() -> int | None:
    """Return what adjtimex(2) says of the clock, None where the system has no such call."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        state = libc.adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))  # modes 0: reads alone
    except (OSError, AttributeError):
        return None
    return state if state >= 0 else None


def clock_finding(state: int | None) -> Finding:
    """Judge the state of adjtimex(2)."""
    if state is None:
        return Finding("clock", "note", "the kernel does not say whether the clock is kept right", "compare `date` on your nodes")
    if state == _UNSYNCHRONISED:
        return Finding(
            "clock", "note", "no time service is keeping this clock, as far as the kernel knows",
            "bills of several nodes and wandb's time axis rely on it; in a container or virtual machine the host may keep it",
            "timedatectl set-ntp true",
        )  # fmt: skip
    return Finding("clock", "good", "kept right by a time service")


def name_finding(num_nodes: int) -> Finding:
    """Judge whether ranks find each other by this host's name."""
    name = socket.gethostname()
    try:
        address = str(socket.getaddrinfo(name, None)[0][4][0])
    except OSError as error:
        return Finding(
            "host name", "warning", f"{name} has no address: {error.strerror}", "ranks cannot meet by this name",
            f"echo '127.0.0.1 {name}' >> /etc/hosts (one machine), or mend your DNS",
        )  # fmt: skip
    if num_nodes > 1 and ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        return Finding(
            "host name", "warning", f"{name} is {address}", "a loopback address: other nodes cannot reach ranks by this name",
            "export MASTER_ADDR=<an address that all nodes reach> and NCCL_SOCKET_IFNAME in cluster.env_file",
        )  # fmt: skip
    return Finding("host name", "good", f"{name} is {address}")
