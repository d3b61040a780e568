"""A signal to the command is written down for the ranks, which finish their step; it never ends them in the middle."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = """
import sys
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
