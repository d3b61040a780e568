"""bf16 weights with fp32 main gradients and an fp32 optimizer train on the CPU backend, on one rank and split over two."""

# ruff: noqa: PLC0415  -- ranks import torch and megatron in their own process, after the backend is chosen
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from launch_ranks import launch_ranks
from tiny_run import make_layout, make_plan, make_run, step_records

NUM_STEPS = 5
# bf16 keeps 8 significant bits: a step of 2**-8 = 0.4 % in every weight and activation. Measured on the losses here: 0.14 %.
TOLERANCE = 2**-8
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def losses(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    folder = tmp_path_factory.mktemp("bf16")
    found = {}
    for name, layout in {
        "fp32": make_layout(),
        "bf16": make_layout(dtype="bf16"),
        "bf16-dp2": make_layout(dtype="bf16", data=2),
        "bf16-dp2-fsdp": make_layout(dtype="bf16", data=2, fsdp=True),
    }.items():
        run_dir = make_run(folder, name)
        plan_path = make_plan(run_dir, layout, num_steps=NUM_STEPS, eval_every_steps=1)
        dtypes = launch_ranks(train_and_look, layout.num_ranks, str(plan_path))
        weights = "float32" if name == "fp32" else "bfloat16"
        assert dtypes == [{(weights, "float32")}] * layout.num_ranks
        found[name] = [record["loss"] for record in step_records(run_dir)]
    return found


def train_and_look(plan_path: str) -> set[tuple[str, str]]:
    """Train, and return the types of the parameters and of the gradients that they are accumulated in."""
    from megatron_cpt.train.run import run

    seen: set[tuple[str, str]] = set()

    def look(_plan: Any, _run_dir: Path, chunks: list[Any]) -> dict[str, float]:
        for chunk in chunks:
            if chunk.ddp_config.use_megatron_fsdp:
                groups = chunk.param_and_grad_buffer.parameter_groups
                seen.update((str(group.model_weight_buffer.dtype)[6:], str(group.main_grad_buffer.dtype)[6:]) for group in groups)
            else:
                seen.update((str(each.dtype)[6:], str(each.main_grad.dtype)[6:]) for each in chunk.parameters())
        return {}

    assert run(Path(plan_path), evaluate=look) == 0
    return seen


@pytest.mark.parametrize("name", ["bf16", "bf16-dp2", "bf16-dp2-fsdp"])
def test_bf16_trains_as_fp32_does_within_its_precision(name: str, losses: dict[str, list[float]]) -> None:
    worst = max(abs(a / b - 1) for a, b in zip(losses[name], losses["fp32"], strict=True))
    print(f"{name}: largest relative difference of the loss from fp32 over {NUM_STEPS} steps: {worst:.1e}")
    assert 0 < worst < TOLERANCE
    assert losses[name][-1] < losses[name][0] - 0.5  # it learns; fp32 goes from 5.9 to 4.5
