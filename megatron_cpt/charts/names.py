"""Where the names beside the points of a chart go, so that they cover neither a point nor each other as far as there is room."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LETTER, TALL = 6.6, 12.0  # of the page's `.value`, 12 px: what its wider letters take, and its height
POINT = 4.0  # half of what a point takes
LINES = (("top", -5.0), ("bottom", 15.0), ("top", -20.0), ("bottom", 30.0), ("top", -35.0), ("bottom", 45.0))

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels, y downwards."""


@dataclass(frozen=True)
class Place:
    """A name beside its point: above or below it, on its left or right, and its first letter's or last letter's foot in pixels."""

    line: str
    is_right: bool
    x: float
    y: float


def places_of(points: Sequence[tuple[float, float]], names: Sequence[str], area: Box) -> list[Place]:
    """Return a place for each name within an area; the first of those that were tried where none is free.

    Args:
        points: in pixels, one a name.
        area: what a name may not leave.
    """
    taken: list[Box] = [(x - POINT, y - POINT, x + POINT, y + POINT) for x, y in points]
    placed = []
    for (x, y), name in zip(points, names, strict=True):
        tried = list(_tried(x, y, LETTER * len(name), area))
        place, box = next(((place, box) for place, box in tried if _is_free(box, taken, area)), tried[0])
        taken.append(box)
        placed.append(place)
    return placed


def _tried(x: float, y: float, wide: float, area: Box) -> Sequence[tuple[Place, Box]]:
    first_right = x <= area[0] + 0.7 * (area[2] - area[0])
    return [
        (Place(line, is_right, x + (7 if is_right else -7), y + down), (left, y + down - TALL, left + wide, y + down + 2))
        for line, down in LINES
        for is_right in (first_right, not first_right)
        for left in [x + 7 if is_right else x - 7 - wide]
    ]


def _is_free(box: Box, taken: Sequence[Box], area: Box) -> bool:
    left, top, right, bottom = box
    if left < area[0] or top < area[1] or right > area[2] or bottom > area[3]:
        return False
    return not any(left < other[2] and right > other[0] and top < other[3] and bottom > other[1] for other in taken)
