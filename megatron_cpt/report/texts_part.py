"""What was read: tokens of each source against the plan, the vocabulary before and after, and completions side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_cpt.charts.data import Axis, BarChart, BarSeries, Colour
from megatron_cpt.charts.figure import charts, figure
from megatron_cpt.charts.page import Cell, table
from megatron_cpt.report.records import RunRecords
from megatron_cpt.report.section import Section, figure_text, note
from megatron_cpt.report.steps import is_number

VOCABULARIES: dict[str, Colour] = {"base": "c", "extended": "a"}
FIGURES = {
    "bytes_per_token": ("bytes per token", "{:.3f}"),
    "tokens_per_char": ("tokens per character", "{:.3f}"),
    "fertility": ("fertility, tokens per word", "{:.3f}"),
    "byte_fragment_rate": ("tokens that are parts of characters", "{:.1%}"),
    "ids_used": ("ids used", "{:,.0f}"),
    "new_ids_used": ("new ids used", "{:,.0f}"),
}


def sources(records: RunRecords) -> Section | None:
    """Return the tokens that each source gave, against those that the plan wanted of it; None before there is a plan."""
    plan = records.plan
    if plan is None:
        return None
    consumed, where = _consumed(records)
    length = plan.layout.sequence_length
    planned = {entry.source: entry.num_samples * length for entry in plan.blend}
    names = [entry.source for entry in plan.blend]
    bars = [
        BarSeries("planned", [float(planned[name]) for name in names], "c"),
        BarSeries("consumed", [float(consumed[name]) if name in consumed else None for name in names], "a"),
    ]
    chart = BarChart("Tokens by source", names, bars, Axis("tokens"), pattern="{:,.0f}")
    total = sum(consumed.values())
    rows = [
        (
            entry.source,
            entry.role,
            entry.licence,
            f"{entry.share:.1%}",
            f"{consumed[entry.source] / total:.1%}" if total and entry.source in consumed else "unknown",
            _count(planned[entry.source]),
            _count(consumed.get(entry.source)),
            Cell(f"{entry.num_epochs:.2f}", entry.num_epochs),
        )
        for entry in plan.blend
    ]
    head = ("source", "role", "licence", "planned share", "share consumed", "tokens planned", "tokens consumed", "planned epochs")
    by_licence = ", ".join(f"{licence} {tokens:,}" for licence, tokens in _by_licence(records).items())
    words = note(where, f"By licence: {by_licence}." if by_licence else "")
    return Section("sources", "Texts consumed", charts([figure(chart)]) + table(head, rows, numbers=range(3, 8), is_sortable=True) + words)


def _consumed(records: RunRecords) -> tuple[dict[str, int], str]:
    """Return the tokens in the current weights by source, and where that is recorded."""
    facts = records.facts("train").get("sources")
    if facts:
        return {name: int(source["tokens"]) for name, source in facts.items()}, "Consumed tokens are those in the trained weights."
    if records.steps:
        last = records.steps[-1]
        return {
            name: int(count) for name, count in last.get("source_tokens", {}).items()
        }, f"Consumed up to step {last['step']}; training has not finished."
    return {}, "Consumed tokens: unknown (no step is recorded)."


def _by_licence(records: RunRecords) -> dict[str, int]:
    found = records.facts("train").get("licences") or (records.steps[-1].get("licence_tokens") if records.steps else None)
    return dict(found or {})


def _count(tokens: int | None) -> Cell:
    return Cell("unknown", None) if tokens is None else Cell(f"{tokens:,}", tokens)


def tokenizer(records: RunRecords) -> Section | None:
    """Return what the base's vocabulary and the extended one make of both kinds of text; None when it was not measured yet."""
    facts = records.facts("vocab")
    fits = {
        role: {name: fit for name, fit in (facts.get(role) or {}).items() if name in VOCABULARIES and fit} for role in ("domain", "general")
    }
    if not any(fits.values()):
        return None
    rows = [
        (words, role, *(_fit(fits[role].get(name), key, pattern) for name in VOCABULARIES), _ratio(fits[role], key))
        for key, (words, pattern) in FIGURES.items()
        for role in fits
        if fits[role]
    ]
    figures = []
    for key in ("bytes_per_token", "fertility"):
        names = [role for role in fits if fits[role]]
        bars = [BarSeries(name, [_value(fits[role].get(name), key) for role in names], colour) for name, colour in VOCABULARIES.items()]
        title = FIGURES[key][0]
        figures.append(
            figure(BarChart(title[0].upper() + title[1:], [f"{role} text" for role in names], bars, Axis(title), pattern="{:.3f}"))
        )
    layout, pieces = facts.get("layout", {}), facts.get("num_new_pieces")
    words = [f"{layout['num_base_ids']:,} ids of the base, {layout['num_ids']:,} after." if "num_ids" in layout else ""]
    words += [f"{pieces:,} new pieces." if pieces else "No piece was added."]
    if is_number(saved := facts.get("domain_token_saving")):
        words += [
            f"The same domain text takes {saved:.1%} fewer tokens."
            if saved >= 0
            else f"The same domain text takes {-saved:.1%} more tokens."
        ]
    head = ("figure", "text", "base", "extended", "ratio")
    return Section(
        "tokenizer", "Vocabulary before and after", charts(figures) + table(head, rows, numbers=(2, 3, 4), is_sortable=True) + note(*words)
    )


def _value(fit: Mapping[str, Any] | None, key: str) -> float | None:
    value = (fit or {}).get(key)
    return float(value) if is_number(value) else None


def _fit(fit: Mapping[str, Any] | None, key: str, pattern: str) -> Cell:
    value = _value(fit, key)
    return Cell(figure_text(value, pattern), value)


def _ratio(fits: Mapping[str, Mapping[str, Any]], key: str) -> Cell:
    before, after = _value(fits.get("base"), key), _value(fits.get("extended"), key)
    if before == 0:
        return Cell("", None)
    return Cell("unknown", None) if before is None or after is None else Cell(f"{after / before:.3f}", after / before)


def completions(records: RunRecords) -> Section:
    """Return the completions of the base and of the exported model side by side, or why there are none."""
    rows = [(each["prompt"], each["base"], each["continued"]) for each in records.facts("export").get("completions", [])]
    if not rows:
        why = "the export made none" if "export" in records.manifests else "they are made by the export of a promoted model"
        return Section("completions", "Completions", f"<p>Unknown: {why}.</p>")
    words = note("Greedy, from the frozen base and from the exported model. No score is taken from them.")
    return Section("completions", "Completions", table(("prompt", "frozen base", "continued"), rows, words=(0, 1, 2)) + words)
