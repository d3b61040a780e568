"""A child that starts too late to see its parent alive ends at once, and one whose parent is killed ends with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from megatron_cpt.errors import EXIT_STOPPED
from megatron_cpt.launch_ranks import PARENT_VARIABLE


def test_ranks_whose_command_was_killed_while_they_were_importing_end_at_once() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    environment = dict(os.environ, **{PARENT_VARIABLE: str(gone.pid)})
    argv = [sys.executable, "-m", "megatron_cpt.launch_ranks", "--standalone", "--nproc-per-node=1", "--no-python", "sleep", "600"]
    assert subprocess.run(argv, env=environment, timeout=60, check=False).returncode == EXIT_STOPPED


def test_a_child_ends_with_its_parent() -> None:
    child = (
        "import os, time; from megatron_cpt.launch_ranks import die_with_parent; "
        "die_with_parent(); print(os.getpid(), flush=True); time.sleep(600)"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_rank_of_plain_torchrun_whose_launcher_was_killed_before_it_could_ask_ends_at_once(tmp_path: Path) -> None:
    """Nobody told this rank who its parent is; it sees that its parent is init now. Found by killing training at random instants."""
    if b"python" in Path("/proc/1/cmdline").read_bytes().split(b"\0")[0]:
        pytest.skip("the first process of this machine is a Python process, as torchrun is")
    rank = (
        "import os, pathlib, sys, time\n"
        "from megatron_cpt.launch_ranks import die_with_parent\n"
        "parent, file = os.getppid(), pathlib.Path(sys.argv[1])\n"
        "file.with_suffix('.up').touch()\n"
        "while os.getppid() == parent: time.sleep(0.01)\n"
        "file.with_suffix('.orphan').touch()\n"
        "die_with_parent()\n"
        "file.touch()\n"
    )
    environment = dict(os.environ, TORCHELASTIC_RUN_ID="a test")
    environment.pop(PARENT_VARIABLE, None)
    launcher = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {rank!r}, sys.argv[1]])"
    survived = tmp_path / "survived"
    process = subprocess.Popen([sys.executable, "-c", launcher, str(survived)], env=environment)
    wait_for_file(tmp_path / "survived.up")
    process.kill()
    process.wait()
    wait_for_file(tmp_path / "survived.orphan")
    time.sleep(0.5)
    assert not survived.exists()


def wait_for_file(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
