"""The bill of a run that is killed with signal 9 between two checkpoints: what it read is on the ledger once, and told from what stayed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from tiny_run import ROOT, finish, make_layout, make_plan, make_run, step_records

from megatron_cpt.meter.account import account_text
from megatron_cpt.meter.attempts import attempts_of
from megatron_cpt.meter.killed import settle
from megatron_cpt.meter.totals import totals_by_stage
from megatron_cpt.plan.run_plan import CheckpointPlan
from megatron_cpt.record.store import read_lines

pytestmark = [pytest.mark.slow, pytest.mark.long]  # test_line.py kills the whole line and compares the sums
STEPS, SAVED, TOKENS_PER_STEP = 150, 60, 256
# What `megatron-cpt run --only train` does under its lock, without the configuration of the whole line.
TRAIN = """
import sys
from pathlib import Path
from megatron_cpt.config.schema import ExperimentConfig
from megatron_cpt.meter.ledger import attempt
from megatron_cpt.line.run import Run
from megatron_cpt.line.training import train_body
run = Run(ExperimentConfig(run_name="run", runs_dir=sys.argv[1]))
with attempt(run.folder, "train", num_ranks=1, usd_per_device_hour=3600.0) as entry:
    train_body(run, run.of("train"), entry)
"""


def start(folder: Path) -> subprocess.Popen[str]:
    settle(folder / "run")
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    return subprocess.Popen(
        [sys.executable, "-c", TRAIN, str(folder)], cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def wait_for_steps(run_dir: Path, process: subprocess.Popen[str], *, attempt: int, step: int) -> None:
    """Wait until the attempt of that number has done the step."""
    deadline = time.monotonic() + 240
    while True:
        kinds = [record["kind"] for record in read_lines(run_dir / "train" / "metrics.jsonl")]
        if kinds.count("attempt") == attempt and last_step(run_dir) >= step:
            return
        assert process.poll() is None, finish(process)
        assert time.monotonic() < deadline
        time.sleep(0.001)


def last_step(run_dir: Path) -> int:
    steps = [record["step"] for record in read_lines(run_dir / "train" / "metrics.jsonl") if record["kind"] == "step"]
    return max(steps, default=0)


def test_what_killed_attempts_read_is_on_the_bill_once_and_the_weights_hold_the_rest(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path)
    make_plan(run_dir, make_layout(), num_steps=STEPS, checkpoint=CheckpointPlan(SAVED, 2))

    process = start(tmp_path)  # the command itself is killed: nobody writes an end
    wait_for_steps(run_dir, process, attempt=1, step=SAVED + 2)
    process.send_signal(signal.SIGKILL)
    finish(process)
    first = last_step(run_dir)
    assert SAVED < first < STEPS
    used = step_records(run_dir)[-1]["elapsed_seconds"]
    (killed,) = attempts_of(run_dir)
    assert (killed.status, killed.tokens, killed.start_tokens) == ("killed", first * TOKENS_PER_STEP, 0)
    assert isinstance(killed.seconds, float)
    assert killed.seconds > used  # the start of the ranks took its time too
    assert killed.usd == pytest.approx(killed.seconds)  # one device at a dollar a second

    process = start(tmp_path)  # the only rank is killed: the command lives, and knows no more than the steps on disk
    wait_for_steps(run_dir, process, attempt=2, step=SAVED + 2)
    (launcher,) = psutil.Process(process.pid).children()
    (rank,) = [child for child in launcher.children() if child.cmdline()[-2] == "megatron_cpt.train"]
    rank.kill()
    said = finish(process)
    assert process.returncode != 0
    assert "ended without a word" in said
    second = last_step(run_dir)

    process = start(tmp_path)
    said = finish(process)
    assert process.returncode == 0, said
    attempts = attempts_of(run_dir)
    assert [attempt.status for attempt in attempts] == ["killed", "failed", "finished"]
    assert [attempt.start_tokens for attempt in attempts] == [0, SAVED * TOKENS_PER_STEP, SAVED * TOKENS_PER_STEP]
    assert attempts[0] == killed  # as it was before the next attempt dropped its lost steps
    assert [attempt.tokens for attempt in attempts] == [
        first * TOKENS_PER_STEP, (second - SAVED) * TOKENS_PER_STEP, (STEPS - SAVED) * TOKENS_PER_STEP,
    ]  # fmt: skip
    (train, _) = totals_by_stage(attempts)
    lost = (first - SAVED + second - SAVED) * TOKENS_PER_STEP
    assert train.lost_tokens == lost
    assert train.tokens - train.lost_tokens == STEPS * TOKENS_PER_STEP == step_records(run_dir)[-1]["tokens"]
    assert f"{lost:,} of these tokens: read, and in no weights" in account_text("run", [train])
