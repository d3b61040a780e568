"""Megatron's indexed dataset on disk, written and read with numpy alone.

`<prefix>.bin` holds the token ids of all sequences one after another. `<prefix>.idx`, little-endian: 9 bytes of magic, version 1 (u64),
dtype code (u8), number of sequences (u64), number of document marks (u64), length of each sequence in tokens (i32), its offset in
the .bin in bytes (i64), and the document marks: the number of sequences before each document, with 0 first (i64).
Here every document is one sequence.
"""

from __future__ import annotations

import os
import struct
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from megatron_cpt.errors import DataError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
DTYPES: dict[int, np.dtype[Any]] = {4: np.dtype("<i4"), 8: np.dtype("<u2")}  # Megatron's codes for those that hold token ids
UINT16_BELOW = 65500  # Megatron's own limit for 16 bits, a little under 65,536
HEADER = struct.Struct("<QBQQ")
MAX_SEQUENCE_TOKENS = 2**31 - 1


def dtype_code_for(num_ids: int) -> int:
    """Return Megatron's code of the dtype that holds every id below `num_ids`: unsigned 16 bits where they suffice, else 32."""
    return 8 if num_ids < UINT16_BELOW else 4


def bin_path(prefix: Path) -> Path:
    return prefix.with_name(prefix.name + ".bin")


def idx_path(prefix: Path) -> Path:
    return prefix.with_name(prefix.name + ".idx")


class IndexWriter:
    """Writes one `.bin/.idx` pair under temporary names; `finish` checks the sums and renames both, the `.idx` last.

    Memory grows by 4 bytes a document.
    """

    def __init__(self, prefix: Path, *, num_ids: int) -> None:
        self.prefix = prefix
        self.num_ids = num_ids
        self.code = dtype_code_for(num_ids)
        self.dtype = DTYPES[self.code]
        self.lengths = array("i")
        self._partial_bin = bin_path(prefix).with_suffix(".bin.partial")
        self._partial_idx = idx_path(prefix).with_suffix(".idx.partial")
        self._bin: BinaryIO = self._partial_bin.open("wb")

    def __enter__(self) -> IndexWriter:
        return self

    def __exit__(self, *_: object) -> None:
        """Remove what was not finished."""
        self._bin.close()
        self._partial_bin.unlink(missing_ok=True)
        self._partial_idx.unlink(missing_ok=True)

    def add(self, ids: npt.ArrayLike) -> None:
        """Append one document.

        Raises:
            DataError: it is empty, too long for the format, or holds an id outside the vocabulary.
        """
        tokens = np.asarray(ids, dtype=np.int64)
        if not 0 < tokens.size <= MAX_SEQUENCE_TOKENS:
            raise DataError("A document does not fit the index format.", where=self.prefix, value=f"{tokens.size} tokens")
        if tokens.min() < 0 or tokens.max() >= self.num_ids:
            raise DataError(
                "A token id lies outside the vocabulary.",
                where=self.prefix,
                value=int(tokens.max() if tokens.max() >= self.num_ids else tokens.min()),
                rule=f"0 <= id < {self.num_ids}",
            )
        self._bin.write(tokens.astype(self.dtype).tobytes())
        self.lengths.append(tokens.size)

    def finish(self) -> None:
        """Write the `.idx` and give both files their names.

        Raises:
            DataError: no document was added, or the `.bin` on disk does not have the size that the lengths add up to.
        """
        if not self.lengths:
            raise DataError("An index without a single document is not written.", where=self.prefix, next_step="Check its source.")
        self._bin.flush()
        os.fsync(self._bin.fileno())
        self._bin.close()
        lengths = np.array(self.lengths, dtype="<i4")
        ends = np.cumsum(lengths, dtype=np.int64) * self.dtype.itemsize  # 64 bits: 32 overflow at 2 GB
        size = self._partial_bin.stat().st_size
        if size != ends[-1]:
            raise DataError("The token file is not complete.", where=self._partial_bin, value=f"{size} bytes", rule=f"{ends[-1]} bytes")
        with self._partial_idx.open("wb") as file:
            write_idx(file, lengths, self.code)
            file.flush()
            os.fsync(file.fileno())
        os.replace(self._partial_bin, bin_path(self.prefix))
        os.replace(self._partial_idx, idx_path(self.prefix))


def write_idx(file: BinaryIO, lengths: npt.NDArray[np.int32], code: int) -> None:
    """Write the `.idx` of documents with these lengths, one sequence each."""
    offsets = np.zeros(lengths.size, dtype="<i8")
    np.cumsum(lengths[:-1], dtype=np.int64, out=offsets[1:])
    offsets *= DTYPES[code].itemsize
    assert (np.diff(offsets) > 0).all(), "offsets must rise"
    file.write(MAGIC)
    file.write(HEADER.pack(VERSION, code, lengths.size, lengths.size + 1))
    file.write(lengths.astype("<i4").tobytes())
    file.write(offsets.tobytes())
    file.write(np.arange(lengths.size + 1, dtype="<i8").tobytes())


@dataclass(frozen=True)
class Index:
    """A `.bin/.idx` pair, opened for reading.

    Attributes:
        tokens: all ids, memory-mapped.
        lengths: tokens of each sequence; `starts` where each begins in `tokens`.
        documents: sequences before each document, with 0 first and the number of sequences last.
    """

    prefix: Path
    tokens: npt.NDArray[Any]
    lengths: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int64]
    documents: npt.NDArray[np.int64]

    @property
    def num_documents(self) -> int:
        return self.documents.size - 1

    def document(self, number: int) -> npt.NDArray[Any]:
        """Return the ids of a document."""
        first, last = self.documents[number], self.documents[number + 1]
        return self.tokens[self.starts[first] : self.starts[last - 1] + self.lengths[last - 1]]


def open_index(prefix: Path) -> Index:
    """Open an index after checking every size in it against the files.

    Raises:
        DataError: one of the two files is missing, cut, of another kind, or they do not belong together.
    """
    for path in (bin_path(prefix), idx_path(prefix)):
        if not path.is_file():
            raise DataError("Half of an index is missing.", where=path, rule="a .bin and an .idx", next_step="Build the index again.")
    path = idx_path(prefix)
    raw = np.memmap(path, dtype=np.uint8, mode="r") if path.stat().st_size else np.zeros(0, dtype=np.uint8)
    start = len(MAGIC) + HEADER.size
    if raw[: len(MAGIC)].tobytes() != MAGIC or raw.size < start:
        raise DataError("This is no Megatron index.", where=path, rule=f"begins with {MAGIC!r}")
    version, code, num_sequences, num_marks = HEADER.unpack(raw[len(MAGIC) : start].tobytes())
    if version != VERSION or code not in DTYPES:
        raise DataError("This kind of Megatron index is not read here.", where=path, value=f"version {version}, dtype code {code}")
    wanted = start + 12 * num_sequences + 8 * num_marks
    if raw.size != wanted:
        raise DataError("An index file is cut or damaged.", where=path, value=f"{raw.size} bytes", rule=f"{wanted} bytes by its header")
    lengths = np.frombuffer(raw, dtype="<i4", count=num_sequences, offset=start)
    offsets = np.frombuffer(raw, dtype="<i8", count=num_sequences, offset=start + 4 * num_sequences)
    documents = np.frombuffer(raw, dtype="<i8", count=num_marks, offset=start + 12 * num_sequences)
    item = DTYPES[code].itemsize
    ends = np.cumsum(lengths, dtype=np.int64) * item
    sound = num_sequences > 0 and num_marks > 1 and (lengths >= 0).all() and np.array_equal(offsets, ends - lengths * np.int64(item))
    if not sound or documents[0] != 0 or documents[-1] != num_sequences or (np.diff(documents) < 1).any():
        raise DataError("The lengths, offsets and documents of an index contradict each other.", where=path)
    if bin_path(prefix).stat().st_size != ends[-1]:
        raise DataError(
            "An index and its tokens do not belong together.",
            where=bin_path(prefix),
            value=f"{bin_path(prefix).stat().st_size} bytes",
            rule=f"{ends[-1]} bytes by the .idx",
        )
    return Index(prefix, np.memmap(bin_path(prefix), dtype=DTYPES[code], mode="r"), lengths, offsets // item, documents)
