"""The metrics that a rule can be on: their unit and which way is better. Pure; the gate and the checks of a plan read it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

TEXT_METRIC = "bits_per_byte"
_PASS_AT = re.compile(r"pass@[1-9][0-9]*")
Statistic = Literal["ratio", "mean", "distance", "spread"]


@dataclass(frozen=True)
class Metric:
    """How the scores of items become one figure, its unit in words, and whether a lower one is better.

    `ratio`: sum over items by the sum of their bytes. `mean`: over items. `distance`: of the mean from 0.5. `spread`: the largest
    mean of a subgroup minus the smallest.
    """

    name: str
    unit: str
    lower_is_better: bool
    statistic: Statistic = "mean"


METRICS = {
    metric.name: metric
    for metric in (
        Metric(TEXT_METRIC, "bits per byte", lower_is_better=True, statistic="ratio"),
        Metric("accuracy", "share right", lower_is_better=False),
        Metric("accuracy_per_byte", "share right", lower_is_better=False),
        Metric("acc", "share right", lower_is_better=False),  # the lm-evaluation-harness's words
        Metric("acc_norm", "share right", lower_is_better=False),
        Metric("exact_match", "share exact", lower_is_better=False),
        Metric("f1", "F1", lower_is_better=False),
        Metric("regex", "share matched", lower_is_better=False),
        Metric("stereotype", "distance of the share from 0.5", lower_is_better=True, statistic="distance"),
        Metric("gap", "gap between subgroups", lower_is_better=True, statistic="spread"),
    )
}


def metric_named(name: str) -> Metric | None:
    """Return what is known of a metric, or None for a word that names none; `pass@k` is one for every k from 1."""
    if _PASS_AT.fullmatch(name):
        return Metric(name, "share solved", lower_is_better=False)
    return METRICS.get(name)
