"""Judges a candidate against the frozen base by the rules of the plan. Pure: dictionaries in, a verdict out."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from typing import Any, Literal

from megatron_cpt.gate.scores import (
    NotComparableError,
    PairedScores,
    bits_per_byte,
    bootstrap_interval,
    documents_by_id,
    pair_up,
    weights_sha256,
)
from megatron_cpt.gate.verdict import RuleResult, Verdict
from megatron_cpt.plan.run_plan import GatePlan, GateRule

BASE, CANDIDATE = "base", "train"
FEW_DOCUMENTS = 5


def decide(baseline: Mapping[str, Any], candidate: Mapping[str, Any], plan: GatePlan) -> Verdict:
    """Decide what happens with a candidate: promoted only if every rule passed, unknown while one cannot be judged, else rolled back.

    Args:
        baseline: an `eval.json` with the subject `base`.
        candidate: an `eval.json` with the subject `train`.
    """
    results = tuple(judge(rule, baseline, candidate, plan) for rule in plan.rules)
    failed = [result for result in results if result.passed is False]
    unknown = [result for result in results if result.passed is None]
    reasons = [f"{result.on} {result.kind}: {result.reason}" for result in (*failed, *unknown)]
    decision: Literal["promote", "rollback", "unknown"]
    if not results:
        decision, reasons = "unknown", ["the plan has no rules"]
    elif unknown:
        decision = "unknown"
    elif failed:
        decision = "rollback"
    else:
        decision, reasons = "promote", [f"all {len(results)} rules passed"]
    return Verdict(
        decision=decision,
        rules=results,
        reasons=tuple(reasons),
        confidence=plan.confidence,
        bootstrap_samples=plan.bootstrap_samples,
        seed=plan.seed,
        base_weights_sha256=weights_sha256(baseline, BASE),
        candidate_weights_sha256=weights_sha256(candidate, CANDIDATE),
    )


def judge(rule: GateRule, baseline: Mapping[str, Any], candidate: Mapping[str, Any], plan: GatePlan) -> RuleResult:
    """Judge one rule; without usable scores of the same documents its result is unknown.

    A candidate whose loss is not a finite number has been measured, and has diverged: it fails.
    """
    try:
        scores = pair_up(documents_by_id(baseline, BASE, rule.on), documents_by_id(candidate, CANDIDATE, rule.on))
    except NotComparableError as error:
        return _result(rule, passed=None, reason=str(error))
    total_bytes = float(scores.bytes_N.sum())
    base = bits_per_byte(float(scores.base_N.sum()), total_bytes)
    new = bits_per_byte(float(scores.candidate_N.sum()), total_bytes)
    num = scores.num_documents
    if not math.isfinite(base):
        return _result(rule, passed=None, reason="the base has a loss that is not a finite number", num_documents=num)
    if not math.isfinite(new):
        reason = "the candidate has a loss that is not a finite number: it has diverged"
        return _result(rule, passed=False, reason=reason, num_documents=num, base=base)
    if num < 2:
        reason = "one document gives no interval; raise eval.max_bytes or test_fraction"
        return _result(rule, passed=None, reason=reason, num_documents=num, base=base, candidate=new)
    return _judge_interval(rule, scores, plan, base=base, candidate=new)


def interval_on(text: str, scores: PairedScores, plan: GatePlan) -> tuple[float, float]:
    """Return the interval of the difference in bits per byte on one text, candidate minus base; the same for all who ask."""
    return bootstrap_interval(
        scores,
        confidence=plan.confidence,
        num_resamples=plan.bootstrap_samples,
        seed=plan.seed ^ zlib.crc32(text.encode("utf-8")),  # equal for rules on one text, whatever their order
    )


def _judge_interval(rule: GateRule, scores: PairedScores, plan: GatePlan, *, base: float, candidate: float) -> RuleResult:
    low, high = interval_on(rule.on, scores, plan)
    bound = -rule.margin if rule.kind == "must_improve" else rule.margin
    passed = high < bound
    bound = bound + 0.0  # -0.0 reads as a mistake
    reason = (
        f"{candidate - base:+.4f} bits per byte ({low:+.4f} to {high:+.4f}): "
        f"the upper end {'is' if passed else 'is not'} below {bound:+.4f}"
    )
    if scores.num_documents < FEW_DOCUMENTS:
        reason += f"; only {scores.num_documents} documents, so the interval is rough"
    return _result(
        rule, passed=passed, reason=reason, num_documents=scores.num_documents, base=base, candidate=candidate, low=low, high=high
    )


def _result(
    rule: GateRule,
    *,
    passed: bool | None,
    reason: str,
    num_documents: int = 0,
    base: float | None = None,
    candidate: float | None = None,
    low: float | None = None,
    high: float | None = None,
) -> RuleResult:
    return RuleResult(
        on=rule.on,
        kind=rule.kind,
        margin=rule.margin,
        num_documents=num_documents,
        base=base,
        candidate=candidate,
        difference=None if base is None or candidate is None else candidate - base,
        low=low,
        high=high,
        passed=passed,
        reason=reason,
    )
