"""Hard limits while a model trains: judged on in-loop scores, and turned into the verdict of the gate. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from megatron_cpt.gate.decide import decide
from megatron_cpt.gate.verdict import Verdict
from megatron_cpt.plan.run_plan import GatePlan


@dataclass(frozen=True)
class Breach:
    """A hard limit that an in-loop score broke; in bits per byte. `difference` and `low` are None for a loss that is no number."""

    step: int
    of: str
    max_increase: float
    confidence: float
    difference: float | None
    low: float | None
    round: int = 1

    @property
    def reason(self) -> str:
        loop = "the loop" if self.round == 1 else f"the loop of round {self.round}"
        if self.difference is None or self.low is None:
            return f"hard limit in {loop}: the loss on {self.of} is not a finite number after step {self.step}"
        return (
            f"hard limit in {loop}: {self.of} is {self.difference:+.4f} bits per byte against the frozen base after step {self.step},"
            f" at least {self.low:+.4f} at {self.confidence:.0%}; the limit is {self.max_increase:+.4f}"
        )


def breach_of(plan: GatePlan, record: Mapping[str, Any]) -> Breach | None:
    """Return the first limit that a `forgetting` record breaks: estimate and lower end of the paired interval lie beyond it.

    Nothing breaks inside the grace window. A text whose score is not comparable breaks nothing, and neither does one without an
    interval: it cannot be told from chance.
    """
    if record["in_grace"]:
        return None
    for limit in plan.limits:
        found = record["texts"].get(limit.of, {})
        low = found.get("low")
        if low is not None and min(found["difference"], low) > limit.max_increase:
            return Breach(int(record["step"]), limit.of, limit.max_increase, plan.confidence, float(found["difference"]), float(low))
    return None


def not_finite(plan: GatePlan, bits_per_byte: Mapping[str, float], *, step: int) -> Breach | None:
    """Return a breach for the first text with a limit whose score is no finite number; the grace window does not excuse it."""
    for limit in plan.limits:
        if limit.of in bits_per_byte and not math.isfinite(bits_per_byte[limit.of]):
            return Breach(step, limit.of, limit.max_increase, plan.confidence, None, None)
    return None


def verdict_of_breach(baseline: Mapping[str, Any], plan: GatePlan, breach: Breach, *, weights_sha256: str | None) -> Verdict:
    """Return the verdict `rollback` of a run that a limit ended.

    Args:
        baseline: an `eval.json` with the subject `base`.
        weights_sha256: of the checkpoint that was saved at the end; None when there is none.
    """
    unjudged = decide(baseline, {}, replace(plan, rules=()))
    return replace(
        unjudged,
        decision="rollback",
        reasons=(breach.reason,),
        candidate_weights_sha256=weights_sha256,
        step=breach.step,
        notes=(),
    )
