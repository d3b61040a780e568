"""Line charts as self-contained SVG, readable without a script. Sizes in CSS pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 460, 220
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 16, 40


@dataclass(frozen=True)
class Series:
    """A named line; `css_class` chooses its colour."""

    name: str
    points: Sequence[tuple[float, float]]
    css_class: str


def line_chart(title: str, series: Sequence[Series], *, x_label: str, y_label: str, mark: tuple[float, str] | None = None) -> str:
    """Return one `<figure>` with a chart of the finite points of every series; `mark` is a place on the x axis and its name."""
    drawn = [(each, [point for point in each.points if all(map(math.isfinite, point))]) for each in series]
    points = [point for _, kept in drawn for point in kept]
    if not points:
        return f"<figure><figcaption>{escape(title)}: no data</figcaption></figure>"
    x_ticks, y_ticks = ticks([x for x, _ in points]), ticks([y for _, y in points])

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for tick in y_ticks:
        _, y = at(x_ticks[0], tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label(tick)}</text>')
    for tick in x_ticks:
        x, _ = at(tick, y_ticks[0])
        anchor = "end" if tick == x_ticks[-1] else "middle"  # the last one would be cut at the edge
        parts.append(f'<text class="tick" x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="{anchor}">{label(tick)}</text>')
    parts.append(f'<text class="tick" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>')
    middle = -(TOP + HEIGHT - BOTTOM) / 2
    parts.append(f'<text class="tick" transform="rotate(-90)" x="{middle}" y="12" text-anchor="middle">{escape(y_label)}</text>')
    for each, kept in drawn:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in kept))
        parts.append(f'<polyline class="line {each.css_class}" points="{path}"><title>{escape(each.name)}</title></polyline>')
    if mark is not None and x_ticks[0] <= mark[0] <= x_ticks[-1]:
        x, _ = at(mark[0], y_ticks[0])
        end, aside = ("end", -6) if x > WIDTH / 2 else ("start", 6)
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text class="value" x="{x + aside:.1f}" y="{TOP + 10}" text-anchor="{end}">{escape(mark[1])}</text>')
    parts.append("</svg>")
    legend = "".join(f'<span class="key {each.css_class}">{escape(each.name)}</span>' for each in series) if len(series) > 1 else ""
    return f"<figure><figcaption>{escape(title)} {legend}</figcaption>{''.join(parts)}</figure>"


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
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value / 1e3:g}k"
