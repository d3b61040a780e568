"""Reads Megatron's `.bin/.idx` pairs as bytes with bounds, so that a damaged one is refused before megatron-core opens it; knows no torch.

`<prefix>.bin` holds the token ids of all sequences one after another. `<prefix>.idx`, little-endian: 9 bytes of magic, version 1 (u64),
dtype code (u8), number of sequences (u64), number of document marks (u64), length of each sequence in tokens (i32), its offset in
the .bin in bytes (i64), and the document marks: the number of sequences before each document, with 0 first (i64).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_cpt.errors import DataError
from megatron_cpt.record.store import read_json

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<QBQQ")
HEADER_BYTES = len(MAGIC) + HEADER.size
# Megatron's codes of those integer dtypes that its builder writes for token ids
DTYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype("u1"), 2: np.dtype("i1"), 3: np.dtype("<i2"), 4: np.dtype("<i4"), 5: np.dtype("<i8"), 8: np.dtype("<u2")
}  # fmt: skip
SCAN_TOKENS = 1 << 22
REBUILD = "Run the index stage again, or tools/preprocess_data.py."


@dataclass(frozen=True)
class IndexPair:
    """An opened pair.

    Attributes:
        lengths: tokens of each sequence.
        documents: sequences before each document, with 0 first and the number of sequences last.
        tokens: all ids, the memory-mapped .bin.
    """

    prefix: Path
    lengths: npt.NDArray[np.int32]
    documents: npt.NDArray[np.int64]
    tokens: npt.NDArray[Any]

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def num_documents(self) -> int:
        return max(0, self.documents.size - 1)

    @cached_property
    def document_ends(self) -> npt.NDArray[np.int64]:
        """The place in `tokens` after each document's last token."""
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.lengths, dtype=np.int64)])
        return ends[self.documents[1:]]

    def document(self, number: int) -> npt.NDArray[Any]:
        """Return the ids of a document."""
        begin = self.document_ends[number - 1] if number else 0
        return self.tokens[begin : self.document_ends[number]]


def bin_path(prefix: Path) -> Path:
    return prefix.with_name(prefix.name + ".bin")


def idx_path(prefix: Path) -> Path:
    return prefix.with_name(prefix.name + ".idx")


def sidecar_path(prefix: Path) -> Path:
    return prefix.with_name(prefix.name + ".json")


def open_pair(prefix: Path) -> IndexPair:
    """Open a pair after checking every size in the .idx against both files, and both against the sidecar where there is one.

    Raises:
        DataError: a file is missing, cut, of another format, or the two do not belong together.
    """
    index_path, tokens_path = idx_path(prefix), bin_path(prefix)
    for path in (index_path, tokens_path):
        if not path.is_file():
            raise DataError("Half of an index is missing.", where=path, rule="a .bin and an .idx of one name", next_step=REBUILD)
    with index_path.open("rb") as file:
        header = file.read(HEADER_BYTES)
    if len(header) < HEADER_BYTES or not header.startswith(MAGIC):
        raise DataError("A .idx file is not a Megatron index.", where=index_path, rule=f"begins with {MAGIC!r}", next_step=REBUILD)
    version, dtype_code, num_sequences, num_marks = HEADER.unpack(header[len(MAGIC) :])
    if version != VERSION or dtype_code not in DTYPES:
        raise DataError("A .idx file has an unknown version or dtype.", where=index_path, value=f"version {version}, dtype {dtype_code}")
    size, wanted = index_path.stat().st_size, HEADER_BYTES + 12 * num_sequences + 8 * num_marks
    if size != wanted:
        raise DataError("A .idx file is cut or damaged.", where=index_path, value=f"{size} bytes", rule=f"{wanted} bytes by its header")
    raw = np.memmap(index_path, dtype=np.uint8, mode="r")
    lengths = np.frombuffer(raw, dtype="<i4", count=num_sequences, offset=HEADER_BYTES)
    offsets = np.frombuffer(raw, dtype="<i8", count=num_sequences, offset=HEADER_BYTES + 4 * num_sequences)
    documents = np.frombuffer(raw, dtype="<i8", count=num_marks, offset=HEADER_BYTES + 12 * num_sequences)
    dtype = DTYPES[dtype_code]
    ends = np.cumsum(lengths, dtype=np.int64) * dtype.itemsize
    begins = ends - lengths.astype(np.int64) * dtype.itemsize
    if not _sound(lengths, offsets, begins, documents):
        raise DataError("The lengths, offsets and documents of a .idx file contradict each other.", where=index_path, next_step=REBUILD)
    size, wanted = tokens_path.stat().st_size, int(ends[-1]) if ends.size else 0
    if size != wanted:
        raise DataError(
            "A .bin file does not belong to its .idx.",
            where=tokens_path,
            value=f"{size} bytes",
            rule=f"{wanted} bytes by the .idx",
            next_step=REBUILD,
        )
    _check_sidecar(prefix)
    tokens = np.memmap(tokens_path, dtype=dtype, mode="r") if wanted else np.empty(0, dtype=dtype)
    return IndexPair(prefix, lengths, documents, tokens)


def _sound(
    lengths: npt.NDArray[np.int32], offsets: npt.NDArray[np.int64], begins: npt.NDArray[np.int64], documents: npt.NDArray[np.int64]
) -> bool:
    """Say whether offsets follow from lengths and marks rise from 0 to the number of sequences."""
    if not documents.size or documents[0] != 0 or documents[-1] != lengths.size or (np.diff(documents) < 0).any():
        return False
    return bool((lengths >= 0).all()) and np.array_equal(offsets, begins)


def _check_sidecar(prefix: Path) -> None:
    """Refuse a pair whose sidecar speaks of files of other sizes; a strange file of that name says nothing."""
    try:
        record = read_json(sidecar_path(prefix))
    except (DataError, OSError):
        return
    files = record.get("files") if isinstance(record, dict) and "schema_version" in record else None
    if not isinstance(files, dict):
        return
    for path in (bin_path(prefix), idx_path(prefix)):
        recorded = files.get(path.suffix, {}).get("size_bytes")
        if recorded is not None and recorded != path.stat().st_size:
            raise DataError(
                "A file of an index is not the one that its sidecar describes.",
                where=path,
                value=f"{path.stat().st_size} bytes",
                rule=f"{recorded} bytes by {sidecar_path(prefix).name}",
                next_step=REBUILD,
            )


def id_range(pair: IndexPair) -> tuple[int, int]:
    """Return the lowest and the highest token id, read in blocks of 4M tokens; the .bin must not be empty."""
    low, high = np.iinfo(np.int64).max, -1
    for begin in range(0, pair.num_tokens, SCAN_TOKENS):
        block = pair.tokens[begin : begin + SCAN_TOKENS]
        low, high = min(low, int(block.min())), max(high, int(block.max()))
    return low, high
