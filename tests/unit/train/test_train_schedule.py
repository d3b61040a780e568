"""The learning rate by hand calculation."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from megatron_cpt.backend import choose
from megatron_cpt.plan.run_plan import SchedulePlan
from megatron_cpt.train.schedule import embedding_learning_rate, ends_new_rows_stage, learning_rate, trains_new_rows_only

SCHEDULE = SchedulePlan("cosine", peak_lr=6e-5, min_lr=6e-6, warmup_samples=100, decay_samples=1100)


@pytest.mark.parametrize(
    ("samples", "rate"),
    [
        (1, 6e-7),
        (50, 3e-5),
        (100, 6e-5),
        (350, 6e-6 + 5.4e-5 * (1 + math.sqrt(0.5)) / 2),  # a quarter of the way: cos 45 degrees
        (600, 3.3e-5),  # half way: the mean of peak and floor
        (1100, 6e-6),
        (5000, 6e-6),
    ],
)
def test_the_rate_follows_warmup_cosine_and_floor(samples: int, rate: float) -> None:
    assert learning_rate(SCHEDULE, samples_seen=samples) == pytest.approx(rate, rel=1e-12)


def test_the_rate_never_rises_after_the_warmup() -> None:
    rates = [learning_rate(SCHEDULE, samples_seen=samples) for samples in range(100, 1200)]
    assert rates == sorted(rates, reverse=True)


def test_without_warmup_the_first_update_is_just_below_the_peak() -> None:
    schedule = SchedulePlan("cosine", peak_lr=1.0, min_lr=0.0, warmup_samples=0, decay_samples=3)
    assert [learning_rate(schedule, samples_seen=samples) for samples in (1, 2, 3)] == pytest.approx([0.75, 0.25, 0.0])  # cos 60, cos 120


def test_a_run_that_is_all_warmup_rises_and_divides_by_no_zero() -> None:
    schedule = SchedulePlan("cosine", peak_lr=1.0, min_lr=0.1, warmup_samples=4, decay_samples=4)
    assert [learning_rate(schedule, samples_seen=samples) for samples in (1, 3)] == [0.25, 0.75]
    assert learning_rate(schedule, samples_seen=4) == 0.1  # the decay ends where the warm-up does


# Peak 1.0, floor 0.2, 100 samples of warm-up, an end at 1100: half way through a fall is at 600, or at 1000 for a last phase of 200.
def schedule(kind: str, **changes: Any) -> SchedulePlan:
    plain: dict[str, Any] = {"kind": kind, "peak_lr": 1.0, "min_lr": 0.2, "warmup_samples": 100, "decay_samples": 1100}
    return SchedulePlan(**(plain | changes))


WSD = {"anneal_samples": 200}
INFINITE = {"anneal_samples": 200, "cooldown_samples": 400, "constant_lr": 0.8}


@pytest.mark.parametrize(
    ("plan", "rates"),
    [
        (schedule("linear"), {50: 0.5, 100: 1.0, 350: 0.8, 600: 0.6, 1100: 0.2, 2000: 0.2}),
        (schedule("constant"), {50: 0.5, 100: 1.0, 600: 1.0, 1100: 1.0, 2000: 1.0}),
        (schedule("wsd", **WSD), {50: 0.5, 100: 1.0, 600: 1.0, 900: 1.0, 1000: 0.6, 1100: 0.2, 2000: 0.2}),
        # 0.2 + 0.8 x (1 + cos 45) / 2 at a quarter of the last phase
        (schedule("wsd", anneal_shape="cosine", **WSD), {900: 1.0, 950: 0.2 + 0.4 * (1 + math.sqrt(0.5)), 1000: 0.6, 1100: 0.2}),
        # 0.2 + 0.8 x (1 - sqrt(1/4))
        (schedule("wsd", anneal_shape="minus_sqrt", **WSD), {900: 1.0, 950: 0.6, 1100: 0.2}),
        # 0.2 + 0.8 x (2 / sqrt 2 - 1) half way
        (schedule("wsd", anneal_shape="exponential", **WSD), {900: 1.0, 1000: 0.2 + 0.8 * (math.sqrt(2) - 1), 1100: 0.2}),
        # half of the way from 1.0 down to 0.8 at 300; then 0.8; the geometric mean of 0.8 and 0.2 half way through the last phase
        (schedule("infinite", **INFINITE), {50: 0.5, 100: 1.0, 300: 0.9, 500: 0.8, 700: 0.8, 900: 0.8, 1000: 0.4, 1100: 0.2, 2000: 0.2}),
    ],
    ids=lambda value: f"{value.kind}-{value.anneal_shape}" if isinstance(value, SchedulePlan) else "",
)
def test_each_kind_by_hand(plan: SchedulePlan, rates: dict[int, float]) -> None:
    assert {seen: learning_rate(plan, samples_seen=seen) for seen in rates} == pytest.approx(rates, rel=1e-12)


@pytest.mark.parametrize("kind", ["cosine", "linear", "wsd", "infinite"])
def test_no_kind_jumps_or_rises_after_the_warmup(kind: str) -> None:
    plan = schedule(kind, **(INFINITE if kind == "infinite" else WSD if kind == "wsd" else {}))
    rates = [learning_rate(plan, samples_seen=seen) for seen in range(1, 1300)]
    assert rates[99:] == sorted(rates[99:], reverse=True)
    # the steepest of them, a warm-up of 100 samples, moves by 0.01 a sample
    assert max(abs(after - before) for before, after in itertools.pairwise(rates)) < 0.011


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant", "wsd", "infinite"])
def test_the_new_rows_stage_has_its_own_rate_and_the_rest_is_the_schedule_moved_behind_it(kind: str) -> None:
    extra = INFINITE if kind == "infinite" else WSD if kind == "wsd" else {}
    alone, staged = schedule(kind, **extra), schedule(kind, new_rows_samples=40, new_rows_lr=7.0, **extra)
    assert {learning_rate(staged, samples_seen=seen) for seen in range(1, 41)} == {7.0}
    for seen in range(1, 1200):
        assert learning_rate(staged, samples_seen=40 + seen) == learning_rate(alone, samples_seen=seen)


def test_phases_of_no_length_divide_by_no_zero() -> None:
    plan = schedule("infinite", warmup_samples=0, constant_lr=0.5)
    assert [learning_rate(plan, samples_seen=seen) for seen in (1, 1099, 1100)] == [0.5, 0.5, 0.2]
    assert [learning_rate(schedule("wsd"), samples_seen=seen) for seen in (1099, 1100)] == [1.0, 0.2]


def test_the_first_stage_ends_once() -> None:
    staged = schedule("constant", new_rows_samples=16, new_rows_lr=1.0)
    assert [trains_new_rows_only(staged, first_sample=sample) for sample in (0, 8, 16, 24)] == [True, True, False, False]
    assert [ends_new_rows_stage(staged, first_sample=sample) for sample in (0, 8, 16, 24)] == [False, False, True, False]
    assert not ends_new_rows_stage(schedule("constant"), first_sample=0)


def test_a_warm_up_may_take_up_the_rate_that_another_run_ended_with() -> None:
    """By hand: from 6e-6 by a hundredth of 5.4e-5 a sample; the kinds go on from the peak as they always do."""
    rewarmed = replace(SCHEDULE, warmup_from_lr=6e-6)
    assert [learning_rate(rewarmed, samples_seen=seen) for seen in (1, 50, 100)] == pytest.approx([6.54e-6, 3.3e-5, 6e-5], rel=1e-12)
    assert learning_rate(rewarmed, samples_seen=600) == learning_rate(SCHEDULE, samples_seen=600)
    flat = replace(SCHEDULE, warmup_from_lr=6e-5)
    assert [learning_rate(flat, samples_seen=seen) for seen in range(1, 101)] == pytest.approx([6e-5] * 100, rel=1e-12)


def test_a_warm_up_from_a_rate_is_that_of_megatrons_scheduler() -> None:
    choose("cpu")
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler  # noqa: PLC0415  # after the backend was chosen

    plan = replace(SCHEDULE, warmup_from_lr=6e-6)
    scheduler = OptimizerParamScheduler(
        torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0),
        init_lr=6e-6, max_lr=6e-5, min_lr=6e-6, lr_warmup_steps=100, lr_decay_steps=1100, lr_decay_style="cosine",
        start_wd=0.0, end_wd=0.0, wd_incr_steps=1, wd_incr_style="constant",
    )  # fmt: skip
    for seen in range(1, 1200):
        scheduler.step(1)
        assert learning_rate(plan, samples_seen=seen) == pytest.approx(scheduler.optimizer.param_groups[0]["lr"], rel=1e-12)


def test_the_scale_of_embedding_rows_is_of_the_schedule_and_not_of_the_new_rows_stage() -> None:
    staged = schedule("constant", new_rows_samples=16, new_rows_lr=7.0)
    assert [embedding_learning_rate(staged, samples_seen=seen, scale=0.25) for seen in (8, 16, 24)] == [7.0, 7.0, pytest.approx(0.02)]


@pytest.mark.parametrize("shape", ["linear", "cosine", "minus_sqrt", "exponential"])
def test_each_shape_of_the_last_phase_is_that_of_megatrons_scheduler(shape: Any) -> None:
    choose("cpu")
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler  # noqa: PLC0415  # after the backend was chosen

    plan = schedule("wsd", anneal_shape=shape, **WSD)
    scheduler = OptimizerParamScheduler(
        torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0),
        init_lr=0.0, max_lr=plan.peak_lr, min_lr=plan.min_lr, lr_warmup_steps=plan.warmup_samples, lr_decay_steps=plan.decay_samples,
        lr_decay_style="WSD", start_wd=0.0, end_wd=0.0, wd_incr_steps=1, wd_incr_style="constant",
        wsd_decay_steps=plan.anneal_samples, lr_wsd_decay_style=shape,
    )  # fmt: skip
    for seen in range(1, 1200):
        scheduler.step(1)
        assert learning_rate(plan, samples_seen=seen) == pytest.approx(scheduler.optimizer.param_groups[0]["lr"], rel=1e-12)
