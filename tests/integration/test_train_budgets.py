"""A run that reaches its energy, its tokens or a score saves, stops and exits 6, and goes on where it stopped when the limit is raised."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from tiny_run import make_layout, make_plan, make_run, step_records, torchrun

from megatron_cpt.plan.run_plan import RunPlan, StopConditions, StopScore, Tariff
from megatron_cpt.record.unknown import Unavailable

UNKNOWN = Unavailable("a test")


def outcome(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "train" / "outcome.json").read_text(encoding="utf-8"))


def train(run_dir: Path, stop: StopConditions) -> dict[str, Any]:
    """Train two ranks under other limits, as a user would, and return how that ended."""
    path = run_dir / "plan" / "plan.yaml"
    dataclasses.replace(RunPlan.load(path), stop=stop).save(run_dir / "plan")
    torchrun("megatron_cpt.train", f"plan={path}", num_ranks=2)
    return outcome(run_dir)


@pytest.mark.slow
def test_energy_tokens_and_a_score_each_end_training_with_a_checkpoint_and_code_6(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path)
    # two devices of 900 kW at a PUE of 2 use 1 kWh a second
    tariff = Tariff("t", UNKNOWN, "", 900_000.0, "a test", 2.0, "a test", UNKNOWN, "")
    make_plan(run_dir, make_layout(data=2), num_steps=1000, tariff=tariff, eval_every_steps=100)

    end = train(run_dir, StopConditions(None, None, 3.0))
    assert (end["status"], end["exit_code"], end["reason"]) == ("budget", 6, "the plan's stop.max_kwh was reached")
    step = end["step"]
    assert 0 < step < 997
    assert end["checkpoint"] == f"train/checkpoints/step_{step:08d}"
    assert (run_dir / end["checkpoint"]).is_dir()
    assert step_records(run_dir)[-2]["elapsed_seconds"] < 3.0  # looked at after each step

    most = (step + 2) * 256 + 255  # 8 sequences of 32 tokens a step
    end = train(run_dir, StopConditions(None, None, None, max_tokens=most))
    assert (end["status"], end["exit_code"], end["step"]) == ("budget", 6, step + 2)
    assert end["reason"] == f"the plan's stop.max_tokens was reached: {(step + 2) * 256} of {most} tokens"

    later = ((step + 2) // 100 + 1) * 100  # the next in-loop evaluation
    scores = (StopScore("law", "bits_per_byte", at_most=1e-9), StopScore("talk", "bits_per_byte", at_most=99.0))
    reachable = StopConditions(None, None, None, scores=scores)
    end = train(run_dir, reachable)
    assert (end["status"], end["exit_code"], end["step"]) == ("budget", 6, later)
    assert end["reason"].startswith("the plan's stop.scores[1] was reached: talk bits_per_byte at most 99: ")
    assert end["checkpoint"] == f"train/checkpoints/step_{later:08d}"
