"""Still pictures as self-contained SVG, for readers without a script and for print. Sizes in CSS pixels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from megatron_cpt.charts.data import Mark, Series, Timeline, XYChart
from megatron_cpt.charts.names import LETTER, Place, places_of

WIDTH, HEIGHT = 460, 240
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 16, 40
ROW, ROW_NAME, SPAN = 36, 14, 14  # a row of a timeline, the line of its name in it, a bar


@dataclass(frozen=True)
class Frame:
    """Round ticks on both axes, and where a point lies between them."""

    x_ticks: Sequence[float]
    y_ticks: Sequence[float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x_ticks[0]) / (self.x_ticks[-1] - self.x_ticks[0])
        up = (y - self.y_ticks[0]) / (self.y_ticks[-1] - self.y_ticks[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)


def xy_picture(chart: XYChart) -> str:
    """Return the picture of lines or a scatter; empty when no series has a finite point."""
    drawn = [each.drawn for each in chart.series]
    points = [point for each in drawn for point in each.points]
    if not points:
        return ""
    frame = _frame_of(drawn, chart)
    parts = [opening(chart.title, HEIGHT), *_axes(frame, chart)]
    for each, names in zip(drawn, _name_places(drawn, frame), strict=True):
        places = [frame.at(*point) for point in each.points]
        parts.append(f'<g class="{each.colour}"><title>{escape(each.name)}</title>')
        parts += [
            _whisker(frame.at(x, ends[0]), frame.at(x, ends[1]))
            for (x, _), ends in zip(each.points, each.intervals, strict=False)  # empty when no point has one
            if ends
        ]
        parts += [
            _whisker(frame.at(ends[0], y), frame.at(ends[1], y))
            for (_, y), ends in zip(each.points, each.x_intervals, strict=False)
            if ends
        ]
        if each.mode != "points":
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            parts.append(f'<polyline class="line{" dashed" if each.dashed else ""}" points="{path}"/>')
        if each.mode != "line" or len(places) == 1:  # one point makes no line
            parts += [f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y in places]
        parts.append("</g>")
        for name, text in zip(names, each.labels, strict=False):
            anchor = "start" if name.is_right else "end"
            parts.append(f'<text class="value" x="{name.x:.1f}" y="{name.y:.1f}" text-anchor="{anchor}">{escape(text)}</text>')
    shown = [mark for mark in chart.marks if frame.x_ticks[0] <= mark.at <= frame.x_ticks[-1]]
    parts += [_mark(mark, frame.at(mark.at, frame.y_ticks[0])[0], number) for number, mark in enumerate(shown)]
    for number, level in enumerate(chart.levels):
        anchor, place = (("end", WIDTH - RIGHT), ("start", LEFT + 4))[number % 2]  # names that lie close do not cover each other
        if math.isfinite(level.at):
            _, y = frame.at(frame.x_ticks[0], level.at)
            parts.append(f'<line class="mark {level.colour}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text class="value" x="{place}" y="{y - 4:.1f}" text-anchor="{anchor}">{escape(level.name)}</text>')
    return "".join([*parts, "</svg>"])


def name_places(chart: XYChart) -> list[list[Place]]:
    """Return where the names beside the points of each series go; empty for a series without names, which a picture draws in this order."""
    drawn = [each.drawn for each in chart.series if each.drawn.points]
    return _name_places(drawn, _frame_of(drawn, chart)) if drawn else []


def _name_places(drawn: Sequence[Series], frame: Frame) -> list[list[Place]]:
    named = [(frame.at(*point), text) for each in drawn if each.labels for point, text in zip(each.points, each.labels, strict=True)]
    area = (LEFT, 0, WIDTH, HEIGHT - BOTTOM)
    places = iter(places_of([point for point, _ in named], [text for _, text in named], area))
    return [[next(places) for _ in each.labels] for each in drawn]


def _frame_of(drawn: Sequence[Series], chart: XYChart) -> Frame:
    ends_y = [end for each in drawn for ends in each.intervals if ends for end in ends if math.isfinite(end)]
    ends_x = [end for each in drawn for ends in each.x_intervals if ends for end in ends if math.isfinite(end)]
    levels = [level.at for level in chart.levels if math.isfinite(level.at)]
    points = [point for each in drawn for point in each.points]
    return Frame(ticks([*(x for x, _ in points), *ends_x]), ticks([*(y for _, y in points), *ends_y, *levels]))


def opening(title: str, height: float) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(title)}">'


def _axes(frame: Frame, chart: XYChart) -> list[str]:
    parts = []
    for tick in frame.y_ticks:
        _, y = frame.at(frame.x_ticks[0], tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label(tick)}</text>')
    parts += x_axis(frame.x_ticks, lambda tick: frame.at(tick, frame.y_ticks[0])[0], bottom=HEIGHT - BOTTOM, title=chart.x.title)
    wide = LETTER * len(chart.y.title)
    middle = min(max((TOP + HEIGHT - BOTTOM) / 2, wide / 2), HEIGHT / 2)  # beside the axis; a long one beside the whole picture
    fits = "" if wide <= HEIGHT else f' textLength="{HEIGHT - 4}" lengthAdjust="spacingAndGlyphs"'
    parts.append(
        f'<text class="tick" transform="rotate(-90)" x="{-middle:g}" y="12" text-anchor="middle"{fits}>{escape(chart.y.title)}</text>'
    )
    return parts


def x_axis(x_ticks: Sequence[float], place: Callable[[float], float], *, bottom: float, title: str) -> list[str]:
    """Return the labels and the title below a picture."""
    parts = []
    for tick in x_ticks:
        anchor = "end" if tick == x_ticks[-1] else "middle"  # the last one would be cut at the edge
        parts.append(f'<text class="tick" x="{place(tick):.1f}" y="{bottom + 16:g}" text-anchor="{anchor}">{label(tick)}</text>')
    middle = (place(x_ticks[0]) + place(x_ticks[-1])) / 2
    return [*parts, f'<text class="tick" x="{middle:.1f}" y="{bottom + 36:g}" text-anchor="middle">{escape(title)}</text>']


def _whisker(one: tuple[float, float], other: tuple[float, float]) -> str:
    return f'<line class="whisker" x1="{one[0]:.1f}" y1="{one[1]:.1f}" x2="{other[0]:.1f}" y2="{other[1]:.1f}"/>'


def _mark(mark: Mark, x: float, number: int, *, bottom: float = HEIGHT - BOTTOM) -> str:
    """Return a mark across the picture; `number` moves the names of neighbours apart."""
    end, aside = ("end", -6) if x > WIDTH / 2 else ("start", 6)
    return (
        f'<line class="mark {mark.colour}" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom:g}"/>'
        f'<text class="value" x="{x + aside:.1f}" y="{TOP - 4 + 13 * (number % 3)}" text-anchor="{end}">{escape(mark.name)}</text>'
    )


def timeline_picture(chart: Timeline) -> str:
    """Return the picture of spans in rows; empty when there is none."""
    if not chart.spans:
        return ""
    x_ticks = ticks([end for span in chart.spans for end in (span.begin, span.end)])
    bottom = TOP + ROW * len(chart.rows)

    def place(x: float) -> float:
        return 8 + (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * (WIDTH - RIGHT - 8)

    parts = [opening(chart.title, bottom + BOTTOM)]
    parts += [f'<line class="grid" x1="{place(tick):.1f}" x2="{place(tick):.1f}" y1="{TOP}" y2="{bottom}"/>' for tick in x_ticks]
    parts += x_axis(x_ticks, place, bottom=bottom, title=chart.axis.title)
    for number, row in enumerate(chart.rows):
        parts.append(f'<text class="value" x="8" y="{TOP + number * ROW + ROW_NAME - 2}">{escape(row)}</text>')
    for span in chart.spans:
        top = TOP + chart.rows.index(span.row) * ROW + ROW_NAME + 2
        width = max(place(span.end) - place(span.begin), 1.5)
        parts.append(
            f'<rect class="bar {span.colour}" x="{place(span.begin):.1f}" y="{top}" width="{width:.1f}" height="{SPAN}">'
            f"<title>{escape(span.words or span.kind)}</title></rect>"
        )
    shown = [mark for mark in chart.marks if x_ticks[0] <= mark.at <= x_ticks[-1]]
    parts += [_mark(mark, place(mark.at), number, bottom=bottom) for number, mark in enumerate(shown)]
    return "".join([*parts, "</svg>"])


def ticks(values: Sequence[float], *, wanted: int = 5) -> list[float]:
    """Return round numbers that enclose the values; at least two."""
    low, high = min(values), max(values)
    if low == high:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    raw = (high - low) / wanted
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [number * step for number in range(first, last + 1)]


def label(value: float) -> str:
    """Return a tick's figure in few characters: 0.0006, 32k, 1.5M, 2G."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= (1e4 if unit == "k" else size):
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"
