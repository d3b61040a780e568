"""What training refuses before its first step, under torchrun as a user meets it."""

# ruff: noqa: PLC0415  -- ranks import torch and megatron in their own process, after the backend is chosen
from __future__ import annotations

import json
import os
import shutil
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from launch_ranks import launch_ranks
from tiny_run import make_layout, make_plan, make_run, step_records, torchrun, train_in_turn, train_on_ranks

from megatron_cpt.plan.run_plan import CheckpointPlan, SchedulePlan


def refuse(run_dir: Path) -> tuple[dict[str, Any], str]:
    """Train, which must fail, and return the outcome and what the user read before torchrun's own report."""
    process = torchrun("megatron_cpt.train", f"plan={make_plan(run_dir, make_layout())}", num_ranks=1)
    assert process.returncode != 0
    outcome = json.loads((run_dir / "train" / "outcome.json").read_text(encoding="utf-8"))
    assert outcome["status"] == "failed"
    assert not list((run_dir / "train").glob("checkpoints/*"))
    said = process.said.split("torch/distributed/elastic")[0]  # type: ignore[attr-defined]
    assert "Traceback" not in said
    return outcome, said


def test_an_empty_source_is_refused_instead_of_looping_for_ever(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path)
    (run_dir / "index" / "talk.bin").write_bytes(b"")
    # one boundary (0), no sequence
    (run_dir / "index" / "talk.idx").write_bytes(b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, 0, 1) + bytes(8))
    outcome, said = refuse(run_dir)
    assert outcome["exit_code"] == 3
    assert "talk holds 0 tokens" in said


@pytest.mark.slow
def test_a_missing_initial_checkpoint_is_refused_and_never_replaced_by_random_weights(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path)
    plan_path = make_plan(run_dir, make_layout())
    (run_dir / "init").rename(run_dir / "elsewhere")
    process = torchrun("megatron_cpt.train", f"plan={plan_path}", num_ranks=1)
    assert process.returncode != 0
    assert "The stage 'init' has not finished." in process.said  # type: ignore[attr-defined]
    assert not (run_dir / "train" / "metrics.jsonl").exists()


@pytest.mark.long
def test_a_rank_that_does_not_see_the_first_ranks_index_says_so_and_waits_for_no_one(tmp_path: Path) -> None:
    """Two nodes with disks of their own, the first one slow: the second must not look for files that are elsewhere."""
    mine = make_run(tmp_path)
    make_plan(mine, make_layout(data=2))
    shutil.copytree(tmp_path, tmp_path / "elsewhere", ignore=shutil.ignore_patterns("elsewhere"))
    codes = launch_ranks(_train_on_disks_of_their_own, 2, str(tmp_path))
    assert codes[0] != 0
    assert codes[1] == 2
    end = json.loads((tmp_path / "elsewhere" / "run" / "train" / "outcome.json").read_text(encoding="utf-8"))
    assert "This rank does not see the index that the first rank has made." in end["reason"]
    assert "runs_dir" in end["reason"]


def _train_on_disks_of_their_own(folder: str) -> int:
    from megatron_cpt.backend import choose

    choose("cpu")
    from megatron_cpt.train import data
    from megatron_cpt.train.run import run

    data.SHARED_PATIENCE_S = 0.5
    if os.environ["RANK"] == "0":
        time.sleep(2)
        return run(Path(folder) / "run" / "plan" / "plan.yaml", evaluate=None)
    return run(Path(folder) / "elsewhere" / "run" / "plan" / "plan.yaml", evaluate=None)


@pytest.mark.slow
def test_weights_other_than_the_recorded_ones_are_stopped_before_the_first_update(tmp_path: Path) -> None:
    """A resume finds the weights of another run in its checkpoint's place; a start finds an init that was scored otherwise."""
    sound, other = make_run(tmp_path, "sound"), make_run(tmp_path, "other")
    saves = CheckpointPlan(4, 4)
    rates = {sound: 5e-3, other: 30.0}
    plans = [
        make_plan(folder, make_layout(), num_steps=8, checkpoint=saves, schedule=SchedulePlan("constant", rate, rate, 0, 64))
        for folder, rate in rates.items()
    ]
    train_in_turn(plans, 1)
    checkpoints = sound / "train" / "checkpoints"
    shutil.rmtree(checkpoints / "step_00000008")
    mine, others = (folder / "train" / "checkpoints" / "step_00000004" for folder in (sound, other))
    shutil.rmtree(mine / "model")
    shutil.copytree(others / "model", mine / "model")
    record, files = (json.loads((folder / "checkpoint.json").read_text(encoding="utf-8")) for folder in (mine, others))
    (mine / "checkpoint.json").write_text(json.dumps({**record, "files": files["files"]}), encoding="utf-8")
    before = [record["loss"] for record in step_records(sound)[:4]]
    assert train_on_ranks(plans[0], 1) == [4]
    said = json.loads((sound / "train" / "outcome.json").read_text(encoding="utf-8"))["reason"]
    print(before, said)
    assert "The first loss is not what was recorded of these weights; no update was applied." in said
    assert "train/checkpoints/step_00000004" in said
    assert [path.name for path in checkpoints.glob("step_*")] == ["step_00000004"]
    assert [record["step"] for record in step_records(sound)] == [1, 2, 3, 4]

    fresh = make_run(tmp_path, "fresh")
    texts = {name: {"nats": 1500.0, "tokens": 1000} for name in ("law", "talk")}  # random weights are near ln 267 = 5.6, not at 1.5
    (fresh / "baseline").mkdir()
    (fresh / "baseline" / "eval.json").write_text(json.dumps({"subjects": {"init": {"texts": texts}}}), encoding="utf-8")
    outcome, said = refuse(fresh)
    assert outcome["exit_code"] == 4
    assert outcome["step"] == 0
    assert "baseline/eval.json records of its texts: 1.500" in said
