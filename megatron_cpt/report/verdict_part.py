"""The verdict and its reasons, first on the page."""

from __future__ import annotations

from html import escape

from megatron_cpt.charts.page import table
from megatron_cpt.report.records import RunRecords
from megatron_cpt.report.section import Section, figure_text, interval_text, note, notes
from megatron_cpt.report.summary import VERDICT_WORDS


def verdict_head(records: RunRecords) -> str:
    """Return the decision in a word, and why."""
    verdict = records.verdict
    decision = verdict.decision if verdict else "unknown"
    words = VERDICT_WORDS[decision] if verdict else "Not judged yet"
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in verdict.reasons) if verdict else ""
    return f'<p class="verdict {decision}">{escape(words)}</p><ul>{reasons}</ul>{notes(verdict.notes if verdict else ())}'


def rules(records: RunRecords) -> Section | None:
    """Return the gate's rules with what each was found to be; None when nothing was judged."""
    verdict = records.verdict
    if verdict is None or not verdict.rules:
        return None
    rows = [
        (
            rule.name,
            rule.kind.replace("_", " ") + (f" by {rule.margin:g}" if rule.margin else "") + ("" if rule.required else " (advisory)"),
            rule.outcome,
            figure_text(rule.base),
            figure_text(rule.candidate),
            figure_text(rule.difference, "{:+.4f}"),
            interval_text(rule.low, rule.high),
        )
        for rule in verdict.rules
    ]
    head = ("on", "rule", "outcome", "base", "candidate", "difference", f"{verdict.confidence:.0%} interval")
    words = notes([str(rule) for rule in verdict.rules])
    text = "The gate's own figures: corrected for the number of rules, without items that overlap with the training data."
    return Section("rules", "The gate's rules", table(head, rows, numbers=(3, 4, 5, 6), is_sortable=True) + words + note(text))


def rounds(records: RunRecords) -> Section | None:
    """Return a line for each round that was judged; None when there was one round."""
    if not records.rounds:
        return None
    return Section("rounds", "Rounds", f"<ol>{''.join(f'<li>{escape(each)}</li>' for each in records.rounds)}</ol>")
