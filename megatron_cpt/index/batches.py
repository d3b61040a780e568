"""JSON lines to batches of texts: whole blocks at once, line by line only where a block holds something unusual."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

BATCH_BYTES = 4_000_000  # of lines; a longer line is a batch of its own
BATCH_RECORDS = 100_000
BOM = "\ufeff"
LABELS = ("source", "licence")  # what travels from the corpus stage with each document
Labels = tuple[str | None, ...]
MAX_LINE_BYTES = 1 << 28  # longer ones are left out instead of filling the memory


@dataclass(frozen=True)
class Batch:
    """Texts of consecutive documents, none of them blank, all of them encodable as UTF-8.

    Attributes:
        texts: the texts; `sizes` their bytes in UTF-8.
        numbers: where each stands in its file, from 1.
        labels: source and licence of each, None where the record has none.
        ids: the corpus stage's id of each, None where the record has none.
        left_out: `(number, reason)` of records that were not usable.
        num_read: records of the file that this batch accounts for.
    """

    texts: list[str]
    sizes: npt.NDArray[np.int64]
    numbers: Sequence[int]
    labels: list[Labels]
    ids: list[Any]
    num_read: int
    left_out: list[tuple[int, str]] = field(default_factory=list)


def read_batches(stream: BinaryIO, *, key: str, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[Batch]:
    """Yield a file's lines in batches of about `BATCH_BYTES`; memory is bounded by a batch and by the longest line.

    Only LF ends a line, so U+2028 and U+0085 stay inside texts.

    Args:
        key: the field of the text.
        max_line_bytes: a longer line is left out without being held in memory.
    """
    number = 1
    while block := stream.read(BATCH_BYTES):
        if not block.endswith(b"\n"):
            rest = stream.readline(max_line_bytes)
            block += rest
            if len(rest) == max_line_bytes and not rest.endswith(b"\n"):
                begin = block.rfind(b"\n", 0, len(block) - len(rest)) + 1
                while (skipped := stream.readline(1 << 20)) and not skipped.endswith(b"\n"):
                    pass
                block = block[:begin]
                if block:
                    yield from _cut(batch := _batch(block, number, key=key))
                    number += batch.num_read
                yield Batch([], np.zeros(0, np.int64), [], [], [], 1, [(number, "too_long")])
                number += 1
                continue
        yield from _cut(batch := _batch(block, number, key=key))
        number += batch.num_read


def batch_of(records: Sequence[tuple[int, dict[str, Any] | str]], *, key: str) -> Batch:
    """Return the batch of `(number, record or reason)`; records without a usable text are left out with their reason."""
    left_out: list[tuple[int, str]] = []
    kept: list[tuple[int, dict[str, Any], int]] = []
    for number, record in records:
        answer = record if isinstance(record, str) else _size_or_reason(record, key)
        if isinstance(answer, str):
            left_out.append((number, answer))
        else:
            assert isinstance(record, dict)
            kept.append((number, record, answer))
    return Batch(
        [record[key] for _, record, _ in kept], np.array([size for _, _, size in kept], dtype=np.int64), [number for number, _, _ in kept],
        [_labels(record) for _, record, _ in kept], [record.get("id") for _, record, _ in kept], len(records), left_out,
    )  # fmt: skip


def _size_or_reason(record: dict[str, Any], key: str) -> int | str:
    if key not in record:
        return "missing_text"
    text = record[key]
    if text is None:
        return "null_text"
    if not isinstance(text, str):
        return "text_not_a_string"
    if not text or text.isspace():
        return "empty_text"
    try:
        return len(text.encode("utf-8"))
    except UnicodeEncodeError:
        return "lone_surrogate"


def _batch(block: bytes, first: int, *, key: str) -> Batch:
    return _batch_at_once(block, first, key=key) or _batch_line_by_line(block, first, key=key)


def _batch_at_once(block: bytes, first: int, *, key: str) -> Batch | None:
    """Return the batch of a block in which every line is a plain record, else None."""
    try:
        lines = block.decode("utf-8").removesuffix("\n").split("\n")
        records = list(map(json.loads, lines))
        texts = [record[key] for record in records]
        if set(map(type, texts)) != {str} or not all(texts) or any(map(str.isspace, texts)):
            return None
        sizes = np.fromiter((len(text) if text.isascii() else len(text.encode("utf-8")) for text in texts), np.int64, len(texts))
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):  # UnicodeError is a ValueError
        return None
    return Batch(texts, sizes, range(first, first + len(texts)), list(map(_labels, records)), [r.get("id") for r in records], len(records))


def _batch_line_by_line(block: bytes, first: int, *, key: str) -> Batch:
    lines = block.removesuffix(b"\n").split(b"\n")
    return batch_of([(number, parse_line(line)) for number, line in enumerate(lines, first)], key=key)


def parse_line(line: bytes) -> dict[str, Any] | str:
    """Return the record of a line, or the reason why there is none; a byte-order mark before it is dropped."""
    try:
        text = line.decode("utf-8").removeprefix(BOM).strip()
    except UnicodeDecodeError:
        return "invalid_utf8"
    if not text:
        return "blank_line"
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return "invalid_json"
    return record if isinstance(record, dict) else "invalid_json"


def _labels(record: dict[str, Any]) -> Labels:
    return tuple(value if isinstance(value := record.get(name), str) else None for name in LABELS)


def _cut(batch: Batch) -> Iterator[Batch]:
    """Yield a batch of very many short documents in parts."""
    if len(batch.texts) <= BATCH_RECORDS:
        yield batch
        return
    for begin in range(0, len(batch.texts), BATCH_RECORDS):
        part, is_first = slice(begin, begin + BATCH_RECORDS), begin == 0
        yield Batch(
            batch.texts[part], batch.sizes[part], batch.numbers[part], batch.labels[part], batch.ids[part],
            batch.num_read if is_first else 0, batch.left_out if is_first else [],
        )  # fmt: skip
