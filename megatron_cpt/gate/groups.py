"""How unequal a score is between subgroups: a metric like any other, computed from items so that it can be drawn anew. Pure."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

GAP = "gap"


def group_gap(scores: Sequence[float], subgroups: Sequence[str | None]) -> float | None:
    """Return the largest minus the smallest mean score of a subgroup, or None with fewer than two; items without a subgroup do not count.

    A score that is not a number makes the gap one that is not.
    """
    by_group: dict[str, list[float]] = defaultdict(list)
    for score, subgroup in zip(scores, subgroups, strict=True):
        if subgroup is not None:
            by_group[subgroup].append(score)
    if len(by_group) < 2:
        return None
    means = [math.fsum(found) / len(found) if all(map(math.isfinite, found)) else math.nan for found in by_group.values()]
    return math.nan if any(map(math.isnan, means)) else max(means) - min(means)
