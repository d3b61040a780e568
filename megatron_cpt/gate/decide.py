"""Judges a candidate against the frozen base by the rules of the plan. Pure: dictionaries in, a verdict out.

A promotion needs proof of every gain and of the absence of every harm that the rules name; a rollback needs proof of harm. What is
proven neither way is unknown, which promotes nothing and rolls nothing back. docs/reference/evaluation.md gives the reasons and sources.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from megatron_cpt.gate.judge import Judged, measure, result_of
from megatron_cpt.gate.pairs import BASE, CANDIDATE
from megatron_cpt.gate.scores import PairedScores, bootstrap_interval, subject_of, weights_sha256
from megatron_cpt.gate.statistics import Corrected, holm
from megatron_cpt.gate.verdict import RuleResult, Verdict
from megatron_cpt.plan.rules import rule_warnings
from megatron_cpt.plan.run_plan import GatePlan, GateRule

EQUALS_THE_BASE = "the candidate equals the base: no score differs"
NOT_CHECKED = "no overlap of the items with the training texts was looked for: the records hold no such check"


def decide(
    baseline: Mapping[str, Any], candidate: Mapping[str, Any], plan: GatePlan, *, step: int | None = None, grace_steps: int = 0
) -> Verdict:
    """Decide what happens with a candidate.

    `rollback`: harm was shown by a required rule. `promote`: every required rule passed. `unknown`: everything else, above all a
    score that is missing, a candidate inside the grace window, and one that equals the base.

    Args:
        baseline: an `eval.json` with the subject `base`.
        candidate: an `eval.json` with the subject `train`.
        step: the candidate's, when known.
        grace_steps: up to this step a loss on general text is expected, and nothing is judged.
    """
    measured = [measure(rule, baseline, candidate, plan) for rule in plan.rules]
    results = _results(measured, plan)
    decision, reasons = _decision(results)
    if results and decision != "rollback" and _are_equal(baseline, candidate):
        decision, reasons = "unknown", [EQUALS_THE_BASE]
    if step is not None and step <= grace_steps:
        decision, reasons = "unknown", [f"step {step} lies inside the grace window, which ends after step {grace_steps}: nothing is judged"]
        results = [_unjudged(rule) for rule in plan.rules]
    groups = {rule.group for rule in plan.rules if rule.required}
    checked = "contaminated" in baseline or "contaminated" in candidate
    return Verdict(
        decision=decision,
        rules=tuple(results),
        reasons=tuple(reasons),
        confidence=plan.confidence,
        bootstrap_samples=plan.bootstrap_samples,
        seed=plan.seed,
        base_weights_sha256=weights_sha256(baseline, BASE),
        candidate_weights_sha256=weights_sha256(candidate, CANDIDATE),
        step=step,
        notes=(*(rule_warnings(groups) if results else ()), *(() if checked else (NOT_CHECKED,))),
    )


def interval_on(text: str, scores: PairedScores, plan: GatePlan) -> tuple[float, float]:
    """Return the interval of the difference in bits per byte on one text, candidate minus base, uncorrected: that of a single look."""
    return bootstrap_interval(
        scores, confidence=plan.confidence, num_resamples=plan.bootstrap_samples, seed=plan.seed ^ zlib.crc32(text.encode("utf-8"))
    )


def _results(measured: Sequence[Judged], plan: GatePlan) -> list[RuleResult]:
    """Correct for several rules and say what each shows. Required and advisory rules are two families: one never moves the other."""
    results: list[RuleResult | None] = [None] * len(measured)
    for family in (True, False):
        members = [index for index, each in enumerate(measured) if each.rule.required is family]
        levels = [measured[index].level for index in members]
        passing: Sequence[Corrected] = holm([measured[index].p_passed for index in members], levels)
        failing: Sequence[Corrected] = holm([measured[index].p_failed for index in members], levels)
        for index, good, bad in zip(members, passing, failing, strict=True):
            results[index] = result_of(measured[index], passing=good, failing=bad, num_rules=len(members))
    return [result for result in results if result is not None]


def _decision(results: Sequence[RuleResult]) -> tuple[Literal["promote", "rollback", "unknown"], list[str]]:
    required = [result for result in results if result.required]
    if not required:
        return "unknown", ["the plan has no required rules" if results else "the plan has no rules"]
    open_ones = [result for outcome in ("failed", "unknown", "unsure") for result in required if result.outcome == outcome]
    reasons = [str(result) for result in open_ones]
    if any(result.outcome == "failed" for result in required):
        return "rollback", reasons
    if open_ones:
        return "unknown", reasons
    return "promote", [f"all {len(required)} required rules passed"]


def _are_equal(baseline: Mapping[str, Any], candidate: Mapping[str, Any]) -> bool:
    """Say whether the candidate is the base: by its digest, or because no text's or task's item scores otherwise.

    Answers to a task can all agree by chance, losses of a text cannot: with any text, the texts alone say it.
    """
    digest = weights_sha256(baseline, BASE)
    if digest is not None and digest == weights_sha256(candidate, CANDIDATE):
        return True
    base, new = subject_of(baseline, BASE), subject_of(candidate, CANDIDATE)
    for kind, item_key, score_key in (("texts", "documents", "nats"), ("tasks", "items", "metrics")):
        scores = [_scores_of(subject.get(kind), item_key, score_key) for subject in (base, new)]
        if all(scores):
            return scores[0] == scores[1]
    return False


def _scores_of(kinds: object, item_key: str, score_key: str) -> dict[tuple[str, str], Any]:
    found: dict[tuple[str, str], Any] = {}
    for name, each in kinds.items() if isinstance(kinds, Mapping) else ():
        items = each.get(item_key) if isinstance(each, Mapping) else None
        found |= {(name, str(item.get("id"))): item.get(score_key) for item in items or () if isinstance(item, Mapping)}
    return found


def _unjudged(rule: GateRule) -> RuleResult:
    return RuleResult(
        rule.of, rule.metric, rule.kind, rule.group, rule.margin, rule.required, "unknown", "inside the grace window, not judged"
    )
