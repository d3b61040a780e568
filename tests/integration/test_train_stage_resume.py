"""A run whose shares change on the way goes on from before, at and after the change as if it had never stopped."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from launch_ranks import launch_ranks
from test_train_resume import flat_tensors
from test_train_watch import records
from tiny_run import make_layout, make_plan, make_run, step_records, train_in_turn

from megatron_cpt.plan.run_plan import BlendEntry, BlendStage, CheckpointPlan

pytestmark = pytest.mark.slow
STEPS, CHANGE = 6, 3
CHANGES: dict[str, Any] = {
    "blend": (
        BlendEntry("law", "domain", "CC0", "index/law", 0.6, 1500, 27, 1.0),
        BlendEntry("talk", "general", "CC0", "index/talk", 0.4, 1500, 21, 1.0),
    ),
    "blend_stages": (BlendStage(0, (21, 3)), BlendStage(CHANGE, (6, 18))),  # of 24 samples each
}
STOPS = (CHANGE - 1, CHANGE, CHANGE + 1)


def test_a_stop_before_at_and_after_a_change_of_shares_reads_the_same_samples(tmp_path: Path) -> None:
    """Losses are equal to the bit, so the samples are: one other sample of eight moves the mean. Moments and weights at the end too."""
    whole = make_run(tmp_path, "whole")
    plan_path = make_plan(whole, make_layout(), num_steps=STEPS, checkpoint=CheckpointPlan(1, STEPS), **CHANGES)
    train_in_turn([plan_path], 1)
    resumed = []
    for stop in STOPS:
        run_dir = tmp_path / f"from-{stop}"
        shutil.copytree(whole, run_dir)
        shutil.copytree(tmp_path / "whole-base", tmp_path / f"from-{stop}-base")
        for step in range(stop + 1, STEPS + 1):
            shutil.rmtree(run_dir / "train" / "checkpoints" / f"step_{step:08d}")
        resumed.append(run_dir)
    train_in_turn([run_dir / "plan" / "plan.yaml" for run_dir in resumed], 1)
    by_step = [record["source_samples"] for record in step_records(whole)]
    assert [by_step[CHANGE - 1], by_step[-1]] == [{"law": 21, "talk": 3}, {"law": 27, "talk": 21}]
    checkpoint = f"train/checkpoints/step_{STEPS:08d}/model"
    ((expected, *found),) = launch_ranks(flat_tensors, 1, [str(run / checkpoint) for run in (whole, *resumed)])
    for stop, run_dir, tensors in zip(STOPS, resumed, found, strict=True):
        resumes = [(record["step"], record["lost_steps"]) for record in records(run_dir, "resume")]
        assert resumes == [(stop, STEPS - stop)]
        for key in ("step", "loss", "grad_norm", "lr", "source_samples", "source_loss"):
            assert [record[key] for record in step_records(run_dir)] == [record[key] for record in step_records(whole)], (stop, key)
        assert tensors == expected, stop
