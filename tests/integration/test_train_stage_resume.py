"""A run whose shares change on the way goes on from before, at and after the change as if it had never stopped."""

# ruff: noqa: PLC0415  -- ranks import torch and megatron in their own process, after the backend is chosen
from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from launch_ranks import free_port, launch_ranks
from test_train_resume import flat_tensors
from test_train_watch import records
from tiny_run import make_layout, make_plan, make_run, step_records

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
    make_plan(whole, make_layout(), num_steps=STEPS, checkpoint=CheckpointPlan(1, STEPS), **CHANGES)
    ports = [free_port() for _ in range(len(STOPS) + 2)]
    ((expected, *found),) = launch_ranks(_train_and_go_on, 1, str(tmp_path), ports)
    by_step = [record["source_samples"] for record in step_records(whole)]
    assert [by_step[CHANGE - 1], by_step[-1]] == [{"law": 21, "talk": 3}, {"law": 27, "talk": 21}]
    assert any("exp_avg_sq" in name for name in expected)
    for stop, tensors in zip(STOPS, found, strict=True):
        run_dir = tmp_path / f"from-{stop}"
        assert [(record["step"], record["lost_steps"]) for record in records(run_dir, "resume")] == [(stop, STEPS - stop)]
        for key in ("step", "loss", "grad_norm", "lr", "source_samples", "source_loss"):
            assert [record[key] for record in step_records(run_dir)] == [record[key] for record in step_records(whole)], (stop, key)
        assert tensors == expected, stop


def _train_and_go_on(folder_text: str, ports: list[int]) -> list[dict[str, bytes]]:
    """Train, and train copies from each stop on, all in one process (starting it is the cost); return what the last checkpoints hold."""
    from megatron_cpt.train.run import run

    folder, runs = Path(folder_text), []
    for name, port in zip(("whole", *(f"from-{stop}" for stop in STOPS)), ports, strict=False):
        run_dir = folder / name
        if name != "whole":
            shutil.copytree(folder / "whole", run_dir)
            shutil.copytree(folder / "whole-base", folder / f"{name}-base")
            for step in range(int(name.removeprefix("from-")) + 1, STEPS + 1):
                shutil.rmtree(run_dir / "train" / "checkpoints" / f"step_{step:08d}")
        os.environ["MASTER_PORT"] = str(port)  # the store of the run before may still hold its own
        assert run(run_dir / "plan" / "plan.yaml", evaluate=None) == 0
        runs.append(run_dir)
    os.environ["MASTER_PORT"] = str(ports[-1])
    return flat_tensors([str(run_dir / "train" / "checkpoints" / f"step_{STEPS:08d}" / "model") for run_dir in runs])
