"""What can go wrong with a save: the disk is full, the processes are killed, the saved checkpoints are gone."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from launch_ranks import launch_ranks
from test_train_resume import TRAIN, outcome, ranks_of, weights
from tiny_run import finish, make_layout, make_plan, make_run, step_records, torchrun, train_on_ranks

from megatron_cpt.plan.run_plan import CheckpointPlan

pytestmark = pytest.mark.slow
FULL_BYTES = 60_000  # holds every record, and no rank's part of a checkpoint


def fill_disk_after_first_checkpoint(plan_path_text: str) -> int:
    """Train on this rank; from the first checkpoint on no file may grow beyond FULL_BYTES, as on a full disk."""
    plan_path = Path(plan_path_text)
    first = plan_path.parent.parent / "train" / "checkpoints" / "step_00000002"

    def fill() -> None:
        while not first.exists():
            time.sleep(0.001)
        resource.setrlimit(resource.RLIMIT_FSIZE, (FULL_BYTES, FULL_BYTES))

    threading.Thread(target=fill, daemon=True).start()
    from megatron_cpt.train.run import run  # noqa: PLC0415  -- after the rank's variables are set

    return run(plan_path, evaluate=None)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_full_disk_ends_the_run_and_leaves_the_previous_checkpoint(
    asynchronous: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_dir = make_run(tmp_path)
    plan = CheckpointPlan(2, 2, asynchronous=asynchronous)
    num_ranks = 2 if asynchronous else 1
    plan_path = make_plan(run_dir, make_layout(data=num_ranks), num_steps=200, checkpoint=plan)
    codes = launch_ranks(fill_disk_after_first_checkpoint, num_ranks, str(plan_path))
    assert codes[0] == 4
    assert codes[-1] != 0
    end = outcome(run_dir)
    said = capfd.readouterr().err
    assert (end["status"], end["exit_code"]) == ("failed", 4)
    assert "The checkpoint could not be written" in end["reason"]
    assert "File too large" in end["reason"]  # the system's own word for it
    assert said.count("The checkpoint could not be written") == 1
    assert "Traceback" not in said
    folder = run_dir / "train" / "checkpoints"
    complete = sorted(path.name for path in folder.iterdir())
    assert complete
    assert all(name.startswith("step_") for name in complete)  # the failed one was removed
    assert f"The last good checkpoint is train/checkpoints/{complete[-1]}" in said
    if not asynchronous:
        return
    shutil.rmtree(folder)  # and a run whose checkpoints are gone does not begin anew without a word
    before = len(step_records(run_dir))
    assert train_on_ranks(plan_path, 2)[0] == 4
    assert "saved checkpoints, and none is there" in outcome(run_dir)["reason"]
    assert len(step_records(run_dir)) == before


SEED = int(os.environ.get("MEGATRON_CPT_KILL_SEED", "20261125"))  # printed with every kill


@pytest.mark.long
@pytest.mark.parametrize("asynchronous", [False, True])
def test_twenty_five_kills_at_random_instants_change_nothing(asynchronous: bool, tmp_path: Path) -> None:
    """Kill -9, 25 times for each kind of save: of all processes or of one rank, from the start of the processes to the middle of a save.

    Every start goes on from the newest checkpoint whose files have the hashes of their record (computed here), and at the end losses,
    counts, weights and moments are bit for bit those of a run that nobody disturbed. A checkpoint is begun after every step of the
    asynchronous run and every second one of the other, so that most kills meet a save.
    """
    num_steps, rng = 160, random.Random(f"{SEED}-{asynchronous}")
    whole, run_dir = make_run(tmp_path, "whole"), make_run(tmp_path, "killed")
    layout = make_layout(data=2)
    assert torchrun(TRAIN, f"plan={make_plan(whole, layout, num_steps=num_steps)}", num_ranks=2).returncode == 0
    every_steps = 1 if asynchronous else 2
    plan_path = make_plan(run_dir, layout, num_steps=num_steps, checkpoint=CheckpointPlan(every_steps, 2, asynchronous=asynchronous))
    folder = run_dir / "train" / "checkpoints"
    in_a_save = 0
    for kill in range(25):
        newest = newest_whole(folder)
        process = torchrun(TRAIN, f"plan={plan_path}", num_ranks=2, wait=False)
        victim, instant = rng.choice(("all", "all", "rank 0", "rank 1")), rng.choice(("after a save", "after a save", "any"))
        if instant == "any":
            delay = rng.uniform(0, 8)  # a quiet machine is ready for the first step after some six seconds
        else:  # from the first sign of a save in this attempt, so that the run comes nearer to its end, to some saves later
            wait_for_new_checkpoint(folder, process)
            delay = rng.uniform(0, 0.3)
        time.sleep(delay)
        assert process.poll() is None, f"the run ended before the last kill, and more steps are needed: {finish(process)[-2000:]}"
        ranks = ranks_of(process)
        if victim == "all" or len(ranks) < 2:
            victim = "all"
            os.killpg(process.pid, signal.SIGKILL)
        else:
            ranks[int(victim[-1])].kill()
        said = finish(process)
        torso = any(folder.glob(".step_*.partial"))
        in_a_save += torso
        now = newest_whole(folder)
        print(f"kill {kill + 1} (seed {SEED}): {victim}, {instant} + {delay:.3f} s, began at {newest}, torso {torso}, now {now}")
        resumed = re.search(r"Resuming after step (\d+)", said)
        assert resumed is None or int(resumed[1]) == newest, said
        assert resumed is not None or newest is None or instant == "any", said
        assert "Skipping a damaged checkpoint" not in said
        assert "is not complete" not in said
        assert "Traceback" not in said.split("torch/distributed/elastic")[0].split("ChildFailedError")[0], said
    print(f"asynchronous={asynchronous}: {in_a_save} of 25 kills left a torso; reached step {step_records(run_dir)[-1]['step']}")
    assert in_a_save > 0
    last = torchrun(TRAIN, f"plan={plan_path}", num_ranks=2)
    assert last.returncode == 0, last.said  # type: ignore[attr-defined]
    for key in ("step", "loss", "grad_norm", "lr", "source_samples", "source_tokens"):
        assert [record[key] for record in step_records(run_dir)] == [record[key] for record in step_records(whole)], key
    mine, theirs = weights(run_dir, num_steps), weights(whole, num_steps)
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if mine[name] != theirs[name]] == []


def wait_for_new_checkpoint(folder: Path, process: subprocess.Popen[str]) -> None:
    had = {path.name for path in folder.glob("step_*")}
    deadline = time.monotonic() + 120
    while not any(path.name not in had for path in folder.glob("step_*")):
        assert process.poll() is None, finish(process)
        assert time.monotonic() < deadline
        time.sleep(0.002)


def newest_whole(folder: Path) -> int | None:
    """Return the step of the newest checkpoint whose files are there with the sizes and hashes of its record; None without one."""
    for checkpoint in sorted(folder.glob("step_*"), reverse=True):
        record = json.loads((checkpoint / "checkpoint.json").read_text(encoding="utf-8"))
        hashes = {name: hashlib.sha256((checkpoint / name).read_bytes()).hexdigest() for name in record["files"]}
        assert hashes == {name: file["sha256"] for name, file in record["files"].items()}, f"{checkpoint} has its name and is not whole"
        return int(record["step"])
    return None
