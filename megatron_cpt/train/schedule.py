"""The learning rate as a pure function of samples, so that a resumed run cannot disagree with an uninterrupted one."""

from __future__ import annotations

import math

from megatron_cpt.plan.run_plan import SchedulePlan


def learning_rate(schedule: SchedulePlan, *, samples_seen: int) -> float:
    """Return the rate of the update that completes `samples_seen` samples.

    Linear from 0 to `peak_lr` over the first `warmup_samples`, then a half cosine that reaches `min_lr` at
    `decay_samples` (counted from the first sample, warm-up included), then constant. The samples of the update itself
    count, so that the first step of a warm-up is not spent at rate 0.
    """
    if samples_seen < schedule.warmup_samples:
        return schedule.peak_lr * samples_seen / schedule.warmup_samples
    if samples_seen >= schedule.decay_samples:
        return schedule.min_lr
    progress = (samples_seen - schedule.warmup_samples) / (schedule.decay_samples - schedule.warmup_samples)
    return schedule.min_lr + (schedule.peak_lr - schedule.min_lr) * 0.5 * (1.0 + math.cos(math.pi * progress))
