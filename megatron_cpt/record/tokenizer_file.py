"""Opens a `tokenizer.json` in the one way in which every stage encodes documents, and says what a text looks like after it.

Byte-level tokenizers give a text back as it is. SentencePiece ones mark each space by U+2581 and put one such mark, the dummy prefix,
before a text. So one document has one dummy prefix, and a text that goes on after another has none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from megatron_cpt.errors import DataError

SPACE_MARK = "\u2581"
BYTE_PIECE = re.compile("<0x([0-9A-F]{2})>")


def for_plain_text(tokenizer: Tokenizer) -> Tokenizer:
    """Set a tokenizer to encode documents: nothing cut or padded, and a special token's name inside a text stays plain text.

    So the end-of-document id stands only where a stage puts it, and index and evaluation see the same ids.
    """
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """Return a tokenizer for plain text.

    Raises:
        DataError: the file is missing or cannot be loaded.
    """
    if not path.is_file():
        raise DataError("A tokenizer.json is missing.", where=path)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises bare Exception for any damaged content
        raise DataError("A tokenizer.json cannot be loaded.", where=path, value=str(error)[:300]) from None
    return for_plain_text(tokenizer)


def marks_spaces(tokenizer: Tokenizer) -> bool:
    """Say whether a tokenizer is of the SentencePiece kind: spaces are marked, and bytes are pieces of their own."""
    return bool(getattr(tokenizer.model, "byte_fallback", False))


def dummy_prefix(tokenizer: Tokenizer) -> str:
    """Return what puts a space mark before a text: `always`, `unless a space begins it`, or nothing ("")."""
    if not marks_spaces(tokenizer):
        return ""
    if any(part["type"] == "Prepend" and part["prepend"] == SPACE_MARK for part in parts_of(_state(tokenizer.normalizer))):
        return "always"
    # huggingface/tokenizers: Metaspace adds its mark only where the text does not begin with one
    schemes = [part.get("prepend_scheme") for part in parts_of(_state(tokenizer.pre_tokenizer)) if part["type"] == "Metaspace"]
    return "unless a space begins it" if any(scheme in ("always", "first") for scheme in schemes) else ""


def normal_form(tokenizer: Tokenizer) -> Callable[[str], str]:
    """Return what decode(encode(text)) must be: the text as the tokenizer's own normaliser leaves it.

    A SentencePiece tokenizer cannot tell a space mark in the text from a space; where its prefix is `unless a space begins it`, it
    also drops the first space of a text.
    """
    if not marks_spaces(tokenizer):
        return tokenizer.normalizer.normalize_str if tokenizer.normalizer else str
    if dummy_prefix(tokenizer) == "unless a space begins it":
        return lambda text: text.replace(SPACE_MARK, " ").removeprefix(" ")
    return lambda text: text.replace(SPACE_MARK, " ")


def continuing(tokenizer: Tokenizer) -> Tokenizer:
    """Return the tokenizer for a text that goes on after another: encoded without a dummy prefix, decoded with its first space."""
    if not dummy_prefix(tokenizer):
        return tokenizer
    data = json.loads(tokenizer.to_str())
    data["normalizer"] = _without(data["normalizer"], "Prepend", listed="normalizers")
    data["decoder"] = _without(data["decoder"], "Strip", listed="decoders")
    for part in parts_of(data["pre_tokenizer"]):
        if part["type"] == "Metaspace":
            part["prepend_scheme"] = "never"
    for part in parts_of(data["decoder"]):
        if part["type"] == "Metaspace":
            part["prepend_scheme"] = "never"
    return for_plain_text(Tokenizer.from_str(json.dumps(data, ensure_ascii=False)))


def text_sizes(tokenizer: Tokenizer, num_ids: int, *, vocab: dict[str, int] | None = None) -> npt.NDArray[np.int64]:
    """Return per id how many bytes of text it stands for.

    Args:
        vocab: the tokenizer's pieces with the added ones, for a caller that has asked for them before.
    """
    vocab = vocab or tokenizer.get_vocab(with_added_tokens=True)
    spaces = marks_spaces(tokenizer)
    numbers = np.fromiter(vocab.values(), dtype=np.int64, count=len(vocab))
    # byte-level pieces have one character for each byte
    counts = map(_piece_size, vocab) if spaces else map(len, vocab)
    sizes = np.zeros(max(num_ids, int(numbers.max()) + 1), dtype=np.int64)
    sizes[numbers] = np.fromiter(counts, dtype=np.int64, count=len(vocab))
    sizes = sizes[:num_ids].copy()
    for number, token in tokenizer.get_added_tokens_decoder().items():
        if number < num_ids:
            sizes[number] = len(token.content.encode("utf-8"))
    return sizes


def _piece_size(piece: str) -> int:
    return 1 if BYTE_PIECE.fullmatch(piece) else len(piece.replace(SPACE_MARK, " ").encode())


def parts_of(component: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return the parts of a normaliser, pre-tokenizer or decoder as a flat list."""
    if component is None:
        return []
    inner = next((component[key] for key in ("normalizers", "pretokenizers", "decoders") if key in component), None)
    return [component] if inner is None else [part for each in inner for part in parts_of(each)]


def _without(component: dict[str, Any] | None, kind: str, *, listed: str) -> dict[str, Any] | None:
    kept = [part for part in parts_of(component) if part["type"] != kind]
    return {"type": "Sequence", listed: kept} if kept else None


def _state(component: Any) -> dict[str, Any] | None:
    return None if component is None else json.loads(component.__getstate__())
