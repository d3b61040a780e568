"""The end of a run in one screen of text: scores, verdict and reasons, tokens, time, cost, energy, and where things are."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

from megatron_cpt.plan.page import show_duration
from megatron_cpt.record.unknown import Figure, Unavailable, show
from megatron_cpt.report.records import RunRecords, Scores, TaskScores

WIDTH = 80
INDENT = 10
VERDICT_WORDS = {"promote": "PROMOTED", "rollback": "ROLLED BACK", "unknown": "VERDICT UNKNOWN"}


def summary(records: RunRecords) -> str:
    """Return the summary, at most 80 columns wide except for paths."""
    verdict = records.verdict
    title = VERDICT_WORDS[verdict.decision] if verdict else "not judged yet"
    lines = [f"{records.run_dir.name}: {title}", ""]
    lines += _scores(records.scores) + _tasks(records.tasks)
    if verdict:
        lines += [line for rule in verdict.rules or verdict.reasons for line in _field("why", str(rule))]
    lines += [line for each in records.rounds for line in _field("rounds" if each == records.rounds[0] else "", each)]
    lines += _work(records) + _places(records)
    return "\n".join(lines) + "\n"


def _field(label: str, text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=f"{label:<{INDENT}}", subsequent_indent=" " * INDENT, break_long_words=False)


def _scores(scores: tuple[Scores, ...]) -> list[str]:
    if not scores:
        return []
    width = max(20, *(len(f"{score.text} ({score.role})") + 2 for score in scores))
    lines = [f"{'bits per byte':<{width}}{'frozen base':>13}{'extended':>11}{'trained':>10}{'against base':>15}"]
    for score in scores:
        change = "unknown" if score.base is None or score.trained is None else f"{score.trained - score.base:+.4f}"
        name = f"{score.text} ({score.role})"
        lines.append(f"{name:<{width}}{_bits(score.base):>13}{_bits(score.extended):>11}{_bits(score.trained):>10}{change:>15}")
    return [*lines, ""]


def _tasks(tasks: tuple[TaskScores, ...]) -> list[str]:
    if not tasks:
        return []
    names = [f"{row.task} {row.metric}" for row in tasks]
    width = max(20, *(len(name) + 2 for name in names))
    lines = [f"{'benchmark':<{width}}{'frozen base':>13}{'extended':>11}{'trained':>10}{'against base':>15}"]
    for name, row in zip(names, tasks, strict=True):
        change = "unknown" if row.base is None or row.trained is None else f"{row.trained - row.base:+.4f}"
        lines.append(f"{name:<{width}}{_bits(row.base):>13}{_bits(row.extended):>11}{_bits(row.trained):>10}{change:>15}")
    return [*lines, ""]


def _bits(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"


def _work(records: RunRecords) -> list[str]:
    plan, train, whole = records.plan, records.total("train"), records.total("all stages")
    lines: list[str] = []
    facts = records.facts("train")
    if facts:
        parts = ", ".join(f"{name} {source['tokens']:,}" for name, source in facts["sources"].items())
        lost = f"; {train.lost_tokens:,} more were read in steps that were lost and done anew" if train and train.lost_tokens else ""
        lines += _field("tokens", f"{facts['tokens']:,} in {facts['step']} steps: {parts}{lost}")
    if plan and train and whole:
        estimate = plan.estimate
        steps = show_duration(sum(step["seconds"] for step in records.steps))
        time = f"steps estimated {_interval(estimate.seconds_low, estimate.seconds, estimate.seconds_high)}, took {steps}"
        stage, line = _took(train.seconds.show("{}")), _took(whole.seconds.show("{}"))
        lines += _field("time", f"{time}; the train stage with start and checkpoints {stage}; all stages {line}")
        cost = f"training estimated {show(estimate.usd, '{:.4g} USD')}"
        lines += _field("cost", f"{cost}; all stages: {whole.usd.show('{:.4g} USD')}")
        energy = f"training estimated {show(estimate.kwh, '{:.4g} kWh')}"
        lines += _field("energy", f"{energy}; measured: {train.joules.show('{:.4g} kWh', 1 / 3.6e6)}")
    return lines


def _interval(low: Figure, likely: Figure, high: Figure) -> str:
    if isinstance(likely, Unavailable):
        return str(likely)
    return f"{show_duration(likely)} ({show_duration(low)} to {show_duration(high)})"


def _took(text: str) -> str:
    """Turn the leading number of a total into a duration; keep the words around it."""
    words = text.split(" ")
    for number, word in enumerate(words):
        try:
            words[number] = show_duration(float(word))
        except ValueError:
            continue
        break
    return " ".join(words)


def _places(records: RunRecords) -> list[str]:
    model = records.run_dir / "export" / "hf"
    report = records.run_dir / "report" / "report.html"
    exported = _shown(model) if model.is_dir() else "none: only a promoted checkpoint is exported"
    return [f"{'model':<{INDENT}}{exported}", f"{'report':<{INDENT}}{_shown(report)}"]


def _shown(path: Path) -> str:
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
