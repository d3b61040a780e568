"""The comparison as one self-contained page: the front first, then a sortable table a group, the bills and the equal settings."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from os.path import commonprefix

from megatron_cpt.charts.data import Axis, Series, XYChart
from megatron_cpt.charts.figure import charts, figure
from megatron_cpt.charts.page import Cell, table, whole_page
from megatron_cpt.record.unknown import Unavailable
from megatron_cpt.report.comparison.against import Against, against_in
from megatron_cpt.report.comparison.cells import BILL, Notes, Shown, bill_of, figures_of, of_change, of_figure
from megatron_cpt.report.comparison.front import RULE
from megatron_cpt.report.comparison.groups import Comparison, Group, Placed, point_of
from megatron_cpt.report.comparison.measures import Change
from megatron_cpt.report.comparison.settings import Differing, Value
from megatron_cpt.report.comparison.tables import NEVER_ACROSS, front_line, headings, title_of, what_differs

FRONT, BEHIND = "on the front", "dominated"


def html(comparison: Comparison, *, against: str | None = None) -> str:
    """Return the whole page, with the differences to the run `against` where one is named."""
    differences = against_in(comparison, against)
    body = f'<p class="soft">{escape(NEVER_ACROSS)}</p>' if len(comparison.groups) > 1 else ""
    body += "".join(_group(comparison, number, differences.get(number)) for number in range(len(comparison.groups)))
    body += _waiting(comparison) + _bills(comparison)
    return whole_page(f"Comparison of {len(comparison.entries)} runs", body, is_interactive=True)


def _group(comparison: Comparison, number: int, against: Against | None) -> str:
    group = comparison.groups[number]
    differs = what_differs(comparison, number) if number else []
    apart = f"<p>Not those of group 1: {escape(', '.join(differs))}.</p>" if differs else ""
    pictures = charts([pareto_chart(group), cost_chart(group)]) if group.front else ""
    return (
        f'<h2>{escape(title_of(comparison, number))}</h2>{apart}<p class="verdict">{escape(front_line(group))}</p>{pictures}'
        f"{_runs(group)}{_against(group, against) if against else ''}{_lines(group.notes)}{_equal(group.settings)}"
        f'<p class="soft">{escape(RULE)}</p>'
    )


def pareto_chart(group: Group) -> str:
    """Return the picture of gain against forgetting, the front joined by a line, with the interval of each figure."""
    drawn = [run for run in group.runs if run.dominated_by is not None]
    names = short_names([run.entry.name for run in drawn])
    labels = {run.entry.name: name for run, name in zip(drawn, names, strict=True)}
    series = [_points(name, [run for run in drawn if run.is_on_front == front], labels) for name, front in ((FRONT, True), (BEHIND, False))]
    if len(group.front) > 1:
        steps = [(point_of(run.gain), point_of(run.forgetting)) for run in group.front]
        series.append(Series("front", steps, "good", dashed=True))
    return figure(
        XYChart(
            "Gain against forgetting",
            [each for each in series if each.points],
            Axis(f"gain on {group.gain.title}", group.gain.unit),
            Axis(f"forgetting on {group.forgetting.title}", group.forgetting.unit),
        ),
        note="Right is more gained, down is less forgotten. Each interval is of one run against the base.",
    )


def cost_chart(group: Group) -> str:
    """Return the picture of gain against cost; runs whose cost is not known as a whole are not in it."""
    drawn = [run for run in group.runs if run.dominated_by is not None and not isinstance(run.cost, Unavailable)]
    labels = dict(zip([run.entry.name for run in drawn], short_names([run.entry.name for run in drawn]), strict=True))
    series = []
    for name, is_front in ((FRONT, True), (BEHIND, False)):
        same = [run for run in drawn if run.is_on_front == is_front]
        points = [(run.cost, point_of(run.gain)) for run in same if not isinstance(run.cost, Unavailable)]
        intervals = [(run.gain.low, run.gain.high) if isinstance(run.gain, Change) else None for run in same]
        series.append(
            Series(
                name,
                points,
                "good" if is_front else "c",
                intervals=intervals,
                labels=[labels[run.entry.name] for run in same],
                mode="points",
            )
        )
    left_out = sum(run.dominated_by is not None for run in group.runs) - len(drawn)
    return figure(
        XYChart(
            "Gain against cost",
            [each for each in series if each.points],
            Axis(group.cost_name),
            Axis(f"gain on {group.gain.title}", group.gain.unit),
        ),
        note=f"{left_out} runs whose cost is not known as a whole are not drawn." if left_out else "Attempts that failed are counted.",
    )


def _points(name: str, runs: list[Placed], labels: dict[str, str]) -> Series:
    changes = [(run.gain, run.forgetting) for run in runs if isinstance(run.gain, Change) and isinstance(run.forgetting, Change)]
    return Series(
        name,
        [(gain.value, loss.value) for gain, loss in changes],
        "good" if name == FRONT else "c",
        intervals=[(loss.low, loss.high) for _, loss in changes],
        x_intervals=[(gain.low, gain.high) for gain, _ in changes],
        labels=[labels[run.entry.name] for run in runs],
        mode="points",
    )


def short_names(names: list[str]) -> list[str]:
    """Return names without the words that all of them begin with, for labels: `tiny-lr1`, `tiny-lr2` become `lr1`, `lr2`."""
    shared = commonprefix(names) if len(names) > 1 else ""
    begin = shared.rfind("-") + 1
    return [name[begin:] for name in names]


def _runs(group: Group) -> str:
    notes, named = Notes(), headings(group)
    rows = []
    for run in group.runs:
        cells = [_cell(shown, notes) for shown in figures_of(run).values()]
        rank = None if run.dominated_by is None else float(len(run.dominated_by))
        settings = map(_setting, group.settings.of(run.entry.name))
        rows.append((run.entry.name, str(run.entry.state), *settings, *cells[:2], Cell(run.standing, rank), *cells[2:]))
    figures = list(named.values())
    head = ("run", "state", *group.settings.apart, *figures[:2], "front", *figures[2:])
    first = 2 + len(group.settings.apart)
    numbers = (*range(2, first + 2), *range(first + 3, len(head)))
    return table(head, rows, numbers=numbers, is_sortable=True) + _numbered(notes)


def _against(group: Group, against: Against) -> str:
    notes, named = Notes(), headings(group)
    rows = [
        (each.name, *map(_setting, group.settings.of(each.name)), *(_cell(of_change(one), notes) for one in (each.gain, each.forgetting)))
        for each in against.differences
    ]
    head = (f"minus {against.reference}", *group.settings.apart, named["gain"], named["forgetting"])
    soft = f'<p class="soft">{escape(against.explained)}</p>'
    return table(head, rows, numbers=range(1, len(head)), is_sortable=True) + soft + _numbered(notes)


def _cell(shown: Shown, notes: Notes) -> Cell:
    return Cell(notes.mark(shown), shown.value)


def _setting(value: Value) -> Cell | str:
    if isinstance(value, Unavailable):
        return Cell("unknown", None)
    try:
        return Cell(value, float(value))
    except ValueError:
        return value


def _waiting(comparison: Comparison) -> str:
    if not comparison.waiting:
        return ""
    rows = [
        (
            entry.name,
            str(entry.state),
            *map(_setting, comparison.settings.of(entry.name)),
            _cell(of_figure(entry.tokens, "{:,.0f}"), Notes()),
            why,
        )
        for entry, why in comparison.waiting
    ]
    head = ("run", "state", *comparison.settings.apart, "tokens", "why it stands in no group")
    return f"<h2>Not measured, or on rules of their own</h2>{table(head, rows, numbers=range(2, len(head) - 1), is_sortable=True)}"


def _bills(comparison: Comparison) -> str:
    notes = Notes()
    rows = [(entry.name, *(_cell(shown, notes) for shown in bill_of(entry).values())) for entry in comparison.entries]
    head = ("run", "time", *(name for _, name, _, _ in BILL))
    return f"<h2>Bill of all stages</h2>{table(head, rows, numbers=range(1, len(head)), is_sortable=True)}{_numbered(notes)}"


def _equal(settings: Differing) -> str:
    unset = [key for key in settings.equal if key not in settings.set_and_equal]
    below = f'<p class="soft">Not set in any: {escape(", ".join(unset))}.</p>' if unset else ""
    return (
        f"<details><summary>{len(settings.set_and_equal)} settings are equal in all of them</summary>"
        f"{table(('setting', 'value'), settings.set_and_equal.items(), hashes=(1,))}{below}</details>"
    )


def _numbered(notes: Notes) -> str:
    return "".join(f'<p class="soft">[{number}] {escape(note)}</p>' for number, note in enumerate(notes.texts, 1))


def _lines(texts: Iterable[str]) -> str:
    return "".join(f"<p>{escape(text)}</p>" for text in texts)
