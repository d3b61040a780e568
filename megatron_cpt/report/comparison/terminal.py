"""What a terminal shows of a comparison: a line a run, and the front of each group."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from megatron_cpt.errors import printable
from megatron_cpt.report.comparison.against import against_in
from megatron_cpt.report.comparison.cells import figures_of, of_change
from megatron_cpt.report.comparison.groups import Comparison
from megatron_cpt.report.comparison.measures import Change
from megatron_cpt.report.comparison.tables import NEVER_ACROSS, front_line, text_of, title_of, what_differs

WIDTH = 100
MOST_SETTINGS = 3  # in columns of their own; more make lines that no terminal has


def terminal(comparison: Comparison, *, against: str | None = None) -> str:
    """Return the comparison as text; the page and the tables say more."""
    differences = against_in(comparison, against)
    lines = []
    for number, group in enumerate(comparison.groups):
        lines += [title_of(comparison, number)]
        if number and (differs := what_differs(comparison, number)):
            lines += [f"  not those of group 1: {', '.join(differs)}"]
        keys = list(group.settings.apart)
        rows = [["  run", *keys[:MOST_SETTINGS], "gain", "forgetting", "training", "USD", "state"]]
        for run in group.runs:
            shown = figures_of(run)
            figures = [f"{each.value:+.4f}" if isinstance(each, Change) else "unknown" for each in (run.gain, run.forgetting)]
            values = map(text_of, group.settings.of(run.entry.name)[:MOST_SETTINGS])
            name = f"{'*' if run.is_on_front else ' '} {run.entry.name}"
            rows.append([name, *values, *figures, shown["seconds"].text, shown["usd"].text, str(run.entry.state)])
        lines += _aligned(rows)
        about = f"gain on {group.gain.title} ({group.gain.unit}), forgetting on {group.forgetting.title} ({group.forgetting.unit})"
        lines += textwrap.wrap(f"* {front_line(group)} {about[0].upper()}{about[1:]}; intervals are on the page.", WIDTH)
        if number in differences:
            rows = [[f"  minus {against}", "gain", "forgetting"]]
            rows += [[f"  {one.name}", of_change(one.gain).text, of_change(one.forgetting).text] for one in differences[number].differences]
            lines += _aligned(rows)
        if len(keys) > MOST_SETTINGS:
            lines += textwrap.wrap(printable(f"Settings that differ too: {', '.join(keys[MOST_SETTINGS:])}."), WIDTH)
        lines += [line for note in group.notes for line in textwrap.wrap(printable(note), WIDTH)] + [""]
    for entry, why in comparison.waiting:
        lines += textwrap.wrap(printable(f"{entry.name}: {entry.state}; in no group: {why}"), WIDTH)
    if len(comparison.groups) > 1:
        lines += textwrap.wrap(NEVER_ACROSS, WIDTH)
    return "\n".join(lines).rstrip() + "\n"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    plain = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in plain) for column in range(len(plain[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in plain]
