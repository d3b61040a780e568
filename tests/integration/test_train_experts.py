"""A mixture of experts trains alike whether its experts are whole on every rank or shared by expert-parallel ranks.

Measured as in test_train_layouts.py: loss and gradient norm of every step in fp32, as |a / b - 1| against one run on one rank.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_run import make_layout, make_plan, make_run, step_records, train_in_turn, train_on_ranks

from megatron_cpt.plan.run_plan import OptimizerPlan

pytestmark = pytest.mark.long  # tests/numerics/test_families.py has two ranks that share experts in every run of the tests
TOLERANCE = 1e-5
NUM_STEPS = 5
BALANCED = OptimizerPlan(0.9, 0.95, 1e-8, 0.1, 1.0, router_aux_loss=0.1)
LAYOUTS: dict[str, dict] = {
    "one-rank": {},
    "one-rank-balanced": {},
    "ep2": {"data": 2, "expert": 2},
    "ep2-balanced": {"data": 2, "expert": 2},
    "ep2-full-recompute": {"data": 2, "expert": 2, "recompute": "full"},
    "selective-recompute": {"data": 2, "recompute": "selective"},
    "tp2-sequence-parallel": {"tensor": 2, "sequence_parallel": True},
    "ep2-replicated-optimizer": {"data": 2, "expert": 2, "distributed_optimizer": False},
    "tp2-ep2": {"tensor": 2, "sequence_parallel": True, "data": 2, "expert": 2},
    "pp2-ep2": {"pipeline": 2, "data": 2, "expert": 2},
    "ep2-dp4": {"data": 4, "expert": 2},
}
IN_EVERY_RUN = ("ep2", "ep2-balanced")
OTHERS = {
    num_ranks: [
        name
        for name, layout in LAYOUTS.items()
        if make_layout(**layout).num_ranks == num_ranks and name not in IN_EVERY_RUN and not name.startswith("one-rank")
    ]
    for num_ranks in (2, 4)
}
Runs = dict[str, list[dict]]


def train(folder: Path, names: list[str]) -> Runs:
    """Train the layouts, all of which take one number of ranks, and return their steps."""
    layouts = [make_layout(**LAYOUTS[name]) for name in names]
    folders = [make_run(folder, name, tied=False, experts=True) for name in names]
    changes = [{"optimizer": BALANCED} if name.endswith("balanced") else {} for name in names]
    plans = [make_plan(run, layout, num_steps=NUM_STEPS, **change) for run, layout, change in zip(folders, layouts, changes, strict=True)]
    train_in_turn(plans, layouts[0].num_ranks)
    return {name: step_records(run) for name, run in zip(names, folders, strict=True)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("experts")
    return train(folder, ["one-rank", "one-rank-balanced"]) | train(folder, list(IN_EVERY_RUN))


def compare(one_rank: list[dict], other: list[dict], name: str) -> None:
    assert len(one_rank) == len(other) == NUM_STEPS
    for key in ("loss", "grad_norm"):
        worst = max(abs(a[key] / b[key] - 1) for a, b in zip(one_rank, other, strict=True))
        print(f"{name}: largest relative difference of {key}: {worst:.2e}")
        assert worst < TOLERANCE, f"{key}: {[record[key] for record in one_rank]} against {[record[key] for record in other]}"


@pytest.mark.parametrize("name", IN_EVERY_RUN)
def test_shared_experts_train_like_whole_ones(name: str, runs: Runs) -> None:
    compare(runs["one-rank-balanced" if name.endswith("balanced") else "one-rank"], runs[name], name)


@pytest.mark.parametrize("source", ["ep2", "ep2-replicated-optimizer", "dp2", "dp2-replicated-optimizer"])
def test_a_resume_with_another_kind_of_optimizer_and_another_number_of_expert_ranks_says_so(source: str, tmp_path: Path) -> None:
    kinds = {"data": 2, "distributed_optimizer": "replicated" not in source}, {"data": 2, "distributed_optimizer": "replicated" in source}
    layouts = [make_layout(**kind, expert=expert) for kind, expert in zip(kinds, (2, 1) if "ep2" in source else (1, 2), strict=True)]
    run_dir = make_run(tmp_path, source, tied=False, experts=True)
    train_in_turn([make_plan(run_dir, layouts[0], num_steps=4)], 2)
    assert train_on_ranks(make_plan(run_dir, layouts[1], num_steps=4), 2) == [4, 4]
    reason = json.loads((run_dir / "train" / "outcome.json").read_text())["reason"]
    print(reason)
    assert "expert-parallel ranks cannot change in one resume" in reason


@pytest.mark.long
@pytest.mark.parametrize("num_ranks", OTHERS)
def test_experts_train_alike_in_other_layouts(num_ranks: int, runs: Runs, tmp_path: Path) -> None:
    """Expert parallelism crossed with tensor, pipeline and data parallelism, recomputation and the replicated optimizer."""
    for name, steps in train(tmp_path, OTHERS[num_ranks]).items():
        compare(runs["one-rank"], steps, name)


def test_the_balancing_loss_moves_the_weights_and_is_no_part_of_the_reported_loss(runs: Runs) -> None:
    plain, balanced = runs["one-rank"], runs["one-rank-balanced"]
    assert balanced[0]["loss"] == plain[0]["loss"]
    assert balanced[0]["grad_norm"] != plain[0]["grad_norm"]
    assert balanced[-1]["loss"] != plain[-1]["loss"]
