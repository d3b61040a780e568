"""A child that starts too late to see its parent alive ends at once, and one whose parent is killed ends with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil

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
