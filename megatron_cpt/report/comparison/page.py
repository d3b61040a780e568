"""The comparison as one self-contained page: the front first, then a sortable table a group, the bills and the equal settings."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from os.path import commonprefix

from megatron_cpt.charts.data import Axis, Colour, Series, XYChart
from megatron_cpt.charts.figure import charts, figure
from megatron_cpt.charts.page import Cell, table, whole_page
from megatron_cpt.record.unknown import Unavailable
from megatron_cpt.report.comparison.against import Against, against_in
from megatron_cpt.report.comparison.cells import BILL, Notes, Shown, bill_of, figures_of, of_change, of_figure
from megatron_cpt.report.comparison.front import RULE
from megatron_cpt.report.comparison.groups import Comparison, Group, Placed, point_of
from megatron_cpt.report.comparison.measures import Change, Measured
from megatron_cpt.report.comparison.settings import Differing, Value
from megatron_cpt.report.comparison.tables import NEVER_ACROSS, front_line, headings, interval_words, title_of, what_differs
from megatron_cpt.report.section import note
from megatron_cpt.report.section import notes as note_list

FRONT, BEHIND = "on the front", "dominated"
COSTS = ("tokens", "seconds", "usd", "kwh", "g_co2e", "bytes_per_token")  # of the second table, by the keys of `headings`


def html(comparison: Comparison, *, against: str | None = None) -> str:
    """Return the whole page, with the differences to the run `against` where one is named."""
    differences = against_in(comparison, against)
    body = f'<p class="soft">{escape(NEVER_ACROSS)}</p>' if len(comparison.groups) > 1 else ""
    body += "".join(_group(comparison, number, differences.get(number)) for number in range(len(comparison.groups)))
    body += _waiting(comparison) + _bills(comparison)
    return whole_page(f"Comparison of {len(comparison.entries)} runs", body, is_interactive=True, is_broad=True)


def _group(comparison: Comparison, number: int, against: Against | None) -> str:
    group = comparison.groups[number]
    differs = what_differs(comparison, number) if number else []
    apart = f"<p>Not those of group 1: {escape(', '.join(differs))}.</p>" if differs else ""
    has_points = sum(run.ahead is not None for run in group.runs) > 1  # of one run there is nothing to see against it
    pictures = charts([pareto_chart(group), cost_chart(group)]) if has_points else ""
    return (
        f"<h2>{escape(title_of(comparison, number))}</h2>{apart}<p><strong>{escape(front_line(group))}</strong></p>{pictures}"
        f"{_runs(group)}{_against(group, against) if against else ''}{note_list(group.notes)}{note(RULE)}{_equal(group.settings)}"
    )


def pareto_chart(group: Group) -> str:
    """Return the picture of gain against forgetting, the front joined by a line, with the interval of each figure."""
    labels = labels_of(group)
    series = [
        Series(
            name,
            [(point_of(run.gain), point_of(run.forgetting)) for run in runs],
            colour,
            intervals=[_ends(run.forgetting) for run in runs],
            x_intervals=[_ends(run.gain) for run in runs],
            labels=[labels[run.entry.name] for run in runs],
            mode="both" if colour == "good" else "points",
            dashed=True,
        )
        for name, colour, runs in _front_and_behind(group.runs)
    ]
    x, y = Axis(f"gain on {group.gain.title}", group.gain.unit), Axis(f"forgetting on {group.forgetting.title}", group.forgetting.unit)
    return figure(XYChart("Gain against forgetting", series, x, y), note="Right is more gained, down is less forgotten.")


def cost_chart(group: Group) -> str:
    """Return the picture of gain against cost; runs whose cost is not known as a whole are not in it."""
    labels = labels_of(group)
    known = [(run, run.cost) for run in group.runs if not isinstance(run.cost, Unavailable)]
    series = [
        Series(
            name,
            [(cost, point_of(run.gain)) for run, cost in known if run in runs],
            colour,
            intervals=[_ends(run.gain) for run, _ in known if run in runs],
            labels=[labels[run.entry.name] for run, _ in known if run in runs],
            mode="points",
        )
        for name, colour, runs in _front_and_behind([run for run, _ in known])
    ]
    left_out = sum(run.ahead is not None for run in group.runs) - sum(len(each.points) for each in series)
    return figure(
        XYChart("Gain against cost", series, Axis(group.cost_name), Axis(f"gain on {group.gain.title}", group.gain.unit)),
        note=f"{left_out} runs whose cost is not known as a whole are not drawn." if left_out else "Attempts that failed are counted.",
    )


def _front_and_behind(runs: Sequence[Placed]) -> list[tuple[str, Colour, list[Placed]]]:
    """Return the runs with a point, those on the front from the largest gain down; a kind without a run is left out."""
    drawn = sorted((run for run in runs if run.ahead is not None), key=lambda run: -point_of(run.gain))
    kinds: list[tuple[str, Colour, list[Placed]]] = [
        (FRONT, "good", [run for run in drawn if run.is_on_front]),
        (BEHIND, "c", [run for run in drawn if not run.is_on_front]),
    ]
    return [kind for kind in kinds if kind[2]]


def _ends(measured: Measured) -> tuple[float, float] | None:
    return (measured.low, measured.high) if isinstance(measured, Change) else None


def labels_of(group: Group) -> dict[str, str]:
    """Return short labels of a group's runs by name."""
    names = [run.entry.name for run in group.runs]
    return dict(zip(names, short_names(names), strict=True))


def short_names(names: list[str]) -> list[str]:
    """Return names without the words that all of them begin with: `tiny-peak_lr_0.1`, `tiny-peak_lr_0.2` become `0.1`, `0.2`."""
    shared = commonprefix(names) if len(names) > 1 else ""
    begin = max(shared.rfind("-"), shared.rfind("_")) + 1
    return [name[begin:] for name in names]


def _runs(group: Group) -> str:
    """Return two tables: what each run was given and what came of it, and what its training took."""
    notes, named, labels = Notes(), headings(group), labels_of(group)
    results, costs = [], []
    for run in group.runs:
        figures = figures_of(run)
        cells = {key: _cell(shown, notes) for key, shown in figures.items()}
        rank = None if run.ahead is None else float(len(run.ahead))
        settings = map(_setting, group.settings.of(run.entry.name))
        results.append(
            (run.entry.name, *settings, str(run.entry.state), cells["gain"], cells["forgetting"], Cell(_standing(run, labels), rank))
        )
        costs.append((run.entry.name, *(cells[key] for key in COSTS)))
    head = ("run", *group.settings.apart, "state", "gain", "forgetting", "front")
    state = len(head) - 4
    about = f"{named['gain'].capitalize()}; {named['forgetting']}: positive is worse than the base. {interval_words(group)}"
    return (
        f'<p class="soft">{escape(about)}</p>'
        + table(head, results, numbers=(*range(1, state), state + 1, state + 2), is_sortable=True)
        + "<h3>What training took</h3>"
        + table(("run", *(named[key] for key in COSTS)), costs, numbers=range(1, len(COSTS) + 1), is_sortable=True)
        + numbered(notes)
    )


def _standing(run: Placed, labels: dict[str, str]) -> str:
    if not run.ahead:
        return run.standing
    leads = sorted(run.ahead, key=lambda lead: not lead.is_sure)
    more = f" and {len(leads) - 1} more" if len(leads) > 1 else ""
    return f"{'surely' if leads[0].is_sure else 'perhaps'} behind {labels[leads[0].name]}{more}"


def _against(group: Group, against: Against) -> str:
    """Return the table of the other trained models minus the reference's."""
    notes = Notes()
    rows = [
        (each.name, *map(_setting, group.settings.of(each.name)), *(_cell(of_change(one), notes) for one in (each.gain, each.forgetting)))
        for each in against.differences
    ]
    head = ("run", *group.settings.apart, "gain", "forgetting")
    title = f"<h3>Minus {escape(against.reference)}</h3>{note(against.explained)}"
    return title + table(head, rows, numbers=range(1, len(head)), is_sortable=True) + numbered(notes)


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
    rows = []
    for entry, why in comparison.waiting:
        tokens = of_figure(entry.tokens, "{:,.0f}")
        settings = map(_setting, comparison.settings.of(entry.name))
        rows.append((entry.name, str(entry.state), *settings, Cell(tokens.text, tokens.value), why))
    head = ("run", "state", *comparison.settings.apart, "tokens", "why it stands in no group")
    return f"<h2>Not measured, or on rules of their own</h2>{table(head, rows, numbers=range(2, len(head) - 1), is_sortable=True)}"


def _bills(comparison: Comparison) -> str:
    notes = Notes()
    rows = [(entry.name, *(_cell(shown, notes) for shown in bill_of(entry).values())) for entry in comparison.entries]
    head = ("run", "time", *(name for _, name, _, _ in BILL))
    return f"<h2>Bill of all stages</h2>{table(head, rows, numbers=range(1, len(head)), is_sortable=True)}{numbered(notes)}"


def _equal(settings: Differing) -> str:
    unset = [key for key in settings.equal if key not in settings.set_and_equal]
    below = f'<p class="soft">Not set in any: {escape(", ".join(unset))}.</p>' if unset else ""
    return (
        f"<details><summary>{len(settings.set_and_equal)} settings are equal in all of them</summary>"
        f"{table(('setting', 'value'), settings.set_and_equal.items(), hashes=(1,))}{below}</details>"
    )


def numbered(notes: Notes) -> str:
    """Return the reasons that cells refer to, each with its number."""
    lines = "".join(f"<li>[{number}] {escape(text)}</li>" for number, text in enumerate(notes.texts, 1))
    return f'<ul class="soft plain">{lines}</ul>' if lines else ""
