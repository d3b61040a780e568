"""Every layout of ranks trains the same model on the same samples in the same order.

Measured: the mean loss of the global batch and the L2 norm of the whole gradient before clipping, in fp32, at every step, as
|a / b - 1| against one rank. The reference is one run on one rank; each layout is one run.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_run import make_layout, make_plan, make_run, step_records, train_on_ranks

# Summing in another order moves fp32 losses by some units in the last place (6e-8); the steps of AdamW amplify it.
TOLERANCE = 1e-5
LAYOUTS = [
    pytest.param({"tensor": 2}, id="tp2"),
    pytest.param({"tensor": 2, "sequence_parallel": True}, id="tp2-sequence-parallel"),
    pytest.param({"pipeline": 2}, id="pp2"),
    pytest.param({"pipeline": 2, "virtual_pipeline": 2}, id="pp2-vpp2"),
    pytest.param({"data": 2}, id="dp2"),
    pytest.param({"data": 2, "distributed_optimizer": False}, id="dp2-replicated-optimizer"),
    pytest.param({"recompute": "selective"}, id="selective-recompute"),
    pytest.param({"recompute": "full"}, id="full-recompute"),
    pytest.param({"tensor": 2, "pipeline": 2}, id="tp2-pp2"),
    pytest.param({"tensor": 2, "data": 2}, id="tp2-dp2"),
    pytest.param({"pipeline": 2, "data": 2}, id="pp2-dp2"),
]
# Beside the above: options whose paths cross in megatron-core.
CROSSED = [
    pytest.param({"pipeline": 2, "virtual_pipeline": 2, "data": 2}, id="pp2-vpp2-dp2"),
    pytest.param(
        {"tensor": 2, "sequence_parallel": True, "pipeline": 2, "virtual_pipeline": 2, "recompute": "full"}, id="tp2-pp2-vpp2"
    ),
    pytest.param({"tensor": 2, "sequence_parallel": True, "data": 2, "recompute": "selective"}, id="tp2-dp2-selective"),
    pytest.param({"micro_batch_size": 1, "data": 2}, id="dp2-micro-batch-1"),
    pytest.param({"micro_batch_size": 8}, id="micro-batch-8"),
]
pytestmark = pytest.mark.slow


def train(folder: Path, *, num_steps: int, **layout: int) -> list[dict]:
    run_dir = make_run(folder)
    wanted = make_layout(**layout)
    assert train_on_ranks(make_plan(run_dir, wanted, num_steps=num_steps), wanted.num_ranks) == [0] * wanted.num_ranks
    return step_records(run_dir)


@pytest.fixture(scope="module")
def five_steps(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    return train(tmp_path_factory.mktemp("five"), num_steps=5)


@pytest.fixture(scope="module")
def twenty_steps(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    return train(tmp_path_factory.mktemp("twenty"), num_steps=20)


def compare(one_rank: list[dict], other: list[dict], layout: dict) -> None:
    for key in ("loss", "grad_norm"):
        worst = max(abs(a[key] / b[key] - 1) for a, b in zip(one_rank, other, strict=True))
        print(f"{layout}: largest relative difference of {key} over {len(other)} steps: {worst:.2e}")
        assert worst < TOLERANCE, f"{key}: {[record[key] for record in one_rank]} against {[record[key] for record in other]}"
    for key in ("source_samples", "source_tokens", "lr", "samples", "tokens"):
        assert [record[key] for record in one_rank] == [record[key] for record in other]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_agrees_with_one_rank_over_five_steps(layout: dict, five_steps: list[dict], tmp_path: Path) -> None:
    compare(five_steps, train(tmp_path, num_steps=5, **layout), layout)


@pytest.mark.long
@pytest.mark.parametrize("layout", [*LAYOUTS, *CROSSED])
def test_a_layout_agrees_with_one_rank_over_twenty_steps(layout: dict, twenty_steps: list[dict], tmp_path: Path) -> None:
    """The promise in full: losses and gradient norms of 20 steps, warm-up and decay included, of every layout and of crossed ones."""
    compare(twenty_steps, train(tmp_path, num_steps=20, **layout), layout)
