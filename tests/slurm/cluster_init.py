"""The first process of the virtual cluster's namespaces: `cluster_init.py FOLDER NODE...` starts the daemons, then turns the meters.

It is process 1 there, so its end is the end of every daemon and job. It makes `FOLDER/run/ready` when all nodes are idle.
"""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cluster_files import WATTS_PER_NODE

NODE = """\
hostname "$1"
mount --bind "$2/meter/$1" /sys/devices/platform  # where Slurm's ibmaem plugin looks for a meter
readlink /proc/self/ns/uts > "$2/run/$1.uts"
exec slurmd -D -N "$1"
"""


def start(folder: Path, *argv: str, name: str) -> subprocess.Popen[bytes]:
    with (folder / "log" / f"{name}.out").open("ab") as log:
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def start_node(folder: Path, node: str) -> None:
    """Start the daemon of one node in a host name and a mount table of its own."""
    start(folder, "unshare", "--uts", "--mount", "bash", "-euc", NODE, "node", node, str(folder), name=f"slurmd.{node}")


def wait_until(true: Callable[[], bool], what: str, *, seconds: float = 60.0) -> None:
    last_look = time.monotonic() + seconds
    while not true():
        if time.monotonic() > last_look:
            sys.exit(f"{what}: not after {seconds:.0f} s")
        time.sleep(0.1)


def answers(*argv: str) -> bool:
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


def said(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout


def prepare_network(folder: Path) -> None:
    """Give the namespace a loopback interface, names for its nodes, and nothing else."""
    run("ip", "link", "set", "lo", "up")
    # getaddrinfo with AI_ADDRCONFIG, which Slurm uses, does not count 127/8 as an address: one for documentation (RFC 5737) helps
    run("ip", "addr", "add", "198.51.100.1/32", "dev", "lo")
    run("hostname", "ctl")
    for name in ("hosts", "nsswitch.conf"):
        run("mount", "--bind", str(folder / "etc" / name), f"/etc/{name}")


def run(*argv: str) -> None:
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)


def open_to_every_user(folder: Path, paths: Sequence[Path]) -> None:
    """Let users without root reach paths below a folder that is closed to them, such as a Python in /root. In these namespaces alone."""
    closed = [ancestor for path in paths for ancestor in reversed(path.parents) if not ancestor.stat().st_mode & stat.S_IXOTH]
    for number, ancestor in enumerate(dict.fromkeys(closed)):
        behind = folder / f"behind-{number}"
        behind.mkdir()
        run("mount", "--bind", str(ancestor), str(behind))
        run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", str(ancestor))
        for path in (path for path in paths if path.is_relative_to(ancestor)):
            path.mkdir(parents=True, exist_ok=True)
            run("mount", "--bind", str(behind / path.relative_to(ancestor)), str(path))


def start_accounting(folder: Path) -> None:
    data, socket = f"--datadir={folder}/mysql", folder / "run" / "mysql.sock"
    install = ("mariadb-install-db", "--no-defaults", "--user=root", data, "--skip-test-db", "--auth-root-authentication-method=normal")
    run(*install)
    start(
        folder, "mariadbd", "--no-defaults", "--user=root", data, f"--socket={socket}", "--skip-networking", f"--pid-file={socket}.pid",
        "--innodb-buffer-pool-size=64M", "--innodb-lock-wait-timeout=900", "--innodb-flush-log-at-trx-commit=0",
        "--innodb-flush-method=nosync", "--skip-log-bin", "--performance-schema=OFF", name="mariadb",
    )  # fmt: skip
    os.environ["MYSQL_UNIX_PORT"] = str(socket)  # where libmariadb looks by default, and so slurmdbd
    wait_until(lambda: answers("mariadb", "--no-defaults", f"--socket={socket}", "-e", "select 1"), "MariaDB answers")
    start(folder, "slurmdbd", "-D", name="slurmdbd")
    wait_until(lambda: answers("sacctmgr", "-i", "add", "cluster", "virtual"), "slurmdbd answers")
    run("sacctmgr", "-i", "add", "account", "team", "Description=team", "Organization=team")
    for user in ("root", "nobody"):
        run("sacctmgr", "-i", "add", "user", user, "Account=team")


def start_all(folder: Path, nodes: Sequence[str]) -> None:
    open_to_every_user(folder, [Path(sys.base_prefix), Path(sys.prefix), Path(__file__).resolve().parents[2]])
    prepare_network(folder)
    key, socket = f"{folder}/etc/munge.key", folder / "run" / "munge.sock"
    run("mungekey", "--create", f"--keyfile={key}")
    start(
        folder, "munged", "-F", f"--key-file={key}", f"--socket={socket}", f"--pid-file={folder}/run/munged.pid",
        f"--log-file={folder}/log/munged.log", f"--seed-file={folder}/run/munged.seed", "--num-threads=2", name="munged",
    )  # fmt: skip
    wait_until(socket.is_socket, "munge answers")
    start_accounting(folder)
    start(folder, "slurmctld", "-D", name="slurmctld")
    wait_until(lambda: answers("scontrol", "ping"), "slurmctld answers")
    for node in nodes:
        start_node(folder, node)
    idle = ("sinfo", "-hN", "-p", "debug", "-t", "idle", "-o", "%N")
    wait_until(lambda: len(set(said(*idle).split())) == len(nodes), "nodes idle")


def turn_meters(folder: Path, nodes: Sequence[str], *, seconds: float) -> None:
    """Let every node's meter show what WATTS_PER_NODE come to in so many seconds (microjoules and microwatts, as the kernel's do)."""
    for node in nodes:
        readings = {"energy1_input": int(seconds * WATTS_PER_NODE * 1e6), "power1_average": WATTS_PER_NODE * 10**6}
        for name, reading in readings.items():
            path = folder / "meter" / node / "aem.0" / name
            path.with_suffix(".new").write_text(f"{reading}\n")
            path.with_suffix(".new").replace(path)  # a reader that finds it empty takes 0 J for a counter that wrapped


def main(folder: Path, nodes: Sequence[str]) -> None:
    began = time.monotonic()
    turn_meters(folder, nodes, seconds=0.0)
    start_all(folder, nodes)
    (folder / "run" / "ready").touch()
    while True:
        turn_meters(folder, nodes, seconds=time.monotonic() - began)
        with contextlib.suppress(ChildProcessError):  # orphans of jobs become this process's children
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.5)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
