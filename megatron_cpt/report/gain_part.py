"""Domain gain against general forgetting over tokens, and the scores of texts and benchmarks."""

from __future__ import annotations

import math
from collections.abc import Sequence

from megatron_cpt.charts.data import COLOURS, Axis, Colour, Mark, Series, XYChart
from megatron_cpt.charts.figure import charts, figure
from megatron_cpt.charts.page import table
from megatron_cpt.report.records import RunRecords, TaskScores
from megatron_cpt.report.section import Section, change_text, figure_text, note, notes
from megatron_cpt.report.steps import is_number
from megatron_cpt.report.trajectory import Course, courses

AGAINST_BASE = Axis("bits per byte against base")
TOKENS = Axis("tokens trained on")
BASE = Mark(0.0, "frozen base")


def gain(records: RunRecords) -> Section:
    """Return the course of every text over training, and its scores before and after."""
    plan = records.plan
    if plan is None:
        return Section("gain", "Gain and forgetting", "<p>Unknown: the run has no plan yet.</p>")
    found = courses(plan, records.training, baseline=records.baseline, candidate=records.candidate)
    margins = {rule.of: rule.margin for rule in plan.gate.rules if rule.kind == "may_not_worsen" and rule.metric == "bits_per_byte"}
    figures = [figure(chart) for chart in (*_over_tokens(found, margins), *_trade_off(found)) if any(each.points for each in chart.series)]
    rows = [
        (score.text, score.role, *map(figure_text, (score.base, score.extended, score.trained)), change_text(score.base, score.trained))
        for score in records.scores
    ]
    head = ("held-out text", "role", "frozen base", "extended", "trained", "against base")
    missing = list(dict.fromkeys(f"{each.text}, {why}" for each in found for why in each.missing))
    words = note(
        "Lower is better; bits per byte are comparable across vocabularies. “Extended” is the base with its new rows, before training.",
        f"Intervals are those of a single look at {plan.gate.confidence:.0%}, by a paired bootstrap over documents.",
        _sides(records),
    )
    return Section(
        "gain", "Gain and forgetting", charts(figures) + table(head, rows, numbers=(2, 3, 4, 5), is_sortable=True) + words + notes(missing)
    )


def _sides(records: RunRecords) -> str:
    plan = records.plan
    watched = [text.name for text in plan.eval.texts if text.watch_path is not None] if plan else []
    if not watched or not records.training.forgetting:
        return ""
    return f"While training the validation side of {', '.join(watched)} was scored, before and after it the test side."


def _over_tokens(found: Sequence[Course], margins: dict[str, float]) -> list[XYChart]:
    drawn = []
    for role, title in {"domain": "Domain texts: gain", "general": "General texts: forgetting"}.items():
        mine = [each for each in found if each.role == role]
        series = [
            Series(
                each.text,
                [(place.tokens, place.difference) for place in each.places],
                COLOURS[(number + (role == "general")) % len(COLOURS)],
                intervals=[place.interval for place in each.places],
                mode="both",
            )
            for number, each in enumerate(mine)
        ]
        allowed: dict[float, list[str]] = {}
        for each in mine:
            if each.text in margins:
                allowed.setdefault(margins[each.text], []).append(each.text)
        colour: Colour = "bad"
        levels = [Mark(margin, f"the gate's margin for {', '.join(names)}", colour) for margin, names in allowed.items() if margin]
        drawn.append(XYChart(title, series, TOKENS, AGAINST_BASE, levels=[BASE, *levels]))
    return drawn


def _trade_off(found: Sequence[Course]) -> list[XYChart]:
    """Return the mean change of the domain texts over that of the general ones, at each point where every text was scored."""
    means: dict[str, dict[str, list[float]]] = {}
    for course in found:
        for place in course.places:
            means.setdefault(place.what, {}).setdefault(course.role, []).append(place.difference)
    wanted = {role: sum(course.role == role for course in found) for role in ("domain", "general")}
    points = [
        (what, math.fsum(by_role["general"]) / wanted["general"], -math.fsum(by_role["domain"]) / wanted["domain"])
        for what, by_role in means.items()
        if all(number and len(by_role.get(role, ())) == number for role, number in wanted.items())
    ]
    if len(points) < 2:
        return []
    shown = [what for what, _, _ in points]
    labels = [what if what in ("extended", "trained") or len(shown) <= 8 else "" for what in shown]
    path = Series("course of training", [(x, y) for _, x, y in points], labels=labels, mode="both")
    axes = Axis("general texts, mean worsening in bits per byte"), Axis("domain gain in bits per byte")
    return [XYChart("Gain against forgetting", [path], *axes, levels=[Mark(0.0, "no gain")], marks=[Mark(0.0, "no forgetting")])]


def benchmarks(records: RunRecords) -> Section | None:
    """Return the scores of benchmarks, and their course where they were scored while training; None when the run has none."""
    if not records.tasks:
        return None
    rows = [
        (row.task, row.group, row.metric, *map(figure_text, (row.base, row.extended, row.trained)), change_text(row.base, row.trained))
        for row in records.tasks
    ]
    head = ("benchmark", "group", "metric", "frozen base", "extended", "trained", "against base")
    text = (
        "Higher is better, except for a stereotype score, which is fair at 0.5, and for a gap between subgroups. "
        "Items that overlap with the training data are counted here and left out by the gate."
    )
    drawn = charts([figure(_course_of_tasks(records))]) if any(record.get("tasks") for record in records.training.evals) else ""
    return Section("benchmarks", "Benchmarks", drawn + table(head, rows, numbers=(3, 4, 5, 6), is_sortable=True) + note(text))


def _course_of_tasks(records: RunRecords) -> XYChart:
    """Return each task's first metric over tokens: the extended model, the evaluations while training, the trained one."""
    tokens_at = records.training.tokens_at()
    first: dict[str, TaskScores] = {}
    for row in records.tasks:
        first.setdefault(row.task, row)
    series = []
    for number, row in enumerate(first.values()):
        points = {0.0: row.extended, max(tokens_at.values()): row.trained}
        for record in records.training.evals:
            points.setdefault(tokens_at.get(record["step"], -1.0), record.get("tasks", {}).get(row.task, {}).get(row.metric))
        kept = sorted((tokens, value) for tokens, value in points.items() if tokens >= 0 and value is not None and is_number(value))
        series.append(Series(f"{row.task} {row.metric}", kept, COLOURS[number % len(COLOURS)], mode="both"))
    return XYChart("Benchmarks while training", series, TOKENS, Axis("score"))
