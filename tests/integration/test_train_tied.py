"""Tied rows under pipeline parallelism: the first stage's and the last stage's copy stay the same bits, and a save looks."""

# ruff: noqa: PLC0415  -- ranks import torch and megatron in their own process, after the backend is chosen
from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from launch_ranks import launch_ranks
from tiny_run import make_layout, make_plan, make_run

NUM_STEPS = 5
pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param({"pipeline": 2, "data": 2}, id="pp2-dp2"),
        pytest.param({"pipeline": 2, "data": 2, "virtual_pipeline": 2}, id="pp2-vpp2-dp2", marks=pytest.mark.long),
    ],
)
def test_tied_copies_are_the_same_bits_after_every_step(layout: dict, tmp_path: Path) -> None:
    run_dir = make_run(tmp_path)
    plan_path = make_plan(run_dir, make_layout(**layout), num_steps=NUM_STEPS, eval_every_steps=1)
    digests = launch_ranks(train_and_watch, 4, str(plan_path))  # by rank: ranks 0, 1 are the first stage, 2, 3 the last
    assert [len(of_rank) for of_rank in digests] == [NUM_STEPS] * 4
    for step, copies in enumerate(zip(*digests, strict=True), 1):
        assert len(set(copies)) == 1, f"step {step}: {copies}"
    assert len(set(digests[0])) == NUM_STEPS  # the rows are trained


def train_and_watch(plan_path: str) -> list[str]:
    """Train as the product does, and return a digest of this rank's copy after every step."""
    from megatron_cpt.model.build import inner_model
    from megatron_cpt.train.run import run

    seen: list[str] = []

    def look(_plan: Any, _run_dir: Path, chunks: list[Any]) -> dict[str, float]:
        for chunk in chunks:
            model = inner_model(chunk)
            if model.pre_process:
                seen.append(hashlib.sha256(model.embedding.word_embeddings.weight.detach().numpy().tobytes()).hexdigest())
            elif model.post_process:
                seen.append(hashlib.sha256(model.output_layer.weight.detach().numpy().tobytes()).hexdigest())
        return {}

    assert run(Path(plan_path), evaluate=look) == 0
    return seen


def test_a_save_refuses_copies_that_drifted_apart_and_the_checkpoint_is_not_there(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path)
    plan_path = make_plan(run_dir, make_layout(pipeline=2), num_steps=2, eval_every_steps=2)
    assert launch_ranks(train_and_spoil, 2, str(plan_path)) == [4, 4]
    outcome = json.loads((run_dir / "train" / "outcome.json").read_text(encoding="utf-8"))
    assert "1 rows of one rank differ, one is 5" in outcome["reason"]
    assert not list((run_dir / "train").glob("checkpoints/step_*"))


def train_and_spoil(plan_path: str) -> int:
    """Train, and move one bit of row 5 of the last stage's copy before the save."""
    from megatron_cpt.model.build import inner_model
    from megatron_cpt.train.run import run

    def spoil(_plan: Any, _run_dir: Path, chunks: list[Any]) -> dict[str, float]:
        import torch

        model = inner_model(chunks[-1])
        if model.post_process:
            with torch.no_grad():
                model.output_layer.weight[5, 7] = torch.nextafter(model.output_layer.weight[5, 7], torch.tensor(9.0))
        return {}

    return run(Path(plan_path), evaluate=spoil)
