"""Writes Megatron's indexed dataset with numpy alone; `record/index_pair.py` describes the format and reads it.

Here every document is one sequence.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from array import array
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from megatron_cpt.errors import DataError
from megatron_cpt.record.index_pair import DTYPES, HEADER, MAGIC, VERSION, bin_path, idx_path, sidecar_path
from megatron_cpt.record.store import NO_LOCKS_HERE, sync_folder

UINT16_BELOW = 65500  # Megatron's own limit for 16 bits, a little under 65,536
MAX_SEQUENCE_TOKENS = 2**31 - 1


def dtype_code_for(num_ids: int) -> int:
    """Return Megatron's code of the dtype that holds every id below `num_ids`: unsigned 16 bits where they suffice, else 32."""
    return 8 if num_ids < UINT16_BELOW else 4


class IndexWriter:
    """Writes one `.bin/.idx` pair under temporary names; `finish` checks the sums and renames both, the `.idx` last.

    What an earlier build left at the same prefix goes first: its sidecar, then its `.idx`. So at every moment the prefix names an old
    whole pair, a new whole pair, or something that `open_pair` refuses. Memory grows by 4 bytes a document.

    Raises:
        DataError: another process is writing the same index.
    """

    def __init__(self, prefix: Path, *, num_ids: int) -> None:
        self.prefix = prefix
        self.num_ids = num_ids
        self.code = dtype_code_for(num_ids)
        self.dtype = DTYPES[self.code]
        self.lengths = array("i")
        self.bin_sha256 = hashlib.sha256()
        self.idx_sha256 = ""
        self._partial_bin = bin_path(prefix).with_suffix(".bin.partial")
        self._partial_idx = idx_path(prefix).with_suffix(".idx.partial")
        self._bin: BinaryIO = self._partial_bin.open("ab")
        self._take_lock()
        self._bin.truncate(0)  # what a killed build left

    def __enter__(self) -> IndexWriter:
        return self

    def __exit__(self, *_: object) -> None:
        """Remove what was not finished."""
        if not self._bin.closed:  # closed: finished, and the names may be another process's by now
            self._partial_bin.unlink(missing_ok=True)
            self._partial_idx.unlink(missing_ok=True)
            self._bin.close()

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._bin, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._bin.close()
            raise DataError(
                "Another process is writing this index.",
                where=self.prefix,
                next_step="Wait for it, or end it, or use another --output-prefix.",
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS_HERE:
                raise
        opened, named = os.fstat(self._bin.fileno()), self._partial_bin.stat() if self._partial_bin.exists() else None
        if named is None or (opened.st_dev, opened.st_ino) != (named.st_dev, named.st_ino):  # it got its final name in between
            self._bin.close()
            raise DataError("Another process has just written this index.", where=self.prefix, next_step="Start again if it is not yours.")

    def add(self, ids: npt.ArrayLike) -> None:
        """Append one document, as `add_many` does."""
        tokens = np.asarray(ids)
        self.add_many(tokens, np.array([tokens.size], dtype=np.int64))

    def add_many(self, ids: npt.NDArray[Any], lengths: npt.NDArray[np.int64]) -> None:
        """Append documents whose ids lie one after another.

        Raises:
            DataError: one is empty, too long for the format, or holds an id outside the vocabulary.
        """
        assert ids.size == lengths.sum(), "ids and lengths belong together"
        unfit = np.flatnonzero((lengths <= 0) | (lengths > MAX_SEQUENCE_TOKENS))
        if unfit.size:
            raise DataError("A document does not fit the index format.", where=self.prefix, value=f"{lengths[unfit[0]]} tokens")
        if not ids.size:
            return
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self.num_ids:
            raise DataError(
                "A token id lies outside the vocabulary.",
                where=self.prefix,
                value=high if high >= self.num_ids else low,
                rule=f"0 <= id < {self.num_ids}",
            )
        block = np.ascontiguousarray(ids.astype(self.dtype, copy=False)).view(np.uint8).data
        self.bin_sha256.update(block)
        self._bin.write(block)
        self.lengths.frombytes(lengths.astype(np.int32).tobytes())

    def finish(self) -> None:
        """Write the `.idx` and give both files their names.

        Raises:
            DataError: no document was added, or the `.bin` on disk does not have the size that the lengths add up to.
        """
        if not self.lengths:
            raise DataError("An index without a single document is not written.", where=self.prefix, next_step="Check its source.")
        self._bin.flush()
        os.fsync(self._bin.fileno())
        lengths = np.array(self.lengths, dtype="<i4")
        wanted = int(lengths.sum(dtype=np.int64)) * self.dtype.itemsize  # 64 bits: 32 overflow at 2 GB
        size = self._partial_bin.stat().st_size
        if size != wanted:
            raise DataError("The token file is not complete.", where=self._partial_bin, value=f"{size} bytes", rule=f"{wanted} bytes")
        with self._partial_idx.open("wb") as file:
            hashing = _Hashing(file)
            write_idx(hashing, lengths, self.code)
            file.flush()
            os.fsync(file.fileno())
        self.idx_sha256 = hashing.digest.hexdigest()
        for earlier in (sidecar_path(self.prefix), idx_path(self.prefix)):
            with contextlib.suppress(FileNotFoundError):
                earlier.unlink()
        os.replace(self._partial_bin, bin_path(self.prefix))
        os.replace(self._partial_idx, idx_path(self.prefix))
        sync_folder(self.prefix.parent)
        self._bin.close()


class _Hashing:
    """Hands writes on to a file and takes their digest."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self._file.write(data)


def write_idx(file: Any, lengths: npt.NDArray[np.int32], code: int, documents: npt.NDArray[np.int64] | None = None) -> None:
    """Write the `.idx` of sequences with these lengths.

    Args:
        documents: sequences before each document and at the end; None stands for one sequence a document.
    """
    offsets = np.zeros(lengths.size, dtype="<i8")
    np.cumsum(lengths[:-1], dtype=np.int64, out=offsets[1:])
    offsets *= DTYPES[code].itemsize
    assert (np.diff(offsets) >= 0).all(), "offsets must rise"
    if documents is None:
        documents = np.arange(lengths.size + 1, dtype="<i8")
    file.write(MAGIC)
    file.write(HEADER.pack(VERSION, code, lengths.size, documents.size))
    file.write(lengths.astype("<i4").tobytes())
    file.write(offsets.tobytes())
    file.write(documents.astype("<i8").tobytes())
