"""A chart on a page: its still picture, and beside it what Plotly needs to put a live one in its place."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from megatron_cpt.charts.data import BarChart, Chart, Timeline, XYChart
from megatron_cpt.charts.interactive import as_json, description
from megatron_cpt.charts.svg import timeline_picture, xy_picture
from megatron_cpt.charts.svg_bars import bar_picture


def still(chart: Chart, *, has_keys: bool = True) -> str:
    """Return a `<figure>` with the still picture alone, for a page without scripts; without `has_keys` it has no legend."""
    picture = _picture(chart)
    if not picture:
        return f"<figure><figcaption>{escape(chart.title)}: no data</figcaption></figure>"
    return f"<figure>{_caption(chart, has_keys=has_keys)}{picture}</figure>"


def figure(chart: Chart, *, note: str = "", is_wide: bool = False) -> str:
    """Return a `<figure>` that a page with `is_interactive` brings to life; without JavaScript and in print the still picture is seen.

    `note` stands below it; with `is_wide` it takes the whole width among `charts`.
    """
    picture = _picture(chart)
    if not picture:
        return still(chart)
    below = f'<p class="soft">{escape(note)}</p>' if note else ""
    return (
        f'<figure class="chart{" wide" if is_wide else ""}">{_caption(chart)}<div class="still">{picture}</div><div class="plot"></div>'
        f'<script type="application/json">{as_json(description(chart))}</script>{below}</figure>'
    )


def charts(figures: Sequence[str]) -> str:
    """Return figures side by side where the page is wide enough."""
    return f'<div class="charts">{"".join(figures)}</div>' if figures else ""


def _picture(chart: Chart) -> str:
    if isinstance(chart, XYChart):
        return xy_picture(chart)
    return timeline_picture(chart) if isinstance(chart, Timeline) else bar_picture(chart)


def _caption(chart: Chart, *, has_keys: bool = True) -> str:
    unit = f' <span class="soft unit">{escape(chart.axis.title)}</span>' if isinstance(chart, BarChart) and chart.across else ""
    keys = _keys(chart)
    legend = (
        "".join(f'<span class="key {colour}">{escape(name)}</span>' for name, colour in keys.items()) if has_keys and len(keys) > 1 else ""
    )
    return f'<figcaption>{escape(chart.title)}{unit}<span class="keys">{legend}</span></figcaption>'


def _keys(chart: Chart) -> dict[str, str]:
    if isinstance(chart, Timeline):
        return {span.kind: span.colour for span in chart.spans}
    return {each.name: each.colour for each in chart.series}
