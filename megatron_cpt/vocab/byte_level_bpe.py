"""Byte-level BPE as a family of bases."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from megatron_cpt.record.store import write_text
from megatron_cpt.vocab.byte_level import CHARACTER_OF_BYTE, piece_bytes
from megatron_cpt.vocab.family import Barred
from megatron_cpt.vocab.forced import Outcome, force_terms
from megatron_cpt.vocab.merges import Merge, WordTable, count_words, neighbour_pairs


class ByteLevelBpe:
    """Byte-level BPE in a tokenizer.json (GPT-2, Llama-3, Qwen, SmolLM style): pairs of ids are merged, words come from a regex."""

    title = "byte-level BPE"
    remark = ""

    def piece_bytes(self, piece: str) -> bytes | None:
        return piece_bytes(piece)

    def missing_bytes(self, vocab: Mapping[str, int]) -> list[int]:
        """Return the bytes that have no piece of their own; the library drops them from a text without a word."""
        return sorted(byte for byte, character in CHARACTER_OF_BYTE.items() if character not in vocab)

    def barred(self, tokenizer: Tokenizer, texts: Iterable[str]) -> Barred:
        pairs, num_documents, num_bytes = neighbour_pairs(tokenizer, texts)
        return Barred(pairs, frozenset(), num_documents, num_bytes)

    def words(self, tokenizer: Tokenizer, texts: Iterable[str]) -> WordTable:
        return count_words(tokenizer, texts)

    def force(
        self,
        tokenizer: Tokenizer,
        terms: Sequence[str],
        *,
        first_new_id: int,
        barred: Barred,
        domain: Callable[[], Iterator[str]],
        general: Callable[[], Iterator[str]],
        max_share: float,
    ) -> tuple[list[Merge], list[Outcome]]:
        return force_terms(
            tokenizer, terms, first_new_id=first_new_id, forbidden=barred.pairs, domain=domain, general=general, max_share=max_share
        )

    def refuses(self, barred: Barred) -> Callable[[str, set[str]], bool]:
        return lambda piece, taken: False

    def pairs(self, merge: Merge, piece_of: Mapping[int, str], vocab: Mapping[str, int]) -> list[tuple[str, str]]:
        return [(piece_of[merge.left], piece_of[merge.right])]

    def write_beside(self, folder: Path, base_folder: Path, data: dict[str, Any], merges: Sequence[Merge], *, num_base_ids: int) -> None:
        """Write GPT-2's older pair of files, which says the same as tokenizer.json; a stale copy would be another vocabulary."""
        if not ((base_folder / "vocab.json").is_file() and (base_folder / "merges.txt").is_file()):
            return
        model = data["model"]
        lines = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        write_text(folder / "vocab.json", json.dumps(model["vocab"], ensure_ascii=False))
        write_text(folder / "merges.txt", "\n".join(["#version: 0.2", *lines]) + "\n")
