"""Every layout of ranks trains the same model on the same samples in the same order.

Measured: the mean loss of the global batch and the L2 norm of the whole gradient before clipping, in fp32, at every step, as
|a / b - 1| against one run on one rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from tiny_run import make_layout, make_plan, make_run, step_records, train_in_turn

# Summing in another order moves fp32 losses by some units in the last place (6e-8); the steps of AdamW amplify it.
TOLERANCE = 1e-5
ONE_RANK = "one-rank"
# Buckets of 20,000 of the model's 140,000 parameters: some are on their way while others are still computed.
OVERLAP = {"overlap_grad_reduce": True, "overlap_param_gather": True, "bucket_size": 20_000}
LAYOUTS: dict[str, dict] = {
    "tp2": {"tensor": 2},
    "tp2-sequence-parallel": {"tensor": 2, "sequence_parallel": True},
    "pp2": {"pipeline": 2},
    "pp2-vpp2": {"pipeline": 2, "virtual_pipeline": 2},
    "dp2": {"data": 2},
    "dp2-replicated-optimizer": {"data": 2, "distributed_optimizer": False},
    "selective-recompute": {"recompute": "selective"},
    "full-recompute": {"recompute": "full"},
    "tp2-pp2": {"tensor": 2, "pipeline": 2},
    "tp2-dp2": {"tensor": 2, "data": 2},
    "pp2-dp2": {"pipeline": 2, "data": 2},
    "dp2-overlap": {"data": 2, **OVERLAP},
    "cp2": {"context": 2},
    "dp2-fsdp": {"data": 2, "fsdp": True},
}
# Beside the above: options whose paths cross in megatron-core.
CROSSED: dict[str, dict] = {
    "pp2-vpp2-dp2": {"pipeline": 2, "virtual_pipeline": 2, "data": 2},
    "tp2-pp2-vpp2-full": {"tensor": 2, "sequence_parallel": True, "pipeline": 2, "virtual_pipeline": 2, "recompute": "full"},
    "tp2-dp2-selective": {"tensor": 2, "sequence_parallel": True, "data": 2, "recompute": "selective"},
    "dp2-micro-batch-1": {"micro_batch_size": 1, "data": 2},
    "micro-batch-8": {"micro_batch_size": 8},
    "dp2-overlap-of-gradients": {"data": 2, "distributed_optimizer": False, "overlap_grad_reduce": True, "bucket_size": 20_000},
    "pp2-dp2-overlap": {"pipeline": 2, "data": 2, **OVERLAP},
    "pp2-vpp2-dp2-overlap": {"pipeline": 2, "virtual_pipeline": 2, "data": 2, **OVERLAP},
    "tp2-dp2-overlap": {"tensor": 2, "sequence_parallel": True, "data": 2, "recompute": "full", **OVERLAP},
    "cp4": {"context": 4},
    "cp2-dp2-overlap": {"context": 2, "data": 2, **OVERLAP},
    "tp2-cp2": {"tensor": 2, "sequence_parallel": True, "context": 2},
    "pp2-vpp2-cp2": {"pipeline": 2, "virtual_pipeline": 2, "context": 2},
    "cp2-full": {"context": 2, "recompute": "full"},
    "dp4-fsdp": {"data": 4, "micro_batch_size": 1, "fsdp": True},
    "dp2-fsdp-selective": {"data": 2, "fsdp": True, "recompute": "selective"},
    "dp2-fsdp-full": {"data": 2, "fsdp": True, "recompute": "full"},
    "tp2-dp2-fsdp": {"tensor": 2, "sequence_parallel": True, "data": 2, "fsdp": True},
    "cp2-dp2-fsdp": {"context": 2, "data": 2, "fsdp": True},
}
pytestmark = pytest.mark.slow


class Runs:
    """The steps of each layout, trained on demand: all layouts of one number of ranks share one start of processes."""

    def __init__(self, folder: Path, layouts: Mapping[str, dict], *, num_steps: int) -> None:
        self._folder, self._num_steps = folder, num_steps
        self._layouts = {name: make_layout(**layout) for name, layout in layouts.items()}
        self._steps: dict[str, list[dict]] = {}

    def steps(self, name: str) -> list[dict]:
        if name not in self._steps:
            self._train(self._layouts[name].num_ranks)
        return self._steps[name]

    def _train(self, num_ranks: int) -> None:
        names = [name for name, layout in self._layouts.items() if layout.num_ranks == num_ranks]
        folders = [make_run(self._folder, name) for name in names]
        plans = [make_plan(folder, self._layouts[name], num_steps=self._num_steps) for name, folder in zip(names, folders, strict=True)]
        train_in_turn(plans, num_ranks)
        self._steps |= {name: step_records(folder) for name, folder in zip(names, folders, strict=True)}


@pytest.fixture(scope="module")
def five_steps(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("five"), {ONE_RANK: {}, **LAYOUTS}, num_steps=5)


@pytest.fixture(scope="module")
def twenty_steps(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("twenty"), {ONE_RANK: {}, **LAYOUTS, **CROSSED}, num_steps=20)


def compare(runs: Runs, name: str) -> None:
    one_rank, other = runs.steps(ONE_RANK), runs.steps(name)
    for key in ("loss", "grad_norm"):
        worst = max(abs(a[key] / b[key] - 1) for a, b in zip(one_rank, other, strict=True))
        print(f"{name}: largest relative difference of {key} over {len(other)} steps: {worst:.2e}")
        assert worst < TOLERANCE, f"{key}: {[record[key] for record in one_rank]} against {[record[key] for record in other]}"
    for key in ("source_samples", "source_tokens", "lr", "samples", "tokens"):
        assert [record[key] for record in one_rank] == [record[key] for record in other]


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_agrees_with_one_rank_over_five_steps(name: str, five_steps: Runs) -> None:
    compare(five_steps, name)


@pytest.mark.long
@pytest.mark.parametrize("name", [*LAYOUTS, *CROSSED])
def test_a_layout_agrees_with_one_rank_over_twenty_steps(name: str, twenty_steps: Runs) -> None:
    """The promise in full: losses and gradient norms of 20 steps, warm-up and decay included, of every layout and of crossed ones."""
    compare(twenty_steps, name)
