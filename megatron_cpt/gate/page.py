"""A verdict for people: a table for the terminal, and `verdict.md`, one page that says what was decided and on what evidence."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from megatron_cpt.errors import printable
from megatron_cpt.gate.statistics import POWER
from megatron_cpt.gate.verdict import RuleResult, Verdict

NAME_WIDTH = 19
WIDTH = 82  # the line indents its own lines by 18 columns, and a terminal has about 100
DECISIONS = {
    "promote": "PROMOTE: everything that the rules ask was shown.",
    "rollback": "ROLLBACK: harm was shown.",
    "unknown": "UNKNOWN: neither was shown. Nothing is promoted and nothing is rolled back.",
}


def verdict_lines(verdict: Verdict) -> list[str]:
    """Return the verdict as lines of at most 82 columns: a row for each rule, then why.

    `detects` is the smallest difference that so many items show in four cases of five.
    """
    lines = []
    if verdict.rules:
        width = min(NAME_WIDTH, max(len(_short(rule)) for rule in verdict.rules))
        lines.append(f"{'rule':<{width}} items    base trained   change {'interval':<15} detects outcome")
        lines += [_row(rule, width) for rule in verdict.rules]
        if not all(rule.required for rule in verdict.rules):
            lines.append("* advisory: decides nothing")
    lines += [f"verdict: {verdict.decision}"]
    for reason in (*verdict.reasons, *(f"note: {note}" for note in verdict.notes)):
        lines += textwrap.wrap(reason, WIDTH, initial_indent="- ", subsequent_indent="  ", break_long_words=True)
    return lines


def _short(rule: RuleResult, width: int = WIDTH) -> str:
    """Return what the rule asks of what, in at most `width` columns: the name is cut, never the promise."""
    promise = (" better" if rule.kind == "must_improve" else " no worse") + ("" if rule.required else "*")
    name = printable(rule.name)
    room = width - len(promise)
    return (name if len(name) <= room else name[: room - 1] + "…") + promise


def _row(rule: RuleResult, width: int) -> str:
    interval = "unknown" if rule.low is None or rule.high is None else f"{rule.low:+.4f} {rule.high:+.4f}"
    figures = f"{rule.num_items:>5} {_figure(rule.base):>7} {_figure(rule.candidate):>7} {_figure(rule.difference, '+'):>8}"
    return f"{_short(rule, width):<{width}} {figures} {interval:<15} {_figure(rule.smallest_detectable):>7} {rule.outcome}"


def _figure(value: float | None, sign: str = "") -> str:
    return "unknown" if value is None else f"{value:{sign}.4f}"


def verdict_page(verdict: Verdict, *, run_name: str) -> str:
    """Return `verdict.md`."""
    rows = [
        (
            _cell(rule.name), rule.group, rule.kind.replace("_", " "), f"{rule.margin:g}", "yes" if rule.required else "advisory",
            _items(rule), _figure(rule.base), _figure(rule.candidate), _figure(rule.difference, "+"), _interval(rule),
            _figure(rule.p_failed if rule.outcome == "failed" else rule.p_passed), _figure(rule.smallest_detectable), rule.outcome,
        )
        for rule in verdict.rules
    ]  # fmt: skip
    head = (
        "on", "group", "must", "margin", "required", "items", "base", "trained", "change", "interval", "p", "smallest detectable", "outcome"
    )  # fmt: skip
    lines = [
        f"# {printable(run_name)}: {verdict.decision}",
        "",
        DECISIONS[verdict.decision],
        "",
        *[f"- {_cell(reason)}" for reason in verdict.reasons],
        *[f"- Note: {_cell(note)}." for note in verdict.notes],
        "",
        *(_table(head, rows) if rows else ["No rule was judged.", ""]),
        *[f"- {_cell(str(rule))}" + (f" [{rule.test}]" if rule.test else "") for rule in verdict.rules],
        "",
        _how(verdict),
        "",
        f"Step {'unknown' if verdict.step is None else verdict.step}. Weights: base `{verdict.base_weights_sha256 or 'unknown'}`, "
        f"candidate `{verdict.candidate_weights_sha256 or 'unknown'}`. Verdict: `{verdict.fingerprint}`.",
    ]
    return "\n".join(lines).rstrip() + "\n"


def _how(verdict: Verdict) -> str:
    side = (1 - verdict.confidence) / 2
    return (
        f"How it was judged: both models on the same items, paired. Confidence {verdict.confidence:.4g}, so {side:.4g} on each side "
        "unless a rule has its own, corrected for the number of required rules (Holm); advisory rules are a family of their own and "
        f"decide nothing. {verdict.bootstrap_samples:,} resamples from the seed {verdict.seed}. A rule passes or fails only where the "
        f"test and the interval agree. The smallest detectable difference is shown in {POWER:.0%} of runs that have it. "
        "Units: bits per byte for texts, shares from 0 to 1 for tasks."
    )


def _items(rule: RuleResult) -> str:
    return f"{rule.num_items} ({rule.num_excluded} left out)" if rule.num_excluded else f"{rule.num_items}"


def _interval(rule: RuleResult) -> str:
    return "unknown" if rule.low is None or rule.high is None else f"{rule.low:+.4f} to {rule.high:+.4f}"


def _cell(text: str) -> str:
    return printable(text).replace("|", "\\|").replace("<", "&lt;").replace("`", "'")


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *rows)] + [""]
