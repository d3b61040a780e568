"""A signal to the command is written down for the ranks, which finish their step; it never ends them in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMAND = """
import sys
import time
from pathlib import Path
from megatron_cpt.launch_ranks import run_ranks
stop = Path(sys.argv[2])
sys.exit(run_ranks("no.module", [], ranks_per_node=1, threads_per_rank=1, launcher=sys.argv[1], stop_file=stop))
"""


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT])
def test_each_signal_to_the_command_reaches_the_ranks_as_a_stop_file(number: signal.Signals, tmp_path: Path) -> None:
    stop, ready, launcher = tmp_path / "train" / "stop-requested", tmp_path / "ready", tmp_path / "ranks.sh"
    # stands where torchrun would: it ends by itself, with a code of its own, once it is asked to
    launcher.write_text(f"#!/bin/bash\ntouch {ready}\nuntil [[ -s {stop} ]]; do sleep 0.05; done\nexit 75\n")
    launcher.chmod(0o755)
    with subprocess.Popen([sys.executable, "-c", COMMAND, str(launcher), str(stop)]) as process:
        while not ready.exists():
            assert process.poll() is None
        process.send_signal(number)
        assert process.wait(timeout=30) == 75
    assert stop.read_text() == f"{number.name}\n"


SAVES = """
import signal, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(35), (folder / "saved").touch(), sys.exit(0)))
(folder / "ready").touch()
time.sleep(600)
"""


@pytest.mark.long  # torchrun's own patience is 30 s
def test_a_save_of_35_seconds_outlives_a_torchrun_that_is_asked_to_end(tmp_path: Path) -> None:
    """torchrun kills its ranks 30 s after a SIGTERM unless it is told another time (pytorch/pytorch#119856)."""
    worker, launcher = tmp_path / "saves.py", tmp_path / "ranks.sh"
    worker.write_text(SAVES)
    torchrun = f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node=1"
    launcher.write_text(f"#!/bin/bash\necho $$ >{tmp_path}/pid\nexec {torchrun} {worker} {tmp_path}\n")
    launcher.chmod(0o755)
    code = COMMAND.replace("stop_file=stop", "stop_file=stop, grace_seconds=130")
    with subprocess.Popen([sys.executable, "-c", code, str(launcher), str(tmp_path / "stop")]) as process:
        while not (tmp_path / "ready").exists():
            assert process.poll() is None
            time.sleep(0.1)
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)  # Slurm's, to the step
        process.wait(timeout=120)
    assert (tmp_path / "saved").exists()
