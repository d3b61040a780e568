"""What training does when a figure is no longer a finite number: it stops on every rank and saves nothing."""

from __future__ import annotations

import math

from megatron_cpt.errors import CptError


class TrainingDiverged(CptError):
    """The loss or the gradient is not a finite number; every rank sees it in the same step and nothing was saved since."""


def require_finite(name: str, figure: float, *, step: int) -> None:
    """Raise TrainingDiverged unless a figure that all ranks share is a finite number."""
    if not math.isfinite(figure):
        raise TrainingDiverged(
            f"The {name} is not a finite number.",
            where=f"step {step}",
            value=figure,
            rule="no checkpoint is written from such a step",
            next_step="Lower schedule.peak_lr, lengthen the warm-up, or look for damaged text in the batch; then use a new run_name.",
        )
