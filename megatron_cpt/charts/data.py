"""What a chart shows, whatever draws it: series with intervals and labels, bars, spans of time. Pure data, in the unit of its axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

T = TypeVar("T")

Colour = Literal["a", "b", "c", "d", "e", "f", "g", "h", "i", "good", "bad"]
"""A colour of the page's style by its name there, so that light and dark have their own; `c` is the quiet one."""

COLOURS: tuple[Colour, ...] = ("a", "b", "d", "e", "f", "g", "h", "i", "c")
"""What series of no special meaning take in turn."""

Point = tuple[float, float]
Ends = tuple[float, float]
"""The low and the high end of an interval, as figures and not as distances."""


@dataclass(frozen=True)
class Series:
    """Named points.

    Attributes:
        intervals: the ends in y of each point, None for a point without; empty when none has.
        x_intervals: the same in x.
        labels: a text beside each point; empty when none has.
        mode: `points` draws no line between them, `line` no dots.
        dashed: of the line.
    """

    name: str
    points: Sequence[Point]
    colour: Colour = "a"
    intervals: Sequence[Ends | None] = ()
    x_intervals: Sequence[Ends | None] = ()
    labels: Sequence[str] = ()
    mode: Literal["line", "points", "both"] = "line"
    dashed: bool = False

    @property
    def drawn(self) -> Series:
        """The series without points that are no finite numbers."""
        kept = [number for number, point in enumerate(self.points) if all(map(math.isfinite, point))]

        return replace(
            self,
            points=_at(kept, self.points),
            intervals=_at(kept, self.intervals),
            x_intervals=_at(kept, self.x_intervals),
            labels=_at(kept, self.labels),
        )


def _at(places: Sequence[int], values: Sequence[T]) -> list[T]:
    return [values[place] for place in places] if values else []


@dataclass(frozen=True)
class Axis:
    """The name of an axis, and its unit where the name does not say it."""

    name: str
    unit: str = ""

    @property
    def title(self) -> str:
        return f"{self.name} ({self.unit})" if self.unit else self.name


@dataclass(frozen=True)
class Mark:
    """A place on an axis and its name; it is drawn across the chart."""

    at: float
    name: str
    colour: Colour = "c"


@dataclass(frozen=True)
class XYChart:
    """Lines, or points of a scatter. `marks` stand on the x axis and `levels` on the y axis."""

    title: str
    series: Sequence[Series]
    x: Axis
    y: Axis
    marks: Sequence[Mark] = ()
    levels: Sequence[Mark] = ()


@dataclass(frozen=True)
class BarSeries:
    """A value for each name of a bar chart, and the ends of its interval; None where there is none, `intervals` empty for none at all."""

    name: str
    values: Sequence[float | None]
    colour: Colour = "a"
    intervals: Sequence[Ends | None] = ()


@dataclass(frozen=True)
class BarChart:
    """Bars from 0 on over names.

    Attributes:
        across: horizontal bars, each under its name, so that long names need no room beside them.
        stacked: the series of a name follow one another in one bar; of horizontal bars only.
        pattern: writes a value.
    """

    title: str
    names: Sequence[str]
    series: Sequence[BarSeries]
    axis: Axis
    names_axis: Axis = Axis("")
    across: bool = True
    stacked: bool = False
    pattern: str = "{:.4g}"


@dataclass(frozen=True)
class Span:
    """A stretch of time in a row. `kind` is its entry in the legend; `words` are shown when it is pointed at."""

    row: str
    begin: float
    end: float
    kind: str
    colour: Colour
    words: str = ""


@dataclass(frozen=True)
class Timeline:
    """Spans in rows on one axis of time; rows stand in the order of their first span, from the top."""

    title: str
    spans: Sequence[Span]
    axis: Axis
    marks: Sequence[Mark] = ()

    @property
    def rows(self) -> list[str]:
        return list(dict.fromkeys(span.row for span in self.spans))


Chart = XYChart | BarChart | Timeline


def thinned(points: Sequence[Point], *, most: int = 1500) -> list[Point]:
    """Return at most about so many of the points, in order: of each stretch the first, the lowest, the highest and the last.

    A spike of one step stays, which taking every n-th point would lose.
    """
    if len(points) <= most:
        return list(points)
    size = math.ceil(len(points) / (most // 4))
    kept: list[Point] = []
    for begin in range(0, len(points), size):
        stretch = range(begin, min(begin + size, len(points)))
        finite = [number for number in stretch if math.isfinite(points[number][1])] or [begin]
        ends = {stretch[0], stretch[-1], min(finite, key=lambda n: points[n][1]), max(finite, key=lambda n: points[n][1])}
        kept += [points[number] for number in sorted(ends)]
    return kept
