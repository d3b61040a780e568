"""Reads `.bin/.idx` pairs as bytes with bounds, so that a damaged one is refused before megatron-core opens it; knows no torch."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_cpt.errors import DataError

MAGIC = b"MMIDIDX\x00\x00"
HEADER_BYTES = len(MAGIC) + struct.calcsize("<QBQQ")
DTYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}
SCAN_TOKENS = 1 << 22


@dataclass(frozen=True)
class IndexPair:
    """An opened pair: `lengths` are tokens per sequence, `tokens` is the memory-mapped .bin."""

    prefix: Path
    lengths: np.ndarray
    tokens: np.ndarray

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)


def open_pair(prefix: Path) -> IndexPair:
    """Read the header and sequence lengths of a pair and compare them with both files' sizes.

    Raises:
        DataError: a file is missing, cut, of another format, or the two do not belong together.
    """
    index_path, tokens_path = prefix.with_name(prefix.name + ".idx"), prefix.with_name(prefix.name + ".bin")
    for path in (index_path, tokens_path):
        if not path.is_file():
            raise DataError("A file of a training source is missing.", where=path, next_step="Run the index stage again.")
    with index_path.open("rb") as file:
        header = file.read(HEADER_BYTES)
    if len(header) < HEADER_BYTES or not header.startswith(MAGIC):
        raise DataError("A .idx file is not a Megatron index.", where=index_path, next_step="Run the index stage again.")
    version, dtype_code, num_sequences, num_boundaries = struct.unpack("<QBQQ", header[len(MAGIC) :])
    if version != 1 or dtype_code not in DTYPES:
        raise DataError("A .idx file has an unknown version or dtype.", where=index_path, value=f"version {version}, dtype {dtype_code}")
    # int32 lengths, int64 pointers, int64 document boundaries
    if index_path.stat().st_size != HEADER_BYTES + 12 * num_sequences + 8 * num_boundaries:
        raise DataError("A .idx file is cut or damaged.", where=index_path, value=f"{index_path.stat().st_size} bytes")
    lengths = np.fromfile(index_path, dtype=np.int32, count=num_sequences, offset=HEADER_BYTES)
    dtype = np.dtype(DTYPES[dtype_code])
    expected = int(lengths.sum(dtype=np.int64)) * dtype.itemsize
    if tokens_path.stat().st_size != expected:
        raise DataError(
            "A .bin file does not belong to its .idx.",
            where=tokens_path,
            value=f"{tokens_path.stat().st_size} bytes",
            rule=f"{expected} bytes by the .idx",
            next_step="Run the index stage again.",
        )
    tokens = np.memmap(tokens_path, dtype=dtype, mode="r") if expected else np.empty(0, dtype=dtype)
    return IndexPair(prefix, lengths, tokens)


def id_range(pair: IndexPair) -> tuple[int, int]:
    """Return the lowest and the highest token id, read in blocks of 4M tokens; the .bin must not be empty."""
    low, high = np.iinfo(np.int64).max, -1
    for begin in range(0, pair.num_tokens, SCAN_TOKENS):
        block = pair.tokens[begin : begin + SCAN_TOKENS]
        low, high = min(low, int(block.min())), max(high, int(block.max()))
    return low, high
