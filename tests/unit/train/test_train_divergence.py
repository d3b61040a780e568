"""Which updates no weight takes, and what the run remembers of them."""

from __future__ import annotations

import dataclasses
import math

import pytest

from megatron_cpt.train.divergence import MEDIAN_STEPS, is_bad
from megatron_cpt.train.state import StepResult, TrainState


@pytest.mark.parametrize("norm", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_is_bad_whatever_is_set(norm: float) -> None:
    assert is_bad(norm, recent=(), spike_factor=None)


def test_a_spike_is_measured_by_the_median_of_the_recent_norms() -> None:
    recent = (1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 40.0)  # median 2.5
    assert not is_bad(25.0, recent=recent, spike_factor=10.0)
    assert is_bad(25.1, recent=recent, spike_factor=10.0)
    assert not is_bad(1e9, recent=recent, spike_factor=None)
    assert not is_bad(1e9, recent=recent[:7], spike_factor=10.0)  # too few to say what is usual


def test_a_skipped_update_is_counted_and_not_remembered_as_usual() -> None:
    result = StepResult(2.0, 1.5, 1e-4, 0.5, (6, 2), (60, 20))
    state = TrainState(0, 0, (0, 0), (0, 0))
    for step in range(MEDIAN_STEPS + 5):
        state = state.after(dataclasses.replace(result, grad_norm=float(step)))
    assert state.recent_grad_norms == tuple(float(step) for step in range(5, MEDIAN_STEPS + 5))
    after = state.after(dataclasses.replace(result, grad_norm=math.nan, is_skipped=True))
    assert (after.skipped_steps, after.recent_grad_norms) == (1, state.recent_grad_norms)
    assert after.samples_seen == state.samples_seen + 8  # its text was read, and the schedule goes on
