"""What training does with an update that no weight should take: it leaves it out or ends, on every rank alike, and saves nothing bad."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from megatron_cpt.errors import CptError

MEDIAN_STEPS = 64  # the running median is over so many updates
MIN_MEDIAN_STEPS = 8  # with fewer, one odd start decides what is usual


class TrainingDiverged(CptError):
    """The loss or the gradient is not a finite number, or spiked; every rank sees it in the same step and nothing was saved since."""


def require_finite(name: str, figure: float, *, step: int) -> None:
    """Raise TrainingDiverged unless a figure that all ranks share is a finite number."""
    if not math.isfinite(figure):
        raise diverged(f"The {name} is not a finite number.", step=step, value=figure)


def diverged(problem: str, *, step: int, value: object) -> TrainingDiverged:
    return TrainingDiverged(
        problem,
        where=f"step {step}",
        value=value,
        rule="no checkpoint is written from such a step",
        next_step="Lower schedule.peak_lr, lengthen the warm-up, or look for damaged text in the batch; then use a new run_name."
        " stop.max_skipped_steps leaves out so many bad updates and goes on.",
    )


def is_bad(grad_norm: float, *, recent: Sequence[float], spike_factor: float | None) -> bool:
    """Say whether an update must not be taken: its gradient is not finite, or its norm is far above the median of the recent ones."""
    if not math.isfinite(grad_norm):
        return True
    if spike_factor is None or len(recent) < MIN_MEDIAN_STEPS:
        return False
    return grad_norm > spike_factor * statistics.median(recent)
