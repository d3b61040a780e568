"""The same charts as descriptions for Plotly. Colours stay names of the page's style, which the page's own script looks up.

Plotly reads tags in texts, so that every text of others is escaped for it; numbers go over as they are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape
from typing import Any

from megatron_cpt.charts.data import BarChart, Chart, Ends, Mark, Series, Timeline, XYChart
from megatron_cpt.charts.names import Place
from megatron_cpt.charts.svg import name_places

NAME_WIDTH, LEGEND_WIDTH, ROW_WIDTH = 50, 40, 24  # characters of a name above a bar, in a legend, beside a row: a phone's room
NAME_HEIGHT, BAR_HEIGHT = 20, 26  # pixels of a bar's name, and of the bar
ENDS_OF_LEVELS = ({"x": 1, "xanchor": "right"}, {"x": 0, "xanchor": "left"})  # names of levels that lie close do not cover each other
TEXT = {"family": "system-ui, sans-serif", "size": 13, "color": "var(--fg)"}


def description(chart: Chart) -> dict[str, Any]:
    """Return Plotly's `data` and `layout` of a chart; `data` is empty when there is nothing to draw."""
    if isinstance(chart, XYChart):
        return _xy(chart)
    return _timeline(chart) if isinstance(chart, Timeline) else _bars(chart)


def as_json(value: object) -> str:
    """Return JSON that is safe inside a `<script>` element: no tag can begin or end in it, and no line end of JavaScript's own."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _plain(text: str) -> str:
    return escape(text, quote=False)


def _name(text: str, width: int = LEGEND_WIDTH) -> str:
    """Return a name, cut to what there is room for."""
    return _plain(text if len(text) <= width else f"{text[: width - 1]}…")


def _note(text: str, **place: Any) -> dict[str, Any]:
    return {"text": text, "showarrow": False, "font": {"size": 12, "color": "var(--soft)"}, **place}


def _colour(name: str) -> str:
    return f"var(--{name})"


def _axis(title: str, **more: Any) -> dict[str, Any]:
    return {
        "title": {"text": _plain(title), "standoff": 8, "font": {"size": 12, "color": "var(--soft)"}},
        "gridcolor": "var(--rule)",
        "linecolor": "var(--rule)",
        "zeroline": False,
        "automargin": True,
        **more,
    }


def _layout(height: int, **more: Any) -> dict[str, Any]:
    return {
        "height": height,
        "margin": {"l": 56, "r": 16, "t": 36, "b": 44},
        "paper_bgcolor": "var(--bg)",
        "plot_bgcolor": "var(--bg)",
        "font": TEXT,
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "traceorder": "normal"},
        "hoverlabel": {"bgcolor": "var(--bg)", "bordercolor": "var(--rule)", "font": TEXT},
        "modebar": {"bgcolor": "var(--bg)", "color": "var(--soft)", "activecolor": "var(--fg)"},
        "uirevision": "kept",  # a new colour scheme leaves the zoom alone
        **more,
    }


def _xy(chart: XYChart) -> dict[str, Any]:
    drawn = [each for each in (series.drawn for series in chart.series) if each.points]
    is_scatter = all(each.mode == "points" or each.x_intervals for each in drawn)
    data = [_trace(each, chart, names, is_scatter=is_scatter) for each, names in zip(drawn, name_places(chart), strict=True)]
    shapes, notes = _marks(chart.marks, axis="x")
    more_shapes, more_notes = _marks(chart.levels, axis="y")
    layout = _layout(
        340,
        xaxis=_axis(chart.x.title),
        yaxis=_axis(chart.y.title, exponentformat=_exponents(drawn)),
        hovermode="closest" if is_scatter else "x unified",
        showlegend=len(drawn) > 1,
        shapes=[*shapes, *more_shapes],
        annotations=[*notes, *more_notes],
    )
    return {"data": data, "layout": layout}


def _exponents(drawn: Sequence[Series]) -> str:
    """Return how Plotly writes an axis of these: 6e-4 for a learning rate, and not 600µ; 140k for tokens."""
    largest = max((abs(y) for each in drawn for _, y in each.points), default=0.0)
    return "e" if largest < 0.1 else "SI"


def _trace(series: Series, chart: XYChart, names: Sequence[Place], *, is_scatter: bool) -> dict[str, Any]:
    xs, ys = [x for x, _ in series.points], [y for _, y in series.points]
    mode = {"line": "lines", "points": "markers", "both": "lines+markers"}[series.mode if len(xs) > 1 else "points"]
    value = "%{y:.5~g}"
    trace: dict[str, Any] = {
        "type": "scatter",
        "name": _name(series.name),
        "x": xs,
        "y": ys,
        "mode": f"{mode}+text" if series.labels else mode,
        "line": {"color": _colour(series.colour), "width": 2, "dash": "dash" if series.dashed else "solid"},
        "marker": {"color": _colour(series.colour), "size": 8},
    }
    if series.intervals:
        trace["error_y"] = _errors(ys, series.intervals, series.colour)
        trace["customdata"] = [list(ends) if ends else [y, y] for y, ends in zip(ys, series.intervals, strict=True)]
        value += " (%{customdata[0]:.5~g} to %{customdata[1]:.5~g})"
    if series.x_intervals:
        trace["error_x"] = _errors(xs, series.x_intervals, series.colour)
    if series.labels:
        sides = [f"{place.line} {'right' if place.is_right else 'left'}" for place in names]
        trace |= {"text": [_plain(text) for text in series.labels], "textposition": sides, "cliponaxis": False}
    if is_scatter:
        head = "<b>%{text}</b><br>" if series.labels else ""
        trace["hovertemplate"] = (
            f"{head}{_template(chart.x.title)} %{{x:.5~g}}<br>{_template(chart.y.title)} {value}<extra>%{{fullData.name}}</extra>"
        )
    else:
        trace["hovertemplate"] = f"{value}<extra>%{{fullData.name}}</extra>"
    return trace


def _template(text: str) -> str:
    """Return a text for a hover template, in which `%{` has a meaning."""
    return _plain(text).replace("%{", "% {")


def _errors(values: Sequence[float], intervals: Sequence[Ends | None], colour: str) -> dict[str, Any]:
    pairs = list(zip(values, intervals, strict=True))
    return {
        "type": "data",
        "symmetric": False,
        "array": [_distance(value, ends[1]) if ends else 0.0 for value, ends in pairs],
        "arrayminus": [_distance(ends[0], value) if ends else 0.0 for value, ends in pairs],
        "color": _colour(colour),
        "thickness": 1.2,
        "width": 3,
    }


def _distance(low: float, high: float) -> float:
    return max(high - low, 0.0) if math.isfinite(high - low) else 0.0


def _marks(marks: Sequence[Mark], *, axis: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    shapes, notes = [], []
    for number, mark in enumerate(each for each in marks if math.isfinite(each.at)):
        line = {"color": _colour(mark.colour), "width": 1, "dash": "dash"}
        across = {"xref": "x", "yref": "paper", "x0": mark.at, "x1": mark.at, "y0": 0, "y1": 1}
        along = {"xref": "paper", "yref": "y", "x0": 0, "x1": 1, "y0": mark.at, "y1": mark.at}
        shapes.append({"type": "line", "line": line, **(across if axis == "x" else along)})
        place = (
            {"xref": "x", "yref": "paper", "x": mark.at, "y": 1, "xanchor": "left", "yanchor": "top", "yshift": -14 * (number % 3)}
            if axis == "x"
            else {"xref": "paper", "yref": "y", "y": mark.at, "yanchor": "bottom", **ENDS_OF_LEVELS[number % 2]}
        )
        notes.append(_note(_name(mark.name), **place))
    return shapes, notes


def _bars(chart: BarChart) -> dict[str, Any]:
    places = list(range(len(chart.names)))
    along, over = ("x", "y") if chart.across else ("y", "x")
    data = []
    for each in chart.series:
        kept = [place for place in places if each.values[place] is not None]
        if not kept:
            continue
        values = [each.values[place] for place in kept]
        written = [_plain(chart.pattern.format(value)) for value in values]
        errors = {}
        if each.intervals:
            errors = {f"error_{along}": _errors([value or 0.0 for value in values], [each.intervals[place] for place in kept], "fg")}
        data.append(
            {
                **errors, "type": "bar", "orientation": "h" if chart.across else "v", "name": _name(each.name), along: values, over: kept,
                "marker": {"color": _colour(each.colour)}, "text": written, "textposition": "auto" if chart.across else "none",
                "customdata": [_plain(chart.names[place]) for place in kept], "cliponaxis": False,
                "hovertemplate": "%{customdata}: %{text}<extra>%{fullData.name}</extra>",
            }
        )  # fmt: skip
    counts = [sum(each.values[place] is not None for each in chart.series) for place in places]
    mode = "stack" if chart.stacked else "overlay" if max(counts) <= 1 else "group"
    values_axis = _axis(chart.axis.title, rangemode="tozero")
    shared: dict[str, Any] = {"barmode": mode, "hovermode": "closest", "showlegend": len(data) > 1}
    if not chart.across:
        names = _axis(chart.names_axis.title, tickmode="array", tickvals=places, ticktext=[_name(name) for name in chart.names])
        return {"data": data, "layout": _layout(340, xaxis=names, yaxis=values_axis, **shared)}
    slot = NAME_HEIGHT * 2 + BAR_HEIGHT * (1 if mode != "group" else max(counts))
    names = _axis("", showticklabels=False, showgrid=False, range=[len(places) - 0.5, -0.5])
    over_bars = {"x": 0, "xref": "paper", "yref": "y", "xanchor": "left", "yanchor": "top"}
    notes = [_note(_name(name, NAME_WIDTH), y=place - 0.5, **over_bars) for place, name in enumerate(chart.names)]
    legend = 20 * (len(data) // 4)
    layout = _layout(
        100 + legend + slot * len(places), xaxis=values_axis, yaxis=names, bargap=2 * NAME_HEIGHT / slot, annotations=notes, **shared
    )
    return {"data": data, "layout": layout | {"margin": {"l": 16, "r": 16, "t": 36, "b": 44}}}


def _timeline(chart: Timeline) -> dict[str, Any]:
    rows = chart.rows
    data = []
    for kind in dict.fromkeys(span.kind for span in chart.spans):
        spans = [span for span in chart.spans if span.kind == kind]
        data.append(
            {
                "type": "bar", "orientation": "h", "name": _name(kind), "y": [rows.index(span.row) for span in spans],
                "base": [span.begin for span in spans], "x": [span.end - span.begin for span in spans],
                "marker": {"color": _colour(spans[0].colour), "line": {"color": _colour(spans[0].colour), "width": 1}},
                "customdata": [_plain(span.words or span.kind) for span in spans], "width": 0.6,
                "hovertemplate": "%{customdata}<extra>%{fullData.name}</extra>",
            }
        )  # fmt: skip
    shapes, notes = _marks(chart.marks, axis="x")
    names = _axis(
        "", tickmode="array", tickvals=list(range(len(rows))), ticktext=[_name(row, ROW_WIDTH) for row in rows], autorange="reversed"
    )
    layout = _layout(
        120 + 34 * len(rows), xaxis=_axis(chart.axis.title), yaxis=names, barmode="overlay", hovermode="closest", showlegend=True,
        shapes=shapes, annotations=notes,
    )  # fmt: skip
    return {"data": data, "layout": layout}
