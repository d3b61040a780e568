"""The byte alphabet of GPT-2 style tokenizers: every byte has a printable character, so pieces are written as text in a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from megatron_cpt.record.store import write_text
from megatron_cpt.vocab.family import Barred
from megatron_cpt.vocab.merges import Merge, WordTable, count_words, neighbour_pairs

# Bytes that are printable in Latin-1 stand for themselves; the others are shifted to U+0100 and up, in order.
_KEPT = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_SHIFTED = [byte for byte in range(256) if byte not in set(_KEPT)]
CHARACTER_OF_BYTE = {byte: chr(byte) for byte in _KEPT} | {byte: chr(0x100 + place) for place, byte in enumerate(_SHIFTED)}
BYTE_OF_CHARACTER = {character: byte for byte, character in CHARACTER_OF_BYTE.items()}


def piece_bytes(piece: str) -> bytes | None:
    """Return the bytes that a piece stands for, or None when it is not written in the byte alphabet (a special token)."""
    try:
        return bytes(BYTE_OF_CHARACTER[character] for character in piece)
    except KeyError:
        return None


def is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def readable(data: bytes) -> str:
    """Return a piece as text, or as hex when it is a fragment of a character."""
    return data.decode("utf-8") if is_utf8(data) else f"0x{data.hex()}"


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
