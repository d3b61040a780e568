"""The Pareto front of points that want a high gain and low forgetting. Pure."""

from __future__ import annotations

from collections.abc import Mapping

RULE = (
    "A run dominates another when it gains at least as much and forgets at most as much, one of the two strictly. The front holds the runs "
    "that none dominates; point values decide it. A run is surely behind one on the front when, item by item, the interval of that one's "
    "lead lies above 0 in one figure and not below 0 in the other; no correction is made for looking at many runs."
)


def dominates(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Say whether `one` (gain, forgetting) dominates the other; equal points do not dominate each other."""
    return one[0] >= other[0] and one[1] <= other[1] and one != other


def dominators(points: Mapping[str, tuple[float, float]]) -> dict[str, tuple[str, ...]]:
    """Return for each point by name those that dominate it; the front are the ones with none."""
    return {name: tuple(other for other, there in points.items() if dominates(there, here)) for name, here in points.items()}
