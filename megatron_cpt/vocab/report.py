"""The vocabulary report: figures side by side, and whether extending pays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from megatron_cpt.record.vocab_contract import Check

NUM_SHOWN_PIECES = 40
# Dagan et al. 2024, arXiv 2402.01035 (through secondary sources): a changed tokenizer paid from about 50 billion tokens on, and lost at 5.
BREAK_EVEN_TOKENS = 50e9
WORTHWHILE_SAVING = 0.10  # this project's own threshold
POOR_COVERAGE = 0.10  # this project's own: share of tokens that are parts of characters


def advice(saving: float | None, base_fragment_rate: float | None, num_new_pieces: int) -> dict[str, Any]:
    """Return whether extending pays, by which rule, and in words."""
    rule = (
        f"Below about {BREAK_EVEN_TOKENS / 1e9:.0f} billion planned tokens do not extend (a changed tokenizer then costs more training "
        f"than it saves), unless it saves more than {WORTHWHILE_SAVING:.0%} of the domain's tokens or the base covers the script poorly "
        f"(more than {POOR_COVERAGE:.0%} of its tokens are parts of characters)."
    )
    if num_new_pieces == 0:
        return {"rule": rule, "extend": False, "why": "not asked for: num_new_pieces is 0"}
    if saving is None or base_fragment_rate is None:
        return {"rule": rule, "extend": None, "why": "unknown: there is no held-out domain text to measure on"}
    grounds = []
    if saving > WORTHWHILE_SAVING:
        grounds.append(f"it saves {saving:.1%} of the tokens of held-out domain text")
    if base_fragment_rate > POOR_COVERAGE:
        grounds.append(f"{base_fragment_rate:.1%} of the base's tokens there are parts of characters")
    if grounds:
        return {"rule": rule, "extend": True, "why": "; ".join(grounds)}
    why = (
        f"it saves only {saving:.1%}; it pays from about {BREAK_EVEN_TOKENS / 1e9:.0f} billion training tokens on, "
        "so do not extend for fewer"
    )
    return {"rule": rule, "extend": False, "why": why}


def fit_rows(fits: dict[str, dict[str, Any] | None]) -> list[str]:
    rows = []
    for name, fit in fits.items():
        if fit is None:
            rows.append(f"| {name} | unknown (no such text) | | | | | | |")
            continue
        rows.append(
            f"| {name} | {fit['bytes_per_token']:.3f} | {fit['tokens_per_char']:.4f} | {fit['fertility']:.3f} | {fit['unknown_rate']:.4%} "
            f"| {fit['byte_fragment_rate']:.2%} | {fit['ids_used']:,} of {fit['num_ids']:,} | {fit['new_ids_used']:,} |"
        )
    return rows


def report_markdown(report: dict[str, Any], checks: Sequence[Check], pieces: Sequence[dict[str, Any]]) -> str:
    lines = ["# Vocabulary report", "", f"Advice: {report['advice']['why']}.", "", f"Rule: {report['advice']['rule']}", ""]
    for role, title in (("domain", "Held-out domain text"), ("general", "Held-out general text")):
        lines += [
            f"## {title}", "",
            "| vocabulary | bytes per token | tokens per character | fertility | unknown | byte fragments | ids used | new ids used |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
            *fit_rows(report[role]), "",
        ]  # fmt: skip
    lines += [
        "Fertility is tokens per word; one CJK character is a word. A byte fragment is a token that is no valid UTF-8 on its own.",
        "The SentencePiece rows are vocabularies of their own, trained on the domain sample only: they show what BPE and Unigram make of",
        "that many pieces, and are no extension of the base.", "", report["comparison"], "",
        "## Contract", "", "| clause | holds | cases | remark |", "| --- | --- | ---: | --- |",
        *(f"| {check.name} | {'yes' if check.holds else 'NO'} | {check.num_cases:,} | {cell(check.detail)} |" for check in checks),
    ]  # fmt: skip
    if pieces:
        lines += ["", f"## First new pieces of {len(pieces):,}", "", "| id | piece | tokens saved on the sample |", "| ---: | --- | ---: |"]
        lines += [
            f"| {piece['id']} | {cell(piece['piece']).replace(' ', '␠')} | {piece['count']:,} |" for piece in pieces[:NUM_SHOWN_PIECES]
        ]
    return "\n".join(lines) + "\n"


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("`", "'").replace("\n", "⏎").replace("\t", "⇥")
