"""Gain and forgetting of runs against their base, on items that are the same in all runs of a group.

The figures are the gate's own (gate/judge.py, on the recorded scores), for one rule at the plan's confidence without a correction for
several. Where a group has several rules in one unit, their mean is taken, with a bootstrap over the items of each.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from megatron_cpt.gate.judge import measure
from megatron_cpt.gate.pairs import BASE, CANDIDATE, contaminated
from megatron_cpt.plan.metrics import TEXT_METRIC, metric_named
from megatron_cpt.plan.run_plan import GatePlan, GateRule, RunPlan
from megatron_cpt.record.hashing import sha256_plain
from megatron_cpt.record.typed import to_plain
from megatron_cpt.record.unknown import Unavailable

NOT_SCORED = Unavailable("the trained model has not been scored")
PROTOCOL = ("window_tokens", "stride_tokens")  # of how a text is scored: other windows give other losses


@dataclass(frozen=True)
class Change:
    """A change from the base to the trained model in the unit of its metric, with the ends of its interval.

    As measured, a worsening is positive.
    """

    value: float
    low: float
    high: float
    num_items: int

    @property
    def gain(self) -> Change:
        """The same as an improvement: positive is better."""
        return replace(self, value=0.0 - self.value, low=0.0 - self.high, high=0.0 - self.low)


Measured = Change | Unavailable


@dataclass(frozen=True)
class Axis:
    """What a figure of a group of runs is of: the rules of one group of the gate that share a unit."""

    group: str
    rules: tuple[GateRule, ...]

    @property
    def unit(self) -> str:
        metric = metric_named(self.rules[0].metric) if self.rules else None
        return metric.unit if metric else ""

    @property
    def title(self) -> str:
        """Return what is measured, such as `law` or `mean of law, news`."""
        names = [rule.of if rule.metric == TEXT_METRIC else f"{rule.of} {rule.metric}" for rule in self.rules]
        return ", ".join(names) if len(names) < 2 else f"mean of {', '.join(names)}"


def axis_of(plan: RunPlan, group: str) -> Axis:
    """Return the rules that make a plan's figure of a group: the required ones (else the advisory), in the unit of the first.

    Several rules on one metric of one text or task count once.
    """
    rules = [rule for rule in plan.gate.rules if rule.group == group]
    rules = [rule for rule in rules if rule.required] or rules
    unlike = {(rule.of, rule.metric): rule for rule in reversed(rules) if rule.metric == rules[0].metric}
    return Axis(group, tuple(unlike[key] for key in sorted(unlike)))


def identity_of(plan: RunPlan, baseline: Mapping[str, Any], axes: Sequence[Axis]) -> dict[str, Any] | Unavailable:
    """Return what two runs must share to be set against each other: the base's weights, the items of the axes, and how they are scored.

    Contaminated items are among them: which those are depends on the training data, and `exclude` takes care of it.
    """
    subject = _map(_map(baseline.get("subjects")).get(BASE))
    if not isinstance(subject.get("weights_sha256"), str):
        return Unavailable("the base has not been scored")
    items: dict[str, Any] = {}
    for rule in (rule for axis in axes for rule in axis.rules):
        text, task = _map(_map(subject.get("texts")).get(rule.of)), _map(_map(subject.get("tasks")).get(rule.of))
        documents = text.get("documents")
        if isinstance(documents, list):
            items[rule.of] = sha256_plain(sorted([str(_map(each).get("id")), _map(each).get("bytes")] for each in documents))
        elif task:
            ids = [str(_map(each).get("id")) for each in task.get("items") or ()]
            items[rule.of] = sha256_plain([task.get("file_sha256"), task.get("rule"), task.get("kind"), sorted(ids)])
        else:
            return Unavailable(f"the base has no score of {rule.of}")
    return {
        "base": subject["weights_sha256"],
        "items": items,
        "measured": [[axis.group, [[rule.of, rule.metric] for rule in axis.rules]] for axis in axes],
        "scoring": {name: to_plain(getattr(plan.eval, name)) for name in PROTOCOL},
    }


def excluded_items(records: Sequence[Mapping[str, Any]], rule: GateRule) -> set[str]:
    """Return the items of a rule that are contaminated in any of the records, so that a group of runs can leave out the same ones."""
    return set().union(*(contaminated(record, rule.of) for record in records)) if records else set()


def change_of(
    axis: Axis, gate: GatePlan, baseline: Mapping[str, Any], candidate: Mapping[str, Any] | None, *, exclude: Mapping[str, Collection[str]]
) -> Measured:
    """Return the change on an axis, or why it is unknown.

    Args:
        candidate: the run's `eval.json` with the subject `train`, None where there is none.
        exclude: by rule's `of`, items to leave out beside those that the records name.
    """
    if candidate is None:
        return NOT_SCORED
    if not axis.rules:
        return Unavailable(f"the plan has no rule on {axis.group}")
    judged = []
    left_out = {**_map(baseline.get("contaminated")), **{of: [{"id": item} for item in sorted(ids)] for of, ids in exclude.items()}}
    for rule in axis.rules:
        one = measure(rule, {**baseline, "contaminated": left_out}, candidate, gate)
        if one.evidence is None or one.pairs is None:
            return Unavailable(f"{rule.of}: {one.settled[1]}")
        judged.append((one, one.pairs, one.evidence))
    worsening = [pairs.sign * (pairs.figure(pairs.candidate_N) - pairs.figure(pairs.base_N)) for _, pairs, _ in judged]
    num_items = sum(pairs.num_items for _, pairs, _ in judged)
    if len(judged) == 1:
        one, _, evidence = judged[0]
        return Change(worsening[0], evidence.lower(one.level), evidence.upper(one.level), num_items)
    resampled = [
        pairs.resampled_worsening(
            num_resamples=gate.bootstrap_samples, seed=gate.seed ^ zlib.crc32(f"{one.rule.of} {one.rule.metric}".encode())
        )
        for one, pairs, _ in judged
    ]
    tail = (1 - gate.confidence) / 2
    low, high = np.quantile(np.mean(resampled, axis=0), [tail, 1 - tail])
    return Change(float(np.mean(worsening)), float(low), float(high), num_items)


def change_between(
    axis: Axis, gate: GatePlan, one: Mapping[str, Any], other: Mapping[str, Any] | None, *, exclude: Mapping[str, Collection[str]]
) -> Measured:
    """Return the change on an axis from the trained model of one `eval.json` to that of another, paired item by item."""
    as_base = {"subjects": {BASE: _map(one.get("subjects")).get(CANDIDATE)}}
    return change_of(axis, gate, as_base, other, exclude=exclude)


def base_figure(axis: Axis, baseline: Mapping[str, Any]) -> float | None:
    """Return the base's own figure on an axis of texts or means, which runs of a group share but for rounding; None where there is none."""
    subject = _map(_map(baseline.get("subjects")).get(BASE))
    found = []
    for rule in axis.rules:
        score = _map(_map(subject.get("texts")).get(rule.of)).get("bits_per_byte")
        if rule.metric != TEXT_METRIC:
            score = _map(_map(_map(subject.get("tasks")).get(rule.of)).get("metrics")).get(rule.metric)
        if isinstance(score, bool) or not isinstance(score, int | float):
            return None
        found.append(float(score))
    return sum(found) / len(found) if found else None


def _map(found: Any) -> Mapping[str, Any]:
    return found if isinstance(found, Mapping) else {}
