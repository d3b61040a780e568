"""What must be true of a finished index, read back from disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_cpt.errors import DataError
from megatron_cpt.index.tally import digest_of
from megatron_cpt.record.index_pair import SCAN_TOKENS, IndexPair, bin_path, open_pair


def verify_index(prefix: Path, *, num_ids: int, end_id: int | None, num_documents: int) -> IndexPair:
    """Read an index back and check it as a whole.

    Raises:
        DataError: lengths and files disagree, an id lies outside the vocabulary, or a document does not end in exactly one
            end-of-document id (`end_id` None: not asked).
    """
    pair = open_pair(prefix)
    if pair.num_documents != num_documents:
        raise DataError("An index does not hold every document.", where=prefix, value=pair.num_documents, rule=f"{num_documents} documents")
    low, high, num_ends = 0, 0, 0
    misplaced: int | None = None
    last_places = pair.document_ends - 1
    for start, block in blocks_of(pair):
        low, high = min(low, int(block.min())), max(high, int(block.max()))
        if end_id is None:
            continue
        num_ends += int(np.count_nonzero(block == end_id))
        begin, end = np.searchsorted(last_places, [start, start + block.size]).tolist()
        wrong = np.flatnonzero(block[last_places[begin:end] - start] != end_id)
        if wrong.size and misplaced is None:
            misplaced = begin + int(wrong[0])
    if low < 0 or high >= num_ids:
        raise DataError(
            "An index holds an id outside the vocabulary.", where=prefix, value=high if low >= 0 else low, rule=f"0 to {num_ids - 1}"
        )
    place = "" if misplaced is None else f"; document {misplaced} ends otherwise"
    if end_id is not None and (misplaced is not None or num_ends != num_documents):
        raise DataError(
            "Documents do not end in exactly one end-of-document id.",
            where=prefix,
            value=f"{num_ends} such ids in {num_documents} documents{place}",
            rule=f"id {end_id} once, at each document's end",
        )
    return pair


def blocks_of(pair: IndexPair) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """Yield `(place of its first token, ids)` of all ids in blocks of 4M; read, not mapped, so that memory does not grow with the file."""
    with bin_path(pair.prefix).open("rb") as file:
        place = 0
        while (block := np.fromfile(file, dtype=pair.tokens.dtype, count=SCAN_TOKENS)).size:
            yield place, block
            place += block.size


def compare_texts(pair: IndexPair, back: Callable[[list[int]], str], digests: Mapping[int, bytes], *, has_end: bool) -> int:
    """Decode documents and compare them with the digests of their texts; return how many were compared.

    The ids are read, not mapped: pages that a map touches count as this process's memory.

    Raises:
        DataError: a decoded document differs.
    """
    item = pair.tokens.dtype.itemsize
    begins = np.concatenate([np.zeros(1, np.int64), pair.document_ends[:-1]])
    for number, digest in digests.items():
        count = int(pair.document_ends[number] - begins[number])
        ids = np.fromfile(bin_path(pair.prefix), dtype=pair.tokens.dtype, count=count, offset=int(begins[number]) * item)
        if digest_of(back((ids[:-1] if has_end else ids).tolist())) != digest:
            raise DataError("A document does not decode to its text.", where=f"{pair.prefix}, document {number}")
    return len(digests)
