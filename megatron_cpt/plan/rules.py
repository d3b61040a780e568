"""What makes the rules of the gate impossible or toothless, said before anything is trained. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from megatron_cpt.config.schema import GateConfig, GateRuleConfig
from megatron_cpt.errors import printable
from megatron_cpt.plan.metrics import METRICS, TEXT_METRIC, metric_named

RULE_KINDS = ("must_improve", "may_not_worsen")
RULE_GROUPS = ("domain", "general", "bias", "safety")
RESAMPLES_BEYOND = 10  # a quantile with fewer draws beyond it moves from seed to seed by a third of its distance and more
Task = tuple[str, Sequence[str]]  # its group, and its metrics


def rule_problems(gate: GateConfig, *, texts: Collection[str], tasks: Mapping[str, Task | None]) -> list[str]:
    """Say which rules can never be judged, and why.

    Args:
        texts: the held-out texts that are scored.
        tasks: group and metrics by task; None for one whose file cannot be read, which is said elsewhere.
    """
    problems = []
    if not 0 < gate.confidence < 1:
        problems.append(f"gate.confidence={gate.confidence} is not between 0 and 1.")
    if not gate.rules:
        problems.append("gate.rules is empty: no checkpoint could ever be promoted. Give at least one rule.")
    elif not any(rule.required for rule in gate.rules):
        problems.append("gate.rules has advisory rules only: nothing would decide. Give at least one with required: true.")
    for number, rule in enumerate(gate.rules):
        problems += [f"gate.rules[{number}].{problem}" for problem in _problems_of(rule, texts=texts, tasks=tasks)]
    same = [(rule.on, rule.metric, rule.kind) for rule in gate.rules]
    problems += [
        f"gate.rules names {printable(on)} {metric} {kind} twice: keep one."
        for on, metric, kind in sorted({key for key in same if same.count(key) > 1})
    ]
    return problems or resample_problems(gate)


def _problems_of(rule: GateRuleConfig, *, texts: Collection[str], tasks: Mapping[str, Task | None]) -> list[str]:
    problems = []
    task = tasks.get(rule.on)
    for key, value, allowed in (("kind", rule.kind, RULE_KINDS), ("group", rule.group, RULE_GROUPS)):
        if value not in allowed and not (key == "group" and value is None):
            problems.append(f"{key}={value!r} is not one of {', '.join(allowed)}.")
    if rule.on not in texts and rule.on not in tasks:
        problems.append(
            f"on={rule.on!r} is not one of eval.texts ({', '.join(texts) or 'none'}) or eval.tasks ({', '.join(tasks) or 'none'})."
        )
    elif metric_named(rule.metric) is None:
        problems.append(f"metric={printable(rule.metric)!r} is not a metric. Known: {', '.join(METRICS)}, pass@k.")
    elif rule.on in texts and rule.metric != TEXT_METRIC:
        problems.append(f"metric={rule.metric}: {rule.on} is a held-out text, which gives {TEXT_METRIC} only.")
    elif task is not None and rule.metric not in task[1]:
        problems.append(f"metric={rule.metric} is not measured by {rule.on}, which gives {', '.join(task[1])}.")
    if not (math.isfinite(rule.margin) and rule.margin >= 0):
        problems.append(f"margin={rule.margin} is not a margin. Use 0 or more, in the metric's unit.")
    elif rule.metric != TEXT_METRIC and rule.margin >= 1:
        problems.append(f"margin={rule.margin} can never be reached: {rule.metric} lies between 0 and 1. Write 2 points as 0.02.")
    if rule.confidence is not None and not 0 < rule.confidence < 1:
        problems.append(f"confidence={rule.confidence} is not between 0 and 1.")
    return problems


def resample_problems(gate: GateConfig) -> list[str]:
    """Check that the bootstrap draws enough resamples to place the outermost quantile that the correction can ask for."""
    num_required = sum(rule.required for rule in gate.rules)
    highest = max([rule.confidence or gate.confidence for rule in gate.rules], default=gate.confidence)
    tail = (1 - highest) / 2 / max(1, num_required, len(gate.rules) - num_required)
    least = math.ceil(RESAMPLES_BEYOND / tail - 1e-9)
    if gate.bootstrap_samples >= least:
        return []
    return [
        f"gate.bootstrap_samples={gate.bootstrap_samples} is too few for {len(gate.rules)} rules at {highest:g} confidence: fewer than"
        f" {RESAMPLES_BEYOND} resamples lie beyond an end of an interval after the correction for several rules. Use {least} or more."
    ]


def rule_warnings(groups: Collection[str]) -> list[str]:
    """Return what the required rules leave unguarded, by the groups that they are of."""
    warnings = []
    if "domain" not in groups:
        warnings.append("no required rule is on the domain: a run that learned nothing of it can be promoted")
    if "general" not in groups:
        warnings.append("no required rule is on general ability: forgetting can be promoted")
    return warnings
