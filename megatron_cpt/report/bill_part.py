"""Time, money, energy and carbon: training as planned against what it took, and the bill of every stage."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from megatron_cpt.charts.data import Axis, BarChart, BarSeries
from megatron_cpt.charts.figure import charts, figure
from megatron_cpt.charts.page import Cell, table
from megatron_cpt.meter.account import difference_lines
from megatron_cpt.meter.difference import differences
from megatron_cpt.meter.ledger import JOULES_PER_KWH
from megatron_cpt.meter.totals import StageTotals, Total
from megatron_cpt.plan.page_money import bill_of_plan, elapsed
from megatron_cpt.record.unknown import Amount, Figure, Range, Unavailable, show
from megatron_cpt.report.records import RunRecords
from megatron_cpt.report.section import Section, note

HOUR, KG = 3600.0, 1000.0


def bill(records: RunRecords) -> Section:
    """Return the planned and the actual figures of training, why they differ, and the totals by stage."""
    if not records.totals:
        return Section("bill", "Time, money, energy", "<p>Unknown: no attempt is on the ledger.</p>")
    return Section("bill", "Time, money, energy", _against_plan(records) + _by_stage(records.totals))


def _against_plan(records: RunRecords) -> str:
    train, plan = records.total("train"), records.plan
    if plan is None or train is None:
        return "<p>Planned against actual: unknown before training began.</p>"
    expected = train.planned or {}
    found = bill_of_plan(plan)
    rows: list[tuple[str, str, Figure, Range, Total, float]] = [
        ("time", "h", expected.get("seconds", plan.estimate.seconds), elapsed(plan.estimate), train.seconds, 1 / HOUR),
        ("cost", "USD", expected.get("usd", plan.estimate.usd), found.usd, train.usd, 1.0),
        ("energy with PUE", "kWh", expected.get("kwh", plan.estimate.kwh), found.kwh, train.site_kwh, 1.0),
        ("carbon, location-based", "kg CO2e", expected.get("g_co2e", Unavailable("not recorded")), found.kg_location, train.g_co2e, 1 / KG),
    ]
    notes: list[str] = []
    cells, names, ratios, ends = [], [], [], []
    for name, unit, planned, interval, actual, scale in rows:
        known = None if isinstance(planned, Unavailable) else planned * scale
        spread = _spread(interval, scale if name == "time" else 1.0)
        cells.append(
            (
                name,
                unit,
                _noted(show(known if known is not None else planned, "{:.4g}"), notes),
                spread,
                _noted(actual.show("{:.4g}", scale), notes),
            )
        )
        if known and actual.num_known:
            names.append(name)
            ratios.append(100 * actual.value * scale / known)
            ends.append(_ends(interval))
    head = ("training", "unit", "planned", "planned for a round, from to", "actual")
    bars = [
        BarSeries("planned, with its interval", [100.0 for _ in names], "c", intervals=ends),
        BarSeries("actual", ratios, "a"),
    ]
    drawn = figure(BarChart("Actual against planned", names, bars, Axis("planned = 100", "%"), pattern="{:,.0f}")) if names else ""
    reasons = difference_lines(differences(records.attempts))
    why = f"<pre>{escape(chr(10).join(line.removeprefix('  ') for line in reasons))}</pre>" if reasons else ""
    words = "Planned adds up the plans of all rounds; actual adds up every attempt, lost work included."
    return charts([drawn] if drawn else []) + table(head, cells, numbers=(2, 3, 4)) + _listed(notes) + note(words) + why


def _spread(found: Range, scale: float) -> str:
    if isinstance(found, Unavailable):
        return "unknown"
    return f"{Amount(found.low * scale):.3g} to {Amount(found.high * scale):.3g}"


def _ends(found: Range) -> tuple[float, float] | None:
    """Return the plan's interval in percent of its likely figure."""
    if isinstance(found, Unavailable) or not found.likely:
        return None
    return 100 * found.low / found.likely, 100 * found.high / found.likely


def _by_stage(totals: Sequence[StageTotals]) -> str:
    notes: list[str] = []
    rows = []
    for total in totals:
        states = ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in total.num_by_status.items())
        figures = (
            (total.seconds, "{:,.1f}", 1.0),
            (total.device_seconds, "{:.4g}", 1 / HOUR),
            (total.usd, "{:.4g}", 1.0),
            (total.joules, "{:.4g}", 1 / JOULES_PER_KWH),
            (total.site_kwh, "{:.4g}", 1.0),
            (total.g_co2e, "{:.4g}", 1.0),
        )
        cells = [Cell(_noted(each.show(pattern, scale), notes), each.value if each.num_known else None) for each, pattern, scale in figures]
        rows.append((total.stage, states, *cells))
    head = ("stage", "attempts", "seconds", "device-hours", "USD", "kWh at the meters", "kWh with PUE", "g CO2e")
    return f"<h3>By stage</h3>{table(head, rows, numbers=range(2, 8), is_sortable=True)}{_listed(notes)}"


def _listed(notes: Sequence[str]) -> str:
    return "".join(note(f"[{number}] {each}") for number, each in enumerate(notes, 1))


def _noted(text: str, notes: list[str]) -> str:
    """Return a figure for a narrow cell; the words behind it go to the notes below the table, each once."""
    figure_alone, _, words = text.partition(" (")
    if not words:
        return text
    words = words.removesuffix(")")
    if words not in notes:
        notes.append(words)
    return f"{figure_alone} [{notes.index(words) + 1}]"
