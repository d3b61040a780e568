"""How far the model in training is from the frozen base on each held-out text, with the gate's own paired interval."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from megatron_cpt.gate.decide import interval_on
from megatron_cpt.gate.pairs import BASE, CANDIDATE
from megatron_cpt.gate.scores import NotComparableError, bits_per_byte, documents_by_id, pair_up
from megatron_cpt.plan.run_plan import RunPlan, grace_window_steps

Scores = Mapping[str, Mapping[str, Any]]

logger = logging.getLogger(__name__)


def grace_steps(plan: RunPlan) -> int:
    """Return the steps in which a loss on general text is no warning, as for the gate: a dip and a recovery early on are usual."""
    return grace_window_steps(plan)


def forgetting_record(plan: RunPlan, baseline: Mapping[str, Any], scores: Scores, *, step: int) -> dict[str, Any]:
    """Return a `forgetting` record: for each text the base's and this model's bits per byte, their difference and its interval.

    Args:
        baseline: an `eval.json` with the subject `base`.
        scores: by text, in the form of `eval.json`.
    """
    return {
        "kind": "forgetting",
        "step": step,
        "confidence": plan.gate.confidence,
        "in_grace": step <= grace_steps(plan),
        "texts": {name: _compare(plan, baseline, name, score) for name, score in scores.items()},
    }


def _watched(baseline: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the baseline with the base's scores on validation sides in the place of those on test sides, as the loop scores them."""
    base = baseline.get("subjects", {}).get(BASE, {})
    return {"subjects": {BASE: {"texts": {**base.get("texts", {}), **base.get("watched", {})}}}}


def _compare(plan: RunPlan, baseline: Mapping[str, Any], name: str, score: Mapping[str, Any]) -> dict[str, Any]:
    try:
        candidate = {"subjects": {CANDIDATE: {"texts": {name: score}}}}
        pairs = pair_up(documents_by_id(_watched(baseline), BASE, name), documents_by_id(candidate, CANDIDATE, name))
    except NotComparableError as error:
        return {"role": score["role"], "unknown": str(error)}
    size = float(pairs.bytes_N.sum())
    base, now = bits_per_byte(float(pairs.base_N.sum()), size), bits_per_byte(float(pairs.candidate_N.sum()), size)
    found: dict[str, Any] = {
        "role": score["role"],
        "num_documents": pairs.num_documents,
        "base": base,
        "now": now,
        "difference": now - base,
    }
    if not math.isfinite(now - base):
        return {"role": score["role"], "unknown": "a loss is not a finite number"}
    if pairs.num_documents > 1:  # one document gives no interval
        found["low"], found["high"] = interval_on(name, pairs, plan.gate)
    return found


def forgotten(plan: RunPlan, record: Mapping[str, Any]) -> dict[str, float]:
    """Return the general texts that got worse by more than the gate allows, with the low end of their intervals."""
    margins = {rule.of: rule.margin for rule in plan.gate.rules if rule.kind == "may_not_worsen"}
    return {
        name: found["low"]
        for name, found in record["texts"].items()
        if found["role"] == "general" and "low" in found and found["low"] > margins.get(name, 0.0)
    }


def warn_of(plan: RunPlan, record: Mapping[str, Any]) -> None:
    """Warn of general texts that got worse, once the grace window is over."""
    if record["in_grace"]:
        return
    for name, low in forgotten(plan, record).items():
        found = record["texts"][name]
        logger.warning(
            "step %d: %s is %.4f bits per byte worse than the frozen base (at least %.4f at %.0f %%)."
            " More replay or a lower rate forgets less.",
            record["step"],
            name,
            found["difference"],
            low,
            100 * record["confidence"],
        )
