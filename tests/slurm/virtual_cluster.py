"""A real Slurm of several nodes on one machine: Debian's packages in private namespaces, with accounting and an emulated energy meter.

Nothing of the machine is touched but its packages: the network has a loopback interface only, each node has a host name and an address
of its own, and one killed process ends every daemon and job. By hand: `python tests/slurm/virtual_cluster.py COMMAND...` starts a
cluster, runs the command in it and ends it (no command: a shell).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from cluster_files import WATTS_PER_NODE, write_files

__all__ = ["NODES", "WATTS_PER_NODE", "NoCluster", "VirtualCluster", "install"]
NODES = ("n1", "n2", "rack-7-b", "spare")  # with numbers to compress, with dashes, without digits
PACKAGES = ("munge", "slurmctld", "slurmd", "slurm-client", "slurmdbd", "mariadb-server", "iproute2", "util-linux")
COMMANDS = ("munged", "mungekey", "slurmctld", "slurmd", "sbatch", "slurmdbd", "mariadbd", "mariadb-install-db", "ip", "unshare", "setpriv")
START_SECONDS = 120.0
ENDS = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL")
SERVICE_POLICY = Path("/usr/sbin/policy-rc.d")


class NoCluster(Exception):
    """No cluster can be had on this machine; the text says why."""


def missing_commands(commands: Sequence[str] = COMMANDS) -> list[str]:
    return [command for command in commands if shutil.which(command) is None]


def install(packages: Sequence[str] = PACKAGES, commands: Sequence[str] = COMMANDS) -> None:
    """Install Debian's packages where a command of theirs is missing, and let none of them start a daemon of the machine's own.

    Raises:
        NoCluster: this is not root, or not a machine with apt.
        CalledProcessError: apt failed.
    """
    if os.geteuid() != 0:
        raise NoCluster(
            "a virtual Slurm cluster needs root, for its namespaces" + (" and its packages" if missing_commands(commands) else "")
        )
    with Path(tempfile.gettempdir(), "tests-apt-get.lock").open("w") as lock:  # one apt-get at a time, with tests/browser.py
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not missing_commands(commands):
            return
        if shutil.which("apt-get") is None:
            raise NoCluster(f"no {', '.join(missing_commands(commands))} here, and no apt-get to install Debian's packages")
        with _no_services():
            environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
            for argv in (("apt-get", "update", "-qq"), ("apt-get", "install", "-qq", "--no-install-recommends", *packages)):
                subprocess.run(argv, check=True, env=environment, stdout=subprocess.DEVNULL, timeout=600)


@contextlib.contextmanager
def _no_services() -> Iterator[None]:
    is_ours = not SERVICE_POLICY.exists()
    if is_ours:
        SERVICE_POLICY.write_text("#!/bin/sh\nexit 101\n")
        SERVICE_POLICY.chmod(0o755)
    try:
        yield
    finally:
        if is_ours:
            SERVICE_POLICY.unlink()


class VirtualCluster:
    """A running cluster, as a context. Partitions: debug (default), low (preempted by high), high, short (5 minutes at most).

    Attributes:
        folder: configuration and logs of the cluster; `shared` in it is a folder that every user may write to.
    """

    def __init__(self, nodes: Sequence[str] = NODES) -> None:
        self.nodes = tuple(nodes)
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # sockets lie in it: its path must stay short
        self.shared = self.folder / "shared"
        self._namespaces: subprocess.Popen[bytes] | None = None
        self._init_pid = 0

    def __enter__(self) -> VirtualCluster:
        self.folder.chmod(0o755)
        write_files(self.folder, self.nodes)
        self.shared.mkdir()
        self.shared.chmod(0o1777)
        own = ("unshare", "--fork", "--kill-child", "--pid", "--mount-proc", "--mount", "--net", "--uts")
        init = (sys.executable, str(Path(__file__).with_name("cluster_init.py")), str(self.folder), *self.nodes)
        with (self.folder / "log" / "init.out").open("wb") as log:  # ends with this process, however that ends
            argv = ("setpriv", "--pdeathsig", "KILL", *own, *init)
            self._namespaces = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment())
        try:
            self._wait_until_ready(self._namespaces)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        assert self._namespaces is not None
        self._namespaces.kill()
        self._namespaces.wait()
        last_look = time.monotonic() + 20
        while self._init_pid and Path(f"/proc/{self._init_pid}").exists() and time.monotonic() < last_look:
            time.sleep(0.05)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _environment(self) -> dict[str, str]:
        outside = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
        return {**outside, "SLURM_CONF": str(self.folder / "etc" / "slurm.conf")}

    def _wait_until_ready(self, namespaces: subprocess.Popen[bytes]) -> None:
        last_look = time.monotonic() + START_SECONDS
        children = Path(f"/proc/{namespaces.pid}/task/{namespaces.pid}/children")
        while not (self.folder / "run" / "ready").exists():
            if namespaces.poll() is not None or time.monotonic() > last_look:
                raise NoCluster("the virtual Slurm cluster did not start: " + (self.folder / "log" / "init.out").read_text()[-2000:])
            with contextlib.suppress(OSError):
                self._init_pid = int((children.read_text().split() or ["0"])[0])
            time.sleep(0.05)

    def argv(self, *command: str, user: str = "root", cwd: Path | None = None) -> list[str]:
        """Return the line that runs a command inside the cluster, on no node of it but where its daemons are: the login node."""
        become = () if user == "root" else ("setpriv", f"--reuid={user}", "--regid=nogroup", "--clear-groups")
        enter = ("nsenter", f"--target={self._init_pid}", "--mount", "--net", "--uts", "--pid")
        return [*enter, *become, "env", f"--chdir={cwd or self.shared}", *command]

    def run(
        self, *command: str, user: str = "root", cwd: Path | None = None, env: dict[str, str] | None = None, timeout_s: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside the cluster and return its end; nothing is raised for a bad one."""
        environment = {**self._environment(), **(env or {})}
        argv = self.argv(*command, user=user, cwd=cwd)
        return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False)

    def out(self, *command: str, user: str = "root", cwd: Path | None = None) -> str:
        """Return what a command printed, without the last line's end; its failure is the test's."""
        done = self.run(*command, user=user, cwd=cwd)
        assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout.rstrip("\n")

    def states(self, job_id: str) -> list[str]:
        """Return the states of a job in accounting, one for each time that it ran, oldest first; an array has one for each task."""
        text = self.out("sacct", "--duplicates", "-nXP", f"--jobs={job_id}", "-o", "State")
        return [line.split()[0] for line in text.splitlines() if line]

    def wait_for(self, job_id: str, *wanted: str, seconds: float = 60.0) -> list[str]:
        """Wait until a job's last state is one of `wanted` (default: any end) and return all its states."""
        last_look = time.monotonic() + seconds
        while True:
            states = self.states(job_id)
            if states and states[-1] in (wanted or ENDS):
                return states
            assert time.monotonic() < last_look, f"job {job_id}: {states} after {seconds:.0f} s\n{self.out('squeue')}"
            time.sleep(0.3)

    def kill_node(self, node: str, *, only: str = "") -> None:
        """Kill every process of a node at once, as a power cut does; with `only` those whose command line has that word."""
        own = (self.folder / "run" / f"{node}.uts").read_text().strip()
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.readlink(process / "ns" / "uts") == own and only.encode() in (process / "cmdline").read_bytes():
                    os.kill(int(process.name), signal.SIGKILL)

    def start_node(self, node: str) -> None:
        """Start a killed node again. Wait for its state `down*` first: Slurm would take the node back without ending its job."""
        code = "import sys; from pathlib import Path; from cluster_init import start_node; start_node(Path(sys.argv[1]), sys.argv[2])"
        self.out(sys.executable, "-c", code, str(self.folder), node, cwd=Path(__file__).parent)


def main(command: Sequence[str]) -> int:
    """Start a cluster, run a command in it with this terminal, and end it."""
    install()
    with VirtualCluster() as cluster:
        inside = cluster.argv(*(command or ("bash", "--norc")), cwd=Path.cwd())
        return subprocess.run(inside, env=cluster._environment(), check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
