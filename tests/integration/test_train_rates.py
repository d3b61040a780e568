"""The rate in `metrics.jsonl` of real runs against megatron-core's own scheduler, and after a checkpoint of another schedule."""

# ruff: noqa: PLC0415  -- ranks import torch and megatron in their own process, after the backend is chosen
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from launch_ranks import launch_ranks
from tiny_run import make_layout, make_plan, make_run, step_records

from megatron_cpt.plan.run_plan import OptimizerPlan, RunPlan, SchedulePlan

pytestmark = pytest.mark.slow
STEPS, BATCH = 10, 8
PEAK, FLOOR = 2e-3, 2e-4
WARMUP, ANNEAL = 2 * BATCH, 4 * BATCH
# The shapes of wsd are compared with megatron's in tests/unit/train/test_train_schedule.py: a run for each would prove no more.
SCHEDULES = {
    "cosine": SchedulePlan("cosine", PEAK, FLOOR, WARMUP, STEPS * BATCH),
    "linear": SchedulePlan("linear", PEAK, FLOOR, WARMUP, STEPS * BATCH),
    "constant": SchedulePlan("constant", PEAK, FLOOR, WARMUP, STEPS * BATCH),
    "wsd": SchedulePlan("wsd", PEAK, FLOOR, WARMUP, STEPS * BATCH, anneal_samples=ANNEAL, anneal_shape="minus_sqrt"),
    "infinite": SchedulePlan(
        "infinite", PEAK, FLOOR, WARMUP, STEPS * BATCH, anneal_samples=2 * BATCH, cooldown_samples=2 * BATCH, constant_lr=8e-4
    ),
}
BEFORE = SchedulePlan("constant", 6e-4, 6e-4, 0, 2 * BATCH)
AFTER = SchedulePlan("cosine", 6e-5, 6e-6, 2 * BATCH, 4 * BATCH)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Train a run per schedule, and load the checkpoint of one schedule under another, in one process: to start it is the cost."""
    folder = tmp_path_factory.mktemp("schedules")
    plans = {name: make_plan(make_run(folder, name), make_layout(), num_steps=STEPS, schedule=SCHEDULES[name]) for name in SCHEDULES}
    plans["before"] = make_plan(make_run(folder, "before"), make_layout(), num_steps=2, schedule=BEFORE)
    optimizer = OptimizerPlan(0.9, 0.95, 1e-8, 0.0, 1.0)  # the decay goes from 0.1 to 0
    after = make_plan(make_run(folder, "after"), make_layout(), num_steps=4, schedule=AFTER, optimizer=optimizer)
    (results,) = launch_ranks(train_and_load, 1, {name: str(path) for name, path in plans.items()}, str(after))
    return results


def train_and_load(plans: dict[str, str], after: str) -> dict[str, Any]:
    from megatron_cpt.train.run import run

    assert [run(Path(plan), evaluate=None) for plan in plans.values()] == [0] * len(plans)
    folders = {name: Path(plan).parent.parent for name, plan in plans.items()}
    rates = {name: [record["lr"] for record in step_records(folder)] for name, folder in folders.items()}
    checkpoint = folders["before"] / "train" / "checkpoints" / "step_00000002" / "model"
    return {"rates": rates, "megatron": {name: megatron_rates(name) for name in SCHEDULES if name != "infinite"}} | load_and_step(
        after, checkpoint
    )


def megatron_rates(name: str) -> list[float]:
    import torch
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

    scheduler = OptimizerParamScheduler(
        torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0),
        init_lr=0.0, max_lr=PEAK, min_lr=FLOOR, lr_warmup_steps=WARMUP, lr_decay_steps=STEPS * BATCH,
        lr_decay_style="WSD" if name == "wsd" else name, start_wd=0.0, end_wd=0.0, wd_incr_steps=1, wd_incr_style="constant",
        wsd_decay_steps=ANNEAL, lr_wsd_decay_style="minus_sqrt",
    )  # fmt: skip
    result = []
    for _ in range(STEPS):
        scheduler.step(BATCH)
        result.append(scheduler.optimizer.param_groups[0]["lr"])
    return result


def test_the_logged_rates_of_every_kind_are_those_of_megatrons_scheduler(seen: dict[str, Any]) -> None:
    assert seen["megatron"].keys() == {"cosine", "linear", "constant", "wsd"}
    for name, expected in seen["megatron"].items():
        assert seen["rates"][name] == pytest.approx(expected, rel=1e-12), name


def test_the_logged_rates_of_an_infinite_schedule_by_hand(seen: dict[str, Any]) -> None:
    # up in two steps, half a cosine from 2e-3 to 8e-4 in two, four steps of 8e-4, then by a factor of sqrt(1/4) a step to 2e-4
    by_hand = [1e-3, 2e-3, 1.4e-3, 8e-4, 8e-4, 8e-4, 8e-4, 8e-4, 4e-4, 2e-4]
    assert seen["rates"]["infinite"] == pytest.approx(by_hand, rel=1e-12)


def test_after_a_checkpoint_of_another_schedule_the_new_rate_is_in_force(seen: dict[str, Any]) -> None:
    """Public report D03: a continuation that silently runs at the rates that the checkpoint holds.

    Before: constant at 6e-4. After: a cosine from 6e-5 with a warm-up of two steps.
    """
    assert sorted(seen["after the load"]) == [(6e-4, 0.0), (6e-4, 0.1)]  # in force if nobody said otherwise
    assert seen["after the step"] == [(3e-5, 0.0), (3e-5, 0.0)]


def load_and_step(plan_path: str, checkpoint: Path) -> dict[str, Any]:
    from megatron_cpt.backend import choose

    backend = choose("cpu")
    from megatron_cpt.model.build import build_chunks
    from megatron_cpt.model.dist_checkpoint import load_model
    from megatron_cpt.model.parallel import ranks
    from megatron_cpt.train.data import TrainingData, build_dataset
    from megatron_cpt.train.optimizer import parameter_groups, wrap_and_optimize
    from megatron_cpt.train.state import TrainState
    from megatron_cpt.train.step import optimizer_step

    plan, run_dir = RunPlan.load(Path(plan_path)), Path(plan_path).parent.parent
    with ranks(plan.layout, backend=backend, seed=0):
        dataset = build_dataset(plan, run_dir, run_dir / "train", barrier=lambda: None)
        chunks, optimizer = wrap_and_optimize(build_chunks(plan.shape, plan.vocab, plan.layout, backend=backend), plan)
        load_model(checkpoint, chunks, optimizer=optimizer)
        in_force = lambda: [(group["lr"], group["weight_decay"]) for group in parameter_groups(optimizer)]  # noqa: E731
        loaded = in_force()
        batch = next(TrainingData(dataset, plan=plan, data_rank=0, device=backend.device).from_sample(0))
        optimizer_step(chunks, optimizer, batch, plan, before=TrainState.start(plan))
        return {"after the load": loaded, "after the step": in_force()}
