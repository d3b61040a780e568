"""The learning rate by hand calculation."""

from __future__ import annotations

import math

import pytest

from megatron_cpt.plan.run_plan import SchedulePlan
from megatron_cpt.train.schedule import learning_rate

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
