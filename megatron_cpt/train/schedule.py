"""The learning rate as a pure function of samples, so that a resumed run cannot disagree with an uninterrupted one.

Below, `seen` counts samples from the first one after the new-rows stage, those of the update itself included.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from megatron_cpt.plan.run_plan import SchedulePlan


def learning_rate(schedule: SchedulePlan, *, samples_seen: int) -> float:
    """Return the rate of the update that completes `samples_seen` samples.

    `new_rows_lr` in the new-rows stage; then linear from `warmup_from_lr` to `peak_lr` over `warmup_samples`, then what the
    kind says up to `decay_samples`, then its last value. The samples of the update itself count, so that the first step of a
    warm-up is not spent at rate 0. Embedding and output rows are scaled apart (optimizer.py).
    """
    if samples_seen <= schedule.new_rows_samples:
        return schedule.new_rows_lr
    seen = samples_seen - schedule.new_rows_samples
    if seen < schedule.warmup_samples:
        start = schedule.warmup_from_lr
        return start + (schedule.peak_lr - start) * seen / schedule.warmup_samples
    return AFTER_WARMUP[schedule.kind](schedule, seen)


def embedding_learning_rate(schedule: SchedulePlan, *, samples_seen: int, scale: float) -> float:
    """Return the rate of embedding and output rows in the update that completes `samples_seen` samples.

    `scale` multiplies the schedule's rate, and not that of the new-rows stage, which is a rate of those rows alone.
    """
    rate = learning_rate(schedule, samples_seen=samples_seen)
    return rate if samples_seen <= schedule.new_rows_samples else rate * scale


def trains_new_rows_only(schedule: SchedulePlan, *, first_sample: int) -> bool:
    """Return whether the step that begins at `first_sample` belongs to the first stage, in which all else stands still."""
    return first_sample < schedule.new_rows_samples


def ends_new_rows_stage(schedule: SchedulePlan, *, first_sample: int) -> bool:
    """Return whether the step that begins at `first_sample` is the first one after the new-rows stage."""
    return 0 < schedule.new_rows_samples == first_sample


def _cosine(schedule: SchedulePlan, seen: int) -> float:
    """Half a cosine from peak to floor (Loshchilov and Hutter 2017, arXiv 1608.03983, equation 5, without restarts)."""
    return _fall(schedule, seen, SHAPES["cosine"])


def _linear(schedule: SchedulePlan, seen: int) -> float:
    return _fall(schedule, seen, SHAPES["linear"])


def _constant(schedule: SchedulePlan, seen: int) -> float:
    return schedule.peak_lr


def _wsd(schedule: SchedulePlan, seen: int) -> float:
    """Warm-up, stable, decay (Hu et al. 2024, arXiv 2404.06395, section 4): the peak, then a fall over the last `anneal_samples`."""
    if seen >= schedule.decay_samples:
        return schedule.min_lr
    progress = _anneal_progress(schedule, seen)
    if progress <= 0:
        return schedule.peak_lr
    return schedule.min_lr + (schedule.peak_lr - schedule.min_lr) * SHAPES[schedule.anneal_shape](progress)


def _infinite(schedule: SchedulePlan, seen: int) -> float:
    """Cool down to a constant rate, stay, anneal (Ibrahim et al. 2024, arXiv 2403.08763, section on infinite schedules).

    The cool-down is a half cosine, the annealing geometric: `constant x (floor / constant) ^ progress`.
    """
    if seen >= schedule.decay_samples:
        return schedule.min_lr
    cooling = seen - schedule.warmup_samples
    if cooling < schedule.cooldown_samples:
        fall = SHAPES["cosine"](cooling / schedule.cooldown_samples)
        return schedule.constant_lr + (schedule.peak_lr - schedule.constant_lr) * fall
    progress = _anneal_progress(schedule, seen)
    if progress <= 0:
        return schedule.constant_lr
    return float(schedule.constant_lr * (schedule.min_lr / schedule.constant_lr) ** progress)


def _fall(schedule: SchedulePlan, seen: int, shape: Callable[[float], float]) -> float:
    """Return the rate on a fall from peak to floor between the end of the warm-up and `decay_samples`."""
    if seen >= schedule.decay_samples:
        return schedule.min_lr
    progress = (seen - schedule.warmup_samples) / (schedule.decay_samples - schedule.warmup_samples)
    return schedule.min_lr + (schedule.peak_lr - schedule.min_lr) * shape(progress)


def _anneal_progress(schedule: SchedulePlan, seen: int) -> float:
    """Return the share of the last phase that is over, 0 or below before it begins; `seen` lies before the schedule's end."""
    start = schedule.decay_samples - schedule.anneal_samples
    return (seen - start) / schedule.anneal_samples if seen > start else 0.0


# What is left of a fall, from 1 to 0, when a share of it is over; names and formulas as in megatron-core's scheduler.
SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "minus_sqrt": lambda progress: 1.0 - math.sqrt(progress),
    "exponential": lambda progress: 2.0 * 0.5**progress - 1.0,
}

# The rate after the warm-up. A new kind is one function, one line here and one word in SchedulePlan.
AFTER_WARMUP: dict[str, Callable[[SchedulePlan, int], float]] = {
    "cosine": _cosine,
    "linear": _linear,
    "constant": _constant,
    "wsd": _wsd,
    "infinite": _infinite,
}
