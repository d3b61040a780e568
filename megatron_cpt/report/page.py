"""Writes `report.html`, one self-contained page, and `summary.txt` from the records of a run."""

from __future__ import annotations

from html import escape
from pathlib import Path

from megatron_cpt.charts.data import Axis, Series, XYChart, thinned
from megatron_cpt.charts.figure import charts, figure
from megatron_cpt.charts.page import table, whole_page
from megatron_cpt.meter.account import difference_lines
from megatron_cpt.meter.difference import differences
from megatron_cpt.meter.ledger import JOULES_PER_KWH
from megatron_cpt.plan.page import show_duration
from megatron_cpt.record.store import write_text
from megatron_cpt.record.unknown import Unavailable, show
from megatron_cpt.report.records import RunRecords
from megatron_cpt.report.summary import VERDICT_WORDS, summary


def write_report(folder: Path, run_dir: Path) -> None:
    """Write the page and the summary of a run; what is not recorded is shown as unknown."""
    records = RunRecords.read(run_dir)
    write_text(folder / "summary.txt", summary(records))
    write_text(folder / "report.html", html(records))


def html(records: RunRecords) -> str:
    """Return the whole page."""
    parts = (_verdict, _rounds, _tasks, _training, _texts, _completions, _bill, _stages)
    return whole_page(records.run_dir.name, "".join(part(records) for part in parts), is_interactive=True)


def _verdict(records: RunRecords) -> str:
    verdict = records.verdict
    decision = verdict.decision if verdict else "unknown"
    words = VERDICT_WORDS[decision] if verdict else "Not judged yet"
    rows = [
        (score.text, score.role, _bits(score.base), _bits(score.extended), _bits(score.trained), _change(score.base, score.trained))
        for score in records.scores
    ]
    reasons = "".join(f"<li>{escape(str(rule))}</li>" for rule in verdict.rules or verdict.reasons) if verdict else ""
    head = ("held-out text", "role", "frozen base", "extended", "trained", "against base")
    return (
        f'<p class="verdict {decision}">{escape(words)}</p><ul>{reasons}</ul>'
        f"<h2>Bits per byte</h2>{table(head, rows, numbers=(2, 3, 4, 5))}"
        '<p class="soft">Lower is better; comparable across vocabularies. “Extended” is the base with its new rows, before training.</p>'
    )


def _tasks(records: RunRecords) -> str:
    if not records.tasks:
        return ""
    rows = [
        (row.task, row.group, row.metric, _bits(row.base), _bits(row.extended), _bits(row.trained), _change(row.base, row.trained))
        for row in records.tasks
    ]
    head = ("benchmark", "group", "metric", "frozen base", "extended", "trained", "against base")
    note = (
        '<p class="soft">Higher is better, except for a stereotype score, which is fair at 0.5, and for a gap between subgroups. '
        "Items that overlap with the training data are counted here and left out by the gate.</p>"
    )
    return f"<h2>Benchmarks</h2>{table(head, rows, numbers=(3, 4, 5, 6))}{note}"


def _rounds(records: RunRecords) -> str:
    if not records.rounds:
        return ""
    return f"<h2>Rounds</h2><ol>{''.join(f'<li>{escape(each)}</li>' for each in records.rounds)}</ol>"


def _bits(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"


def _change(base: float | None, trained: float | None) -> str:
    return "unknown" if base is None or trained is None else f"{trained - base:+.4f}"


def _training(records: RunRecords) -> str:
    steps = records.steps
    if not steps:
        return "<h2>Training</h2><p>No step is recorded.</p>"

    def points(key: str) -> list[tuple[float, float]]:
        return [(float(step["tokens"]), float(step[key])) for step in steps if isinstance(step.get(key), int | float)]

    tokens = Axis("tokens")
    shown = [
        XYChart("Training loss", [Series("loss", thinned(points("loss")))], tokens, Axis("nats per token")),
        XYChart("Learning rate", [Series("rate", thinned(points("lr")), "b")], tokens, Axis("rate")),
        XYChart("Gradient norm", [Series("norm", thinned(points("grad_norm")))], tokens, Axis("L2 norm")),
        XYChart("Throughput", [Series("tokens/s", thinned(points("tokens_per_second")), "b")], tokens, Axis("tokens/s")),
    ]
    return f"<h2>Training</h2>{charts([figure(each) for each in shown])}"


def _texts(records: RunRecords) -> str:
    if records.plan is None:
        return ""
    consumed = records.facts("train").get("sources", {})
    rows = [
        (
            entry.source,
            entry.role,
            entry.licence,
            f"{entry.share:.1%}",
            f"{entry.num_epochs:.2f}",
            f"{consumed[entry.source]['tokens']:,}" if entry.source in consumed else "unknown",
        )
        for entry in records.plan.blend
    ]
    head = ("source", "role", "licence", "planned share", "planned epochs", "tokens consumed")
    licences = records.facts("train").get("licences", {})
    by_licence = ", ".join(f"{licence} {tokens:,}" for licence, tokens in licences.items())
    note = f'<p class="soft">Tokens consumed by licence: {escape(by_licence)}.</p>' if by_licence else ""
    return f"<h2>Texts</h2>{table(head, rows, numbers=(3, 4, 5))}{note}"


def _completions(records: RunRecords) -> str:
    rows = [(each["prompt"], each["base"], each["continued"]) for each in records.facts("export").get("completions", [])]
    if not rows:
        return ""
    note = '<p class="soft">Greedy, from the frozen base and from the exported model. No score is taken from them.</p>'
    return f"<h2>Completions</h2>{table(('prompt', 'frozen base', 'continued'), rows)}{note}"


def _bill(records: RunRecords) -> str:
    notes: list[str] = []
    rows = []
    for total in records.totals:
        states = ", ".join(f"{count} {status}" for status, count in total.num_by_status.items())
        seconds = total.seconds.show("{:.1f}")
        money, energy = total.usd.show("{:.4g}"), total.joules.show("{:.4g}", 1 / JOULES_PER_KWH)
        hours, site = total.device_seconds.show("{:.4g}", 1 / 3600), total.site_kwh.show("{:.4g}")
        carbon = total.g_co2e.show("{:.4g}")
        rows.append((total.stage, states, seconds, *(_noted(text, notes) for text in (hours, money, energy, site, carbon))))
    head = ("stage", "attempts", "seconds", "device-hours", "USD", "kWh at the meters", "kWh with PUE", "g CO2e")
    page = f"<h2>Time, money, energy</h2>{table(head, rows, numbers=(2, 3, 4, 5, 6, 7))}"
    page += "".join(f'<p class="soft">[{number}] {escape(note)}</p>' for number, note in enumerate(notes, 1))
    if records.plan:
        estimate = records.plan.estimate
        likely = estimate.seconds
        spread = (
            str(likely)
            if isinstance(likely, Unavailable)
            else f"{show_duration(likely)} ({show_duration(estimate.seconds_low)} to {show_duration(estimate.seconds_high)})"
        )
        page += f"<p>The plan expected for training: time {escape(spread)}; cost {escape(show(estimate.usd, '{:.4g} USD'))}; "
        page += f"energy {escape(show(estimate.kwh, '{:.4g} kWh'))}; carbon {escape(show(estimate.kg_co2e, '{:.4g} kg CO2e'))}.</p>"
    reasons = difference_lines(differences(records.attempts))
    if reasons:
        page += f"<pre>{escape(chr(10).join(line.removeprefix('  ') for line in reasons))}</pre>"
    return page


def _noted(text: str, notes: list[str]) -> str:
    """Return a figure for a narrow cell; the words behind it go to the notes below the table, each once."""
    figure, _, words = text.partition(" (")
    if not words:
        return text
    words = words.removesuffix(")")
    if words not in notes:
        notes.append(words)
    return f"{figure} [{notes.index(words) + 1}]"


def _stages(records: RunRecords) -> str:
    rows = [(name, manifest.fingerprint, manifest.commit[:12]) for name, manifest in records.manifests.items()]
    versions = next(reversed(records.manifests.values())).versions if records.manifests else {}
    listed = ", ".join(f"{package} {version}" for package, version in versions.items())
    return f'<h2>Lineage</h2>{table(("stage", "fingerprint", "commit"), rows, hashes=(1, 2))}<p class="soft">{escape(listed)}</p>'
