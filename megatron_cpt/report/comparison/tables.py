"""The comparison as Markdown for people, and as CSV and JSON for programs. What is unknown is never shown as 0."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from typing import Any

from megatron_cpt.errors import printable
from megatron_cpt.meter.totals import WHOLE
from megatron_cpt.record.unknown import Unavailable
from megatron_cpt.report.comparison.against import Against, against_in
from megatron_cpt.report.comparison.cells import BILL, Notes, Shown, bill_of, figures_of, of_change, of_figure
from megatron_cpt.report.comparison.entry import Entry
from megatron_cpt.report.comparison.front import RULE
from megatron_cpt.report.comparison.groups import Comparison, Group, Lead, Placed
from megatron_cpt.report.comparison.measures import Change, Measured
from megatron_cpt.report.comparison.settings import Value

SCHEMA_VERSION = 1
NEVER_ACROSS = "Figures of one group are never set against those of another: base, items or scoring differ."


def headings(group: Group) -> dict[str, str]:
    """Return the headings of the figures of `figures_of`, with their units."""
    return {
        "gain": f"gain on {group.gain.title} ({group.gain.unit})",
        "forgetting": f"forgetting on {group.forgetting.title} ({group.forgetting.unit})",
        "tokens": "tokens",
        "seconds": "training time",
        "usd": "USD",
        "kwh": "kWh at the meters",
        "g_co2e": "g CO2e",
        "bytes_per_token": "bytes a token, domain",
    }


def interval_words(group: Group) -> str:
    """Say what the intervals are."""
    levels = sorted({run.entry.plan.gate.confidence for run in group.runs if run.entry.plan})
    shown = ", ".join(f"{level:.4g}" for level in levels)
    return f"In brackets: intervals at {shown}, of one run and one figure each; a gate corrects its own for several rules."


def what_differs(comparison: Comparison, number: int) -> list[str]:
    """Say in which points a group's base, items or scoring are not those of the first group."""
    first, this = comparison.groups[0].identity, comparison.groups[number].identity
    found = [] if first["base"] == this["base"] else ["the base's weights"]
    if first["measured"] != this["measured"]:
        found.append("the rules of the gate that are measured")
    found += [
        f"the items of {of}" for of in sorted(first["items"].keys() & this["items"].keys()) if first["items"][of] != this["items"][of]
    ]
    return found if first["scoring"] == this["scoring"] else [*found, "how texts are cut into windows"]


def title_of(comparison: Comparison, number: int) -> str:
    group = comparison.groups[number]
    name = f"Group {number + 1}: " if len(comparison.groups) > 1 or comparison.waiting else ""
    return f"{name}{len(group.runs)} {'run' if len(group.runs) == 1 else 'runs'} on the base {group.base_name}"


def front_line(group: Group) -> str:
    """Name the front of a group, with the state of each run on it."""
    if not group.front:
        return "No run of this group has both figures yet."
    return "On the front: " + ", ".join(f"{run.entry.name} ({run.entry.state.word})" for run in group.front) + "."


def text_of(value: Value) -> str:
    return "unknown" if isinstance(value, Unavailable) else value


def markdown(comparison: Comparison, *, against: str | None = None) -> str:
    """Return the whole comparison as Markdown, with the differences to the run `against` where one is named."""
    differences = against_in(comparison, against)
    lines = [f"# Comparison of {len(comparison.entries)} runs", ""]
    if len(comparison.groups) > 1:
        lines += [NEVER_ACROSS, ""]
    for number, group in enumerate(comparison.groups):
        lines += [f"## {title_of(comparison, number)}", ""]
        if number and (differs := what_differs(comparison, number)):
            lines += [f"Not those of group 1: {', '.join(differs)}.", ""]
        notes, named = Notes(), headings(group)
        rows = []
        for run in group.runs:
            shown = [notes.mark(each) for each in figures_of(run).values()]
            rows.append(
                [
                    run.entry.name,
                    str(run.entry.state),
                    *map(text_of, group.settings.of(run.entry.name)),
                    *shown[:2],
                    run.standing,
                    *shown[2:],
                ]
            )
        figures = list(named.values())
        lines += _table(["run", "state", *group.settings.apart, *figures[:2], "front", *figures[2:]], rows)
        lines += ["", _md(front_line(group)), "", interval_words(group), ""]
        lines += [f"- {_md(note)}" for note in group.notes] + [f"- [{n}] {_md(note)}" for n, note in enumerate(notes.texts, 1)]
        if number in differences:
            lines += ["", *_against_table(differences[number], group)]
        equal = ", ".join(f"{key}={value}" for key, value in group.settings.set_and_equal.items())
        lines += ["", _md(f"Equal in all of them: {equal or 'nothing'}."), ""]
    if comparison.waiting:
        lines += ["## Not measured, or on rules of their own", ""]
        lines += _table(
            ["run", "state", *comparison.settings.apart, "tokens", "why it stands in no group"],
            [
                [
                    entry.name,
                    str(entry.state),
                    *map(text_of, comparison.settings.of(entry.name)),
                    of_figure(entry.tokens, "{:,.0f}").text,
                    why,
                ]
                for entry, why in comparison.waiting
            ],
        )
        lines.append("")
    lines += ["## Bill of all stages", "", *_bill_table(comparison.entries)]
    return "\n".join([*lines, "", RULE, ""])


def _against_table(against: Against, group: Group) -> list[str]:
    notes = Notes()
    rows = [
        [each.name, *map(text_of, group.settings.of(each.name)), *(notes.mark(of_change(one)) for one in (each.gain, each.forgetting))]
        for each in against.differences
    ]
    figures = headings(group)
    head = [f"minus {against.reference}", *group.settings.apart, figures["gain"], figures["forgetting"]]
    return [*_table(head, rows), "", _md(against.explained), *(f"- [{n}] {_md(note)}" for n, note in enumerate(notes.texts, 1))]


def _bill_table(entries: Sequence[Entry]) -> list[str]:
    notes = Notes()
    rows = [[entry.name, *(notes.mark(shown) for shown in bill_of(entry).values())] for entry in entries]
    return [
        *_table(["run", "time", *(name for _, name, _, _ in BILL)], rows),
        "",
        *(f"- [{n}] {_md(note)}" for n, note in enumerate(notes.texts, 1)),
    ]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(_md(cell) for cell in cells) + " |"

    return [line(head), "| " + " | ".join("---" for _ in head) + " |", *(line(row) for row in rows)]


def _md(text: str) -> str:
    """Return text that stays text in a Markdown table: no markup, one line."""
    plain = printable(text)
    return "".join(f"\\{c}" if c in "\\`*_|<>[]" else c for c in plain)


def csv_text(comparison: Comparison) -> str:
    """Return a CSV row a run; an unknown figure is an empty field, with its reason in `unknown_because`."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    bills = [f"{stage}_{key}" for stage in ("train", "all") for key in ("seconds", *(key for key, _, _, _ in BILL))]
    writer.writerow([
        "run", "group", "state", "detail", "standing", *comparison.settings.apart, "gain", "gain_low", "gain_high", "gain_unit",
        "forgetting", "forgetting_low", "forgetting_high", "forgetting_unit", "tokens", "bytes_per_token", *bills, "unknown_because",
    ])  # fmt: skip
    for number, group, run in _placed(comparison):
        shown = [*bill_of(run.entry, "train").values(), *bill_of(run.entry, WHOLE).values()]
        figures = figures_of(run)
        units = (group.gain.unit, group.forgetting.unit) if group else ("", "")
        reasons = dict.fromkeys(each.reason for each in (*figures.values(), *shown) if each.reason)
        writer.writerow([
            _cell(run.entry.name), number or "", run.entry.state.word, _cell(run.entry.state.detail), _cell(run.standing),
            *("" if isinstance(value, Unavailable) else _cell(value) for value in comparison.settings.of(run.entry.name)),
            *_ends(run.gain), units[0], *_ends(run.forgetting), units[1], _number(figures["tokens"]), _number(figures["bytes_per_token"]),
            *map(_number, shown), "; ".join(reasons),
        ])  # fmt: skip
    return out.getvalue()


def _placed(comparison: Comparison) -> list[tuple[int, Group | None, Placed]]:
    """Return every run in the order asked for, with the number of its group; 0 for none."""
    found: dict[str, tuple[int, Group | None, Placed]] = {}
    for number, group in enumerate(comparison.groups, 1):
        found |= {run.entry.name: (number, group, run) for run in group.runs}
    for entry, why in comparison.waiting:
        unknown = Unavailable(why)
        found[entry.name] = (0, None, Placed(entry, unknown, unknown, unknown))
    return [found[entry.name] for entry in comparison.entries]


def _cell(text: str) -> str:
    """Return text that a spreadsheet shows and does not compute."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _number(shown: Shown) -> str:
    return "" if shown.value is None else f"{shown.value:.10g}"


def _ends(measured: Measured) -> list[str]:
    if not isinstance(measured, Change):
        return ["", "", ""]
    return [f"{value:.10g}" for value in (measured.value, measured.low, measured.high)]


def json_text(comparison: Comparison, *, against: str | None = None) -> str:
    """Return everything as JSON; an unknown figure is `{"unavailable": reason}`."""
    differences = {each.name: each for found in against_in(comparison, against).values() for each in found.differences}
    runs = []
    for number, _, run in _placed(comparison):
        entry = run.entry
        runs.append({
            "run": entry.name,
            "folder": str(entry.folder),
            "state": entry.state.word,
            "detail": entry.state.detail,
            "group": number or None,
            "standing": run.standing,
            "dominated_by": None if run.ahead is None else [_lead(lead) for lead in run.ahead],
            "settings": dict(zip(comparison.settings.apart, map(_plain, comparison.settings.of(entry.name)), strict=True)),
            "gain": _change(run.gain),
            "forgetting": _change(run.forgetting),
            "tokens": _plain(entry.tokens),
            "bytes_per_token": {role: _plain(entry.bytes_per_token(role)) for role in ("domain", "general")},
            "base_bytes_per_token": {role: _plain(entry.bytes_per_token(role, "base")) for role in ("domain", "general")},
            "training": _bill(entry, "train"),
            "all_stages": _bill(entry, WHOLE),
            "taken_over": entry.taken_over(),
            "against": None if (one := differences.get(entry.name)) is None
            else {"run": against, "gain": _change(one.gain), "forgetting": _change(one.forgetting)},
        })  # fmt: skip
    groups = [
        {
            "group": number,
            "fingerprint": group.fingerprint,
            **group.identity,
            "gain": {"of": group.gain.title, "unit": group.gain.unit},
            "forgetting": {"of": group.forgetting.title, "unit": group.forgetting.unit},
            "front": [run.entry.name for run in group.front],
            "notes": list(group.notes),
        }
        for number, group in enumerate(comparison.groups, 1)
    ]
    whole = {"schema_version": SCHEMA_VERSION, "rule": RULE, "groups": groups, "runs": runs, "equal_settings": comparison.settings.equal}
    return json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _change(measured: Measured) -> Any:
    if isinstance(measured, Unavailable):
        return {"unavailable": measured.reason}
    return {"value": measured.value, "low": measured.low, "high": measured.high, "items": measured.num_items}


def _lead(lead: Lead) -> dict[str, Any]:
    return {"run": lead.name, "is_sure": lead.is_sure, "gained_more": _change(lead.gain), "forgot_less": _change(lead.forgetting)}


def _plain(value: Any) -> Any:
    return {"unavailable": value.reason} if isinstance(value, Unavailable) else value


def _bill(entry: Entry, stage: str) -> dict[str, Any]:
    return {
        key: {"value": shown.value, "text": shown.text, "unknown_because": shown.reason or None}
        for key, shown in bill_of(entry, stage).items()
    }
