"""What a run has done so far, as plain numbers. A checkpoint stores it; every hook reads it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from megatron_cpt.plan.run_plan import RunPlan
from megatron_cpt.train.divergence import MEDIAN_STEPS


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did, equal on every rank.

    Attributes:
        loss: mean over the step's unmasked tokens of the global batch, in nats.
        grad_norm: L2 norm of the whole gradient before clipping.
        learning_rate: the rate that the update used.
        seconds: wall time of the step on this rank.
        source_samples: samples of the global batch that came from each source, in the order of `plan.blend`.
        source_tokens: tokens that were read from each source.
        source_nats: summed loss of each source in nats.
        source_loss_tokens: tokens of each source that have a loss; fewer than were read where `packing` masks some.
        is_skipped: the update was bad and no weight took it.
        embedding_learning_rate: that of embedding and output rows where the plan gives them one of their own, otherwise None.
    """

    loss: float
    grad_norm: float
    learning_rate: float
    seconds: float
    source_samples: tuple[int, ...]
    source_tokens: tuple[int, ...]
    source_nats: tuple[float, ...] = ()
    source_loss_tokens: tuple[int, ...] = ()
    is_skipped: bool = False
    embedding_learning_rate: float | None = None


@dataclass(frozen=True)
class TrainState:
    """Counters of a run after `step` optimizer steps; `last` is the step that led here, None at a start or resume.

    `recent_grad_norms` are those of the last updates that were taken, oldest first: what a spike is measured by.
    """

    step: int
    samples_seen: int
    source_samples: tuple[int, ...]
    source_tokens: tuple[int, ...]
    last: StepResult | None = None
    skipped_steps: int = 0
    recent_grad_norms: tuple[float, ...] = ()

    @property
    def tokens_seen(self) -> int:
        return sum(self.source_tokens)

    @classmethod
    def start(cls, plan: RunPlan) -> TrainState:
        nothing = (0,) * len(plan.blend)
        return cls(step=0, samples_seen=0, source_samples=nothing, source_tokens=nothing)

    def after(self, result: StepResult) -> TrainState:
        """Return the state after one more step."""
        return replace(
            self,
            step=self.step + 1,
            samples_seen=self.samples_seen + sum(result.source_samples),
            source_samples=_sum(self.source_samples, result.source_samples),
            source_tokens=_sum(self.source_tokens, result.source_tokens),
            last=result,
            skipped_steps=self.skipped_steps + result.is_skipped,
            recent_grad_norms=self.recent_grad_norms if result.is_skipped else (*self.recent_grad_norms, result.grad_norm)[-MEDIAN_STEPS:],
        )


def _sum(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a + b for a, b in zip(left, right, strict=True))
