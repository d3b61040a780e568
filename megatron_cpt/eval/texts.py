"""Held-out texts as whole documents within a byte bound, chosen by file order alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_cpt.errors import DataError
from megatron_cpt.plan.run_plan import EvalText


@dataclass(frozen=True)
class Document:
    id: str
    text: str

    @property
    def num_bytes(self) -> int:
        return len(self.text.encode("utf-8"))


def read_text(wanted: EvalText, run_dir: Path) -> list[Document]:
    """Return the first documents of a held-out text, `max_bytes` of UTF-8 at most; the last is cut at a character.

    With `max_document_bytes` each document is cut to its beginning, so that the bytes come from more documents and the
    paired interval of the gate has more pairs.

    Raises:
        DataError: the file is missing, a line is not a document, or there is no text in it.
    """
    path = run_dir / wanted.path
    if not path.is_file():
        raise DataError("A held-out text is missing.", where=path, next_step="Run the corpus stage, or take it out of eval.texts.")
    documents: list[Document] = []
    left = wanted.max_bytes
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            document = _parse(line, where=f"{path}:{number}")
            limit = left if wanted.max_document_bytes is None else min(left, wanted.max_document_bytes)
            text = cut_at_character(document.text, max_bytes=limit)
            is_cut_by_total = text != document.text and limit == left
            if text:
                documents.append(Document(document.id, text))
                left -= documents[-1].num_bytes
            if is_cut_by_total or left == 0:
                break
    if not documents:
        raise DataError("A held-out text holds nothing to score.", where=path, value=f"max_bytes {wanted.max_bytes}")
    return documents


def cut_at_character(text: str, *, max_bytes: int) -> str:
    """Return the longest beginning of a text that takes at most `max_bytes` in UTF-8."""
    data = text.encode("utf-8")
    return text if len(data) <= max_bytes else data[:max_bytes].decode("utf-8", errors="ignore")


def total_bytes(documents: Sequence[Document]) -> int:
    return sum(document.num_bytes for document in documents)


def _parse(line: str, *, where: str) -> Document:
    try:
        record = json.loads(line)
        return Document(str(record["id"]), _text(record["text"]))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            "A line of a held-out text is not a document.", where=where, value=str(error), rule='{"id": ..., "text": ...}'
        ) from None


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("text is not a string")
    value.encode("utf-8")  # a lone surrogate is no text: UnicodeEncodeError is a ValueError
    return value
