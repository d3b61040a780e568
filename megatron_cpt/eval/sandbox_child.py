"""Runs one program shut in: the other side of `sandbox.py`, started as a file of its own with nothing but the standard library.

Standard input holds one JSON object: `program`, `limits`, `confined`. The program's output goes to standard output and error; the exit
code is the program's, or `CANNOT_CONFINE` with the reason on standard error when the kernel refuses a step of the confinement.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from typing import Any, NoReturn

CANNOT_CONFINE = 113
NOBODY = 65534
WORK = "/sandbox"
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = (
    0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000,
)  # fmt: skip
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
DEVICES = ("null", "zero", "urandom")
PROGRAM = os.path.realpath(sys.executable)  # not a virtual environment's link to it, which the new root does not have
PREFIX = os.path.realpath(sys.base_prefix)
libc = ctypes.CDLL(None, use_errno=True)


class RefusedError(Exception):
    """The kernel refused a step."""


def call(name: str, *arguments: object) -> None:
    """Call a function of the C library; it returns a negative number and sets errno when it fails."""
    if getattr(libc, name)(*arguments) < 0:
        raise RefusedError(f"{name}: {os.strerror(ctypes.get_errno())}")


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    call("mount", source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode())


def write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def new_namespaces() -> None:
    """Leave the host's users, mounts, network, processes and shared memory behind.

    Started by root, the program gets the ids of nobody: root's processes are not counted by the limit on processes. Another user's
    own id is the only one that he may map; inside it is called nobody too.
    """
    user, group = os.geteuid(), os.getegid()
    unshared = os.pipe()
    helper = os.fork()
    if helper == 0:  # stays outside: only a process of the old user namespace may map more than one id
        os.read(unshared[0], 1)
        code = 0
        try:
            parent = os.getppid()
            if user == 0:
                write(f"/proc/{parent}/uid_map", f"0 0 1\n{NOBODY} {NOBODY} 1\n")
                write(f"/proc/{parent}/gid_map", f"0 0 1\n{NOBODY} {NOBODY} 1\n")
            else:
                write(f"/proc/{parent}/setgroups", "deny")
                write(f"/proc/{parent}/uid_map", f"{NOBODY} {user} 1\n")
                write(f"/proc/{parent}/gid_map", f"{NOBODY} {group} 1\n")
        except OSError:
            code = 1
        os._exit(code)
    call("unshare", CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS)
    os.write(unshared[1], b"x")
    _, status = os.waitpid(helper, 0)
    for end in unshared:
        os.close(end)
    if status:
        raise RefusedError("the ids of a user namespace cannot be mapped")
    try:
        write("/proc/sys/user/max_user_namespaces", "0")  # the program makes no namespace of its own, in which it would be root again
    except OSError:
        raise RefusedError("namespaces inside the namespace cannot be forbidden") from None


def new_root(scratch: str, limits: dict[str, Any]) -> None:
    """Put a small file system in memory in the place of all files, with the interpreter's own to read and `/sandbox` to write."""
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    size = f"size={limits['disk_bytes']},nr_inodes={limits['files']},mode=0755"
    mount("tmpfs", scratch, "tmpfs", MS_NOSUID | MS_NODEV, size)
    for path in visible():
        place(path, scratch)
    os.mkdir(f"{scratch}/dev")
    for name in DEVICES:
        write(f"{scratch}/dev/{name}", "")
        mount(f"/dev/{name}", f"{scratch}/dev/{name}", "", MS_BIND)
    os.mkdir(scratch + WORK, 0o700)
    if os.geteuid() == 0:
        os.chown(scratch + WORK, NOBODY, NOBODY)
    make_read_only(scratch)
    os.mkdir(f"{scratch}/old")
    call("pivot_root", scratch.encode(), f"{scratch}/old".encode())
    os.chdir("/")
    call("umount2", b"/old", MNT_DETACH)
    os.rmdir("/old")


def visible() -> list[str]:
    """Return what an interpreter needs: its libraries, its own folder, and nobody's data."""
    wanted = ["/usr", "/bin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", PREFIX, PROGRAM]
    paths: list[str] = []
    for path in wanted:
        covered = any(path == other or path.startswith(other + "/") for other in paths)
        if os.path.lexists(path) and not covered:
            paths.append(path)
    return paths


def place(path: str, root: str) -> None:
    target = root + path
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), target)
        return
    if os.path.isdir(path):
        os.makedirs(target, exist_ok=True)
    else:
        write(target, "")
    mount(path, target, "", MS_BIND | MS_REC)


def make_read_only(root: str) -> None:
    """Take the right to write from every mount below the new root, those that came along with a folder too."""
    with open("/proc/self/mountinfo") as file:
        points = [line.split(" ")[4].encode().decode("unicode_escape") for line in file]
    for point in points:
        if not point.startswith(root + "/"):
            continue
        kept = os.statvfs(point).f_flag & (os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC | os.ST_NOATIME | os.ST_NODIRATIME | os.ST_RELATIME)
        device = point.startswith(root + "/dev/")
        mount("none", point, "", MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | (0 if device else MS_NODEV) | flags_of(kept))


def flags_of(kept: int) -> int:
    """Return mount's own flags for those of statvfs: the kernel keeps what a mount had, and wants to be told so."""
    pairs = ((os.ST_NOSUID, MS_NOSUID), (os.ST_NODEV, MS_NODEV), (os.ST_NOEXEC, MS_NOEXEC), (os.ST_NOATIME, 1024),
             (os.ST_NODIRATIME, 2048), (os.ST_RELATIME, 1 << 21))  # fmt: skip
    return sum(flag for have, flag in pairs if kept & have)


def limit(limits: dict[str, Any]) -> None:
    """Bound what one process may take; the number of processes is that of the namespace where there is one."""
    for kind, value in (
        (resource.RLIMIT_CPU, limits["cpu_s"]),
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_NPROC, limits["processes"]),
        (resource.RLIMIT_NOFILE, limits["open_files"]),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (value, value))


def start(work: str, request: dict[str, Any], *, confined: bool) -> NoReturn:
    """Become the program. Never returns."""
    with open(f"{work}/program.py", "w", encoding="utf-8") as file:
        file.write(request["program"])
    os.chdir(work)
    if confined and os.geteuid() == 0:
        os.chown(f"{work}/program.py", NOBODY, NOBODY)
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    limit(request["limits"])
    for signum in range(1, signal.NSIG):
        if signum not in (signal.SIGKILL, signal.SIGSTOP, 32, 33):
            signal.signal(signum, signal.SIG_DFL)
    environment = {"PATH": "/usr/bin:/bin", "HOME": work, "TMPDIR": work, "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"}
    os.execve(PROGRAM, [PROGRAM, "-I", "-B", "-X", "utf8", f"{work}/program.py"], environment)  # noqa: S606 - no shell is wanted


def wait_for(child: int) -> int:
    """Return the child's exit code, the shell's way for a signal; orphans of the namespace are waited for on the way."""
    while True:
        ended, status = os.wait()
        if ended == child:
            return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


def close_others() -> None:
    """Keep the three standard streams; whatever else was inherited is closed."""
    os.closerange(3, 1 << 16)


def main() -> None:
    request = json.load(sys.stdin)
    confined, scratch = request["confined"], request["scratch"]
    close_others()
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.umask(0o077)
    if not confined:
        start(scratch, request, confined=False)
    call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    new_namespaces()
    init = os.fork()  # the first process of the namespace: when it ends, the kernel ends all others in it
    if init == 0:
        try:
            call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            os.umask(0o022)
            new_root(scratch, request["limits"])
            os.umask(0o077)
            child = os.fork()
            if child == 0:
                start(WORK, request, confined=True)
            os._exit(wait_for(child))
        except (RefusedError, OSError) as error:
            os.write(2, f"{error}\n".encode())
            os._exit(CANNOT_CONFINE)
    os._exit(wait_for(init))


if __name__ == "__main__":
    try:
        main()
    except (RefusedError, OSError) as error:
        os.write(2, f"{error}\n".encode())
        os._exit(CANNOT_CONFINE)
