"""How far the model was from the frozen base on each held-out text, from the first token to the last: gain and forgetting."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatron_cpt.gate.decide import interval_on
from megatron_cpt.gate.scores import NotComparableError, bits_per_byte, documents_by_id, pair_up
from megatron_cpt.plan.run_plan import EvalText, RunPlan
from megatron_cpt.report.steps import StepRecords, is_number


@dataclass(frozen=True)
class Place:
    """Bits per byte against the frozen base at one point of training, with the interval of a single look where one was had."""

    tokens: float
    difference: float
    interval: tuple[float, float] | None
    what: str


@dataclass(frozen=True)
class Course:
    """One held-out text over training. `missing` says what it lacks and why."""

    text: str
    role: str
    places: tuple[Place, ...]
    missing: tuple[str, ...] = ()


def courses(plan: RunPlan, found: StepRecords, *, baseline: Any, candidate: Any) -> list[Course]:
    """Return every text of the plan: the extended model before training, the evaluations while training, and the trained one.

    Args:
        baseline: the `eval.json` with the subjects `base` and `init`, `candidate` that with `train`; None where there is none.
    """
    return [_course(plan, text, found, baseline=baseline, candidate=candidate) for text in plan.eval.texts]


def _course(plan: RunPlan, text: EvalText, found: StepRecords, *, baseline: Any, candidate: Any) -> Course:
    tokens_at = found.tokens_at()
    at_end = max(tokens_at.values())
    extended = _against_base(plan, text.name, baseline=baseline, record=baseline, subject="init")
    trained = _against_base(plan, text.name, baseline=baseline, record=candidate, subject="train")
    places, missing = [], []
    for record in found.forgetting:
        seen, there = record.get("texts", {}).get(text.name, {}), tokens_at.get(record["step"])
        is_last = there == at_end and not isinstance(trained, str)  # the stage eval scored that one too, and on the test side
        if there is not None and not is_last and is_number(seen.get("difference")):
            interval = (seen["low"], seen["high"]) if is_number(seen.get("low")) and is_number(seen.get("high")) else None
            places.append(Place(there, seen["difference"], interval, f"step {record['step']}"))
    if isinstance(extended, str):
        missing.append(f"extended: unknown ({extended})")
    else:
        places.insert(0, Place(0.0, *extended, "extended"))
    if isinstance(trained, str):
        missing.append(f"trained: unknown ({trained})")
    else:
        places.append(Place(at_end, *trained, "trained"))
    if not found.forgetting:
        missing.append(f"between: unknown ({_why_not_watched(plan, found)})")
    return Course(text.name, text.role, tuple(places), tuple(missing))


def _why_not_watched(plan: RunPlan, found: StepRecords) -> str:
    if not found.steps:
        return "no step is recorded"
    if plan.eval_every_steps == 0:
        return "monitor.eval_every_steps is 0: nothing was evaluated while training"
    return "no evaluation came before the end" if not found.evals else "the evaluations have no base to be compared with"


def _against_base(plan: RunPlan, text: str, *, baseline: Any, record: Any, subject: str) -> tuple[float, tuple[float, float] | None] | str:
    """Return a subject's difference from the base with its interval, or why there is none."""
    if not isinstance(baseline, Mapping) or not isinstance(record, Mapping):
        return "not scored yet"
    try:
        pairs = pair_up(documents_by_id(baseline, "base", text), documents_by_id(record, subject, text))
    except NotComparableError as error:
        return str(error)
    difference = bits_per_byte(float(pairs.candidate_N.sum() - pairs.base_N.sum()), float(pairs.bytes_N.sum()))
    if not math.isfinite(difference):
        return "a loss is not a finite number"
    return difference, interval_on(text, pairs, plan.gate) if pairs.num_documents > 1 else None
