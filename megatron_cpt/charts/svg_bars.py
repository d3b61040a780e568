"""Still pictures of bars and columns as self-contained SVG."""

from __future__ import annotations

from html import escape

from megatron_cpt.charts.data import BarChart
from megatron_cpt.charts.svg import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, label, opening, ticks, x_axis

BAR, GAP, LABEL = 14, 22, 14  # a bar, the space to the next name, the line of the name above
VALUE = 76  # the room of a value behind the longest bar


def bar_picture(chart: BarChart) -> str:
    """Return the picture of bars; empty when there is no value."""
    if not any(value is not None for each in chart.series for value in each.values):
        return ""
    return _across(chart) if chart.across else _upright(chart)


def _across(chart: BarChart) -> str:
    slots = [[(each, each.values[place]) for each in chart.series if each.values[place] is not None] for place in range(len(chart.names))]
    values = [
        sum(value or 0.0 for _, value in slot) if chart.stacked else max((value or 0.0 for _, value in slot), default=0.0) for slot in slots
    ]
    ends = [end for each in chart.series for interval in each.intervals if interval for end in interval]
    per_unit = (WIDTH - RIGHT - VALUE) / (max([*values, *ends]) or 1.0)
    parts: list[str] = []
    top = LABEL
    for place, (name, slot, total) in enumerate(zip(chart.names, slots, values, strict=True)):
        parts.append(f'<text class="tick" x="0" y="{top - 3}">{escape(name)}</text>')
        begin = 0.0
        for each, value in slot:
            width = max((value or 0.0) * per_unit, 1)
            words = f"{each.name}: {chart.pattern.format(value)}"
            at = f'x="{begin:.1f}" y="{top}" width="{width:.1f}" height="{BAR}"'
            parts.append(f'<rect class="bar {each.colour}" {at}><title>{escape(words)}</title></rect>')
            if chart.stacked:
                begin += width
                continue
            interval = each.intervals[place] if each.intervals else None
            if interval:
                low, high = (end * per_unit for end in interval)
                middle = top + BAR / 2
                parts.append(f'<line class="whisker over" x1="{low:.1f}" x2="{high:.1f}" y1="{middle:g}" y2="{middle:g}"/>')
                width = max(width, high)
            parts.append(_value(chart, width, top, value or 0.0))
            top += BAR + 2
        if not slot:
            parts.append(f'<text class="value" x="6" y="{top + BAR - 3}">unknown</text>')
        if chart.stacked and slot:
            parts.append(_value(chart, begin, top, total))
        top += (BAR if chart.stacked or not slot else -2) + GAP
    return "".join([opening(chart.title, top - GAP + 6), *parts, "</svg>"])


def _value(chart: BarChart, x: float, top: float, value: float) -> str:
    return f'<text class="value" x="{x + 6:.1f}" y="{top + BAR - 3}">{escape(chart.pattern.format(value))}</text>'


def _upright(chart: BarChart) -> str:
    y_ticks = ticks([0.0, max(value for each in chart.series for value in each.values if value is not None)])
    slot = (WIDTH - LEFT - RIGHT) / len(chart.names)
    width = 0.8 * slot / len(chart.series)
    tall = HEIGHT - TOP - BOTTOM
    parts = [opening(chart.title, HEIGHT)]
    for tick in y_ticks:
        y = HEIGHT - BOTTOM - tick / y_ticks[-1] * tall
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label(tick)}</text>')
    for place, name in enumerate(chart.names):
        x = LEFT + (place + 0.5) * slot
        parts.append(f'<text class="tick" x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{escape(name)}</text>')
    parts += x_axis([0.0, 1.0], lambda at: LEFT + at * (WIDTH - LEFT - RIGHT), bottom=HEIGHT - BOTTOM, title=chart.names_axis.title)[2:]
    for number, each in enumerate(chart.series):
        for place, value in enumerate(each.values):
            if value is None:
                continue
            begin, high = LEFT + (place + 0.1) * slot + number * width, value / y_ticks[-1] * tall
            at = f'x="{begin:.1f}" y="{HEIGHT - BOTTOM - high:.1f}" width="{width:.1f}" height="{high:.1f}"'
            words = f"{each.name}: {chart.pattern.format(value)}"
            parts.append(f'<rect class="bar {each.colour}" {at}><title>{escape(words)}</title></rect>')
    middle = -(TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text class="tick" transform="rotate(-90)" x="{middle}" y="12" text-anchor="middle">{escape(chart.axis.title)}</text></svg>'
    )
    return "".join(parts)
