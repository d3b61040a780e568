"""What a run has done so far, as plain numbers. A checkpoint stores it; every hook reads it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from megatron_cpt.plan.run_plan import RunPlan


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did, equal on every rank.

    Attributes:
        loss: mean over the step's unmasked tokens of the global batch, in nats.
        grad_norm: L2 norm of the whole gradient before clipping.
        learning_rate: the rate that the update used.
        seconds: wall time of the step on this rank.
        source_samples: samples of the global batch that came from each source, in the order of `plan.blend`.
        source_tokens: unmasked tokens that came from each source.
    """

    loss: float
    grad_norm: float
    learning_rate: float
    seconds: float
    source_samples: tuple[int, ...]
    source_tokens: tuple[int, ...]


@dataclass(frozen=True)
class TrainState:
    """Counters of a run after `step` optimizer steps; `last` is the step that led here, None at a start or resume."""

    step: int
    samples_seen: int
    source_samples: tuple[int, ...]
    source_tokens: tuple[int, ...]
    last: StepResult | None = None

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
        )


def _sum(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a + b for a, b in zip(left, right, strict=True))
