"""What the vocab stage tells later stages and the user of its result."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import Any

from megatron_cpt.config.schema import TokenizerConfig
from megatron_cpt.record.typed import to_plain
from megatron_cpt.record.vocab_layout import VocabLayout, padded_rows
from megatron_cpt.vocab import contract
from megatron_cpt.vocab.base import BaseTokenizer
from megatron_cpt.vocab.byte_level import is_utf8
from megatron_cpt.vocab.compare import tokens_against
from megatron_cpt.vocab.merges import Merge

LINE_CHARS = 62  # what the line leaves of 80 columns

Economy = Callable[..., dict[str, Any]]  # num_new_rows, num_base_rows, num_padded_rows, domain_ratio, general_ratio


def economy_of(
    economy: Economy | None, fits: dict[str, Any], base: BaseTokenizer, layout: VocabLayout, settings: TokenizerConfig
) -> dict[str, Any] | None:
    """Return the break-even; None without new rows, without domain text to measure on or without a model."""
    domain_ratio = tokens_against(fits["domain"], "extended")
    if economy is None or domain_ratio is None or layout.num_ids == base.num_rows:
        return None
    return economy(
        num_new_rows=layout.num_ids - base.num_rows,
        num_base_rows=padded_rows(base.num_rows, multiple=settings.pad_rows_to_multiple),
        num_padded_rows=layout.num_padded_rows,
        domain_ratio=domain_ratio,
        general_ratio=tokens_against(fits["general"], "extended") or 1.0,
    )


def facts_of(
    base: BaseTokenizer,
    layout: VocabLayout,
    merges: list[Merge],
    report: dict[str, Any],
    *,
    saving: float | None,
    num_clauses: int,
) -> dict[str, Any]:
    used = (
        "bytes_per_token", "tokens_per_char", "fertility", "unknown_rate", "byte_fragment_rate", "byte_fallback_rate", "character_coverage",
        "ids_used", "new_ids_used",
    )  # fmt: skip
    short = {
        role: {name: None if fit is None else {key: fit[key] for key in used} for name, fit in report[role].items()}
        for role in ("domain", "general")
    }
    return {
        "layout": to_plain(layout),
        "fingerprint": layout.fingerprint,
        "num_new_pieces": len(merges),
        "unnamed_base_rows": base.num_rows - len(set(base.tokenizer.get_vocab(with_added_tokens=True).values())),
        "new_pieces_that_are_character_parts": sum(not is_utf8(contract.new_piece_bytes(base.family, merge)) for merge in merges),
        "domain": short["domain"],
        "general": short["general"],
        "domain_token_saving": saving,
        "advice": report["advice"],
        "economy": report["economy"],
        "contract_clauses": num_clauses,
    }


def say_result(facts: dict[str, Any], say: Callable[[str], None]) -> None:
    layout = facts["layout"]
    say_wrapped(say, f"{layout['num_base_ids']:,} base ids, {layout['num_ids']:,} with new ones, {layout['num_padded_rows']:,} padded rows")
    before, after = facts["domain"]["base"], facts["domain"]["extended"]
    if before and after:
        old, new = before["tokens_per_char"], after["tokens_per_char"]
        say_wrapped(say, f"held-out domain text needs {old:.3f} tokens per character with the base, {new:.3f} with the new pieces")
    say_wrapped(say, f"all {facts['contract_clauses']} clauses of the contract hold; advice: {facts['advice']['why']}")


def say_wrapped(say: Callable[[str], None], text: str) -> None:
    """Say a text of this stage in lines that fit a terminal."""
    for line in textwrap.wrap(text, LINE_CHARS, break_long_words=False, break_on_hyphens=False):
        say(f"vocab: {line}")
