"""Bar and column charts as self-contained SVG. Sizes in CSS pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from megatron_cpt.charts.line import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Series, ticks
from megatron_cpt.charts.line import label as tick_label

BAR, GAP, LABEL = 14, 22, 14  # a bar, the space to the next one, the line of its name above it


@dataclass(frozen=True)
class Bar:
    """A named value from 0 on; `css_class` chooses its colour."""

    name: str
    value: float
    css_class: str = "b"


def bar_chart(title: str, bars: Sequence[Bar], *, unit: str, pattern: str = "{:.3f}") -> str:
    """Return one `<figure>` with horizontal bars, each under its name, so that long names need no room beside it."""
    if not bars:
        return f"<figure><figcaption>{escape(title)}: no data</figcaption></figure>"
    longest = max(bar.value for bar in bars) or 1.0
    room = WIDTH - RIGHT - 60  # the value stands behind the longest bar
    step = BAR + GAP
    height = len(bars) * step + LABEL + 4
    parts = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">']
    for number, bar in enumerate(bars):
        top = LABEL + number * step
        width = max(bar.value / longest * room, 1)
        parts.append(f'<text class="tick" x="0" y="{top - 3}">{escape(bar.name)}</text>')
        parts.append(f'<rect class="bar {bar.css_class}" x="0" y="{top}" width="{width:.1f}" height="{BAR}"/>')
        parts.append(f'<text class="value" x="{width + 6:.1f}" y="{top + BAR - 3}">{escape(pattern.format(bar.value))}</text>')
    parts.append("</svg>")
    return f'<figure><figcaption>{escape(title)} <span class="soft">{escape(unit)}</span></figcaption>{"".join(parts)}</figure>'


def column_chart(title: str, names: Sequence[str], series: Sequence[Series], *, x_label: str, y_label: str) -> str:
    """Return one `<figure>` with columns of every series side by side over each name; a point's x is the place of its name."""
    values = [y for each in series for _, y in each.points]
    if not values:
        return f"<figure><figcaption>{escape(title)}: no data</figcaption></figure>"
    y_ticks = ticks([0.0, max(values)])
    slot = (WIDTH - LEFT - RIGHT) / len(names)
    width = 0.8 * slot / len(series)
    tall = HEIGHT - TOP - BOTTOM
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for tick in y_ticks:
        y = HEIGHT - BOTTOM - tick / y_ticks[-1] * tall
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick_label(tick)}</text>')
    for place, name in enumerate(names):
        x = LEFT + (place + 0.5) * slot
        parts.append(f'<text class="tick" x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{escape(name)}</text>')
    for number, each in enumerate(series):
        for at_x, value in each.points:
            begin, high = LEFT + (at_x + 0.1) * slot + number * width, value / y_ticks[-1] * tall
            at = f'x="{begin:.1f}" y="{HEIGHT - BOTTOM - high:.1f}" width="{width:.1f}" height="{high:.1f}"'
            parts.append(f'<rect class="bar {each.css_class}" {at}><title>{escape(each.name)}: {tick_label(value)}</title></rect>')
    parts.append(f'<text class="tick" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>')
    middle = -(TOP + HEIGHT - BOTTOM) / 2
    parts.append(f'<text class="tick" transform="rotate(-90)" x="{middle}" y="12" text-anchor="middle">{escape(y_label)}</text></svg>')
    legend = "".join(f'<span class="key {each.css_class}">{escape(each.name)}</span>' for each in series) if len(series) > 1 else ""
    return f"<figure><figcaption>{escape(title)} {legend}</figcaption>{''.join(parts)}</figure>"
