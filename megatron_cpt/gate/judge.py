"""Judges one rule: measures it, and says in words what was shown once the level is corrected for all rules. Pure."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatron_cpt.gate.evidence import Evidence, evidence_of
from megatron_cpt.gate.pairs import Pairs, read_pairs
from megatron_cpt.gate.scores import NotComparableError
from megatron_cpt.gate.statistics import Corrected, items_needed, smallest_detectable
from megatron_cpt.gate.verdict import Outcome, RuleResult
from megatron_cpt.plan.metrics import TEXT_METRIC
from megatron_cpt.plan.run_plan import GatePlan, GateRule


@dataclass(frozen=True)
class Judged:
    """A rule with what was measured for it; without `evidence` its outcome is settled by `settled`.

    Attributes:
        level: one-sided, before any correction: half of what the interval's confidence leaves out.
        p_passed: of the claim that the rule asks for; 1 where it cannot be measured.
        p_failed: of the claim of harm: worse than the base for `must_improve`, by more than the margin for `may_not_worsen`.
    """

    rule: GateRule
    level: float
    p_passed: float = 1.0
    p_failed: float = 1.0
    pairs: Pairs | None = None
    evidence: Evidence | None = None
    settled: tuple[Outcome, str] = ("unknown", "")

    @property
    def passing_bound(self) -> float:
        """The worsening below which the rule passes: a gain beyond the margin is a negative one."""
        return 0.0 - self.rule.margin if self.rule.kind == "must_improve" else self.rule.margin

    @property
    def failing_bound(self) -> float:
        """The worsening above which it fails. A gain that is too small is no harm, whatever the margin."""
        return 0.0 if self.rule.kind == "must_improve" else self.rule.margin


def measure(rule: GateRule, baseline: Mapping[str, Any], candidate: Mapping[str, Any], plan: GatePlan) -> Judged:
    """Measure one rule; without usable scores of the same items it is unknown.

    A candidate whose loss is not a finite number has been measured, and has diverged: it fails.
    """
    level = (1 - (rule.confidence if rule.confidence is not None else plan.confidence)) / 2
    try:
        pairs = read_pairs(rule, baseline, candidate)
    except NotComparableError as error:
        return Judged(rule, level, settled=("unknown", str(error)))
    if not _all_finite(pairs.base_N):
        return Judged(rule, level, pairs=pairs, settled=("unknown", "the base has a loss that is not a finite number"))
    if not _all_finite(pairs.candidate_N):
        diverged = "the candidate has a loss that is not a finite number: it has diverged"
        return Judged(rule, level, p_failed=0.0, pairs=pairs, settled=("failed", diverged))
    if pairs.num_items < 2:
        more = "raise eval.max_bytes or test_fraction" if rule.metric == TEXT_METRIC else "use a larger benchmark"
        return Judged(rule, level, pairs=pairs, settled=("unknown", f"one item gives no interval; {more}"))
    seed = plan.seed ^ zlib.crc32((rule.on if rule.metric == TEXT_METRIC else f"{rule.on} {rule.metric}").encode("utf-8"))
    evidence = evidence_of(pairs, num_resamples=plan.bootstrap_samples, seed=seed)
    judged = Judged(rule, level, pairs=pairs, evidence=evidence)
    return Judged(
        rule,
        level,
        p_passed=evidence.p_below(judged.passing_bound),
        p_failed=evidence.p_above(judged.failing_bound),
        pairs=pairs,
        evidence=evidence,
    )


def result_of(judged: Judged, *, passing: Corrected, failing: Corrected, num_rules: int) -> RuleResult:
    """Return the rule's result at its corrected level.

    Both the test and the end of the interval at the same level must say so: each is only approximate on few items, in another way.

    Args:
        passing: the corrected p-value of what the rule asks; `failing` is that of harm.
        num_rules: rules of its family, by which the strictest step of the correction divides the level.
    """
    rule, pairs, evidence = judged.rule, judged.pairs, judged.evidence
    if pairs is None or evidence is None:
        return _result(judged, *judged.settled)
    worst_upper = evidence.upper(judged.level / passing.divisor)
    best_lower = evidence.lower(judged.level / failing.divisor)
    worsening = pairs.sign * (pairs.figure(pairs.candidate_N) - pairs.figure(pairs.base_N))
    outcome: Outcome = "unsure"
    if passing.stands and worst_upper < judged.passing_bound:
        outcome = "passed"
    elif failing.stands and best_lower > judged.failing_bound:
        outcome = "failed"
    strictest = judged.level / num_rules
    error = evidence.standard_error
    needed = _items_for(judged, worsening, error, level=strictest) if outcome == "unsure" else None
    detectable = smallest_detectable(error, level=strictest) if error > 0 else None
    low, high = (best_lower, worst_upper) if pairs.sign > 0 else (-worst_upper, -best_lower)
    unit = f" {pairs.metric.unit}" if rule.metric == TEXT_METRIC else ""
    chances = f"p {_p(failing.p if outcome == 'failed' else passing.p)} at level {judged.level:g}"
    figures = f"{pairs.sign * worsening:+.4f}{unit} ({low:+.4f} to {high:+.4f}, {chances})"
    kind_of_item = "documents" if rule.metric == TEXT_METRIC else "items"
    size = f"; {pairs.num_items} {kind_of_item}"
    size += f" ({pairs.num_excluded} more left out as contaminated)" if pairs.num_excluded else ""
    fewest = math.ceil(-math.log2(strictest))  # of fewer, even unanimous ones have a p-value above the level
    if outcome == "unsure" and pairs.num_items < fewest:
        size += f" can show nothing at this level, {fewest} can"
        needed = None if needed is None else max(needed, fewest)
    elif detectable is not None:
        size += f" can show {detectable:.4f}"
    advice = f"; about {needed:,} would decide" if needed is not None else ""
    return _result(
        judged,
        outcome,
        f"{figures}: {_shown(judged, outcome, best_lower)}{size}{advice}",
        low=low,
        high=high,
        p_passed=passing.p,
        p_failed=failing.p,
        test=evidence.test,
        smallest_detectable=detectable,
        items_needed=needed,
    )


def _shown(judged: Judged, outcome: Outcome, best_lower: float) -> str:
    rule = judged.rule
    improve = rule.kind == "must_improve"
    beyond = f" by more than {rule.margin:g}" if rule.margin else ""
    if outcome == "passed":
        within = f" by {rule.margin:g} or more" if rule.margin else ""
        return f"shown to be better{beyond}" if improve else f"shown not to be worse{within}"
    if outcome == "failed":
        return "shown to be worse than the base" if improve else f"shown to be worse{beyond}"
    if improve and best_lower > judged.passing_bound:
        return f"shown not to be better{beyond}, but no harm is shown"
    return f"not shown to be better{beyond}, nor worse" if improve else f"not shown to be within {rule.margin:g} of the base, nor beyond"


def _items_for(judged: Judged, worsening: float, error: float, *, level: float) -> int | None:
    """Return how many items like these would decide, were the worsening what it seems; None when no number would."""
    assert judged.pairs is not None
    distances = [judged.passing_bound - worsening, worsening - judged.failing_bound]
    towards = max(distances)
    if towards <= 0 or error <= 0:
        return None
    needed = items_needed(judged.pairs.num_items, error, distance=towards, level=level)
    return max(needed, judged.pairs.num_items + 1) if needed < 10_000_000 else None


def _result(judged: Judged, outcome: Outcome, reason: str, **figures: Any) -> RuleResult:
    rule, pairs = judged.rule, judged.pairs
    base = new = None
    if pairs is not None:
        base, new = _finite(pairs.figure(pairs.base_N)), _finite(pairs.figure(pairs.candidate_N))
    return RuleResult(
        on=rule.on,
        metric=rule.metric,
        kind=rule.kind,
        group=rule.group,
        margin=rule.margin,
        required=rule.required,
        outcome=outcome,
        reason=reason,
        num_items=0 if pairs is None else pairs.num_items,
        num_excluded=0 if pairs is None else pairs.num_excluded,
        base=base,
        candidate=new,
        difference=None if base is None or new is None else new - base,
        level=judged.level,
        **figures,
    )


def _all_finite(values_N: Any) -> bool:
    return all(map(math.isfinite, values_N))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _p(value: float) -> str:
    return f"{value:.4f}" if value >= 0.0001 else "below 0.0001"
