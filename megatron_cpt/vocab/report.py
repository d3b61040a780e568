"""The vocabulary report as Markdown: figures side by side, and whether extending pays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from megatron_cpt.record.vocab_contract import Check
from megatron_cpt.vocab.advice import economy_rows

NUM_SHOWN_PIECES = 40
TITLES = {"domain": "Held-out domain text", "general": "Held-out general text"}
HEAD = (
    "vocabulary", "bytes per token", "tokens per character", "fertility", "unknown", "byte fallback", "byte fragments",
    "characters covered", "distinct ones covered", "ids used", "new ids used",
)  # fmt: skip
NOTES = (
    "Fertility is tokens per word; one CJK character is a word. A byte fragment is a token that is no valid UTF-8 on its own; a byte "
    "fallback is a single byte in place of a character without a piece. A character is covered when a piece is it or holds it, bytes left "
    "out. SentencePiece and byte-level candidates are vocabularies of their own, trained on the domain sample only: they show what that "
    "many pieces can do, and are no extension of the base."
)
TERMS_NOTE = "A term is cut as it stands at the beginning of a text and after a space; the shorter of both counts."


def fit_rows(fits: dict[str, dict[str, Any] | None]) -> list[list[str]]:
    """Return a row of `HEAD` for each vocabulary; what was not measured is unknown."""
    rows = []
    for name, fit in fits.items():
        if fit is None:
            rows.append([name, "unknown (no such text)", *[""] * (len(HEAD) - 2)])
            continue
        rows.append([
            name, f"{fit['bytes_per_token']:.3f}", f"{fit['tokens_per_char']:.4f}", f"{fit['fertility']:.3f}", f"{fit['unknown_rate']:.4%}",
            f"{fit['byte_fallback_rate']:.2%}", f"{fit['byte_fragment_rate']:.2%}", f"{fit['character_coverage']:.2%}",
            f"{fit['distinct_coverage']:.2%}", f"{fit['ids_used']:,} of {fit['num_ids']:,}", f"{fit['new_ids_used']:,}",
        ])  # fmt: skip
    return rows


def term_rows(terms: dict[str, Any]) -> list[list[str]]:
    return [[name, f"{of['share_of_one_token']:.1%}", f"{of['tokens_per_term']:.2f}"] for name, of in terms["of"].items()]


def report_markdown(report: dict[str, Any], checks: Sequence[Check], pieces: Sequence[dict[str, Any]]) -> str:
    lines = ["# Vocabulary report", ""]
    if "advice" in report:
        lines += [f"Advice: {report['advice']['why']}.", "", f"Rule: {report['advice']['rule']}", ""]
    if report.get("economy"):
        lines += ["## Break-even", "", *markdown_table(("figure", "value"), economy_rows(report["economy"])), ""]
    for role, title in TITLES.items():
        if role in report:
            lines += [f"## {title}", "", *markdown_table(HEAD, fit_rows(report[role])), ""]
    lines += [NOTES, "", *(f"- {remark}" for remark in report["comparison"]), ""]
    if report.get("terms"):
        head = ("vocabulary", "terms that are one token", "tokens per term")
        title = f"## The {report['terms']['num_terms']:,} terms of the list"
        lines += [title, "", *markdown_table(head, term_rows(report["terms"])), "", TERMS_NOTE, *report["terms"]["remarks"], ""]
    if checks:
        rows = [(check.name, "yes" if check.holds else "NO", f"{check.num_cases:,}", check.detail) for check in checks]
        lines += ["## Contract", "", *markdown_table(("clause", "holds", "cases", "remark"), rows), ""]
    if pieces:
        shown = [(piece["id"], piece["piece"].replace(" ", "␠"), f"{piece['count']:,}") for piece in pieces[:NUM_SHOWN_PIECES]]
        lines += [f"## First new pieces of {len(pieces):,}", "", *markdown_table(("id", "piece", "tokens saved on the sample"), shown)]
    return "\n".join(lines).rstrip() + "\n"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *([cell(str(each)) for each in row] for row in rows))]


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("`", "'").replace("\n", "⏎").replace("\t", "⇥")
