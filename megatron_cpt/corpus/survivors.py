"""Reads survivors of the first pass again by their number: the place in the order of the corpus."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, BinaryIO

import numpy as np

from megatron_cpt.corpus.scratch import Shard


class Survivors:
    """The survivors of all shards; `first` is the number at which each shard begins, and that of all at the end."""

    def __init__(self, shards: Sequence[Shard], first: np.ndarray) -> None:
        self.shards, self.first = shards, first
        self._documents = lru_cache(maxsize=64)(self._read_documents)

    def _read_documents(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        documents = self.shards[shard].documents()
        return np.concatenate([[0], np.cumsum(documents["line_bytes"], dtype=np.int64)]), documents["sha256_high"]

    def place(self, row: int) -> tuple[int, int]:
        """Return the shard of a survivor and its place there."""
        shard = int(np.searchsorted(self.first, row, side="right")) - 1
        return shard, row - int(self.first[shard])

    def sha256_high(self, row: int) -> int:
        shard, place = self.place(row)
        return int(self._documents(shard)[1][place])

    def record(self, row: int) -> dict[str, Any]:
        """Return `{"id", "text", "source"}` of one survivor."""
        return self.records(np.array([row]))[0]

    def records(self, rows: np.ndarray) -> list[dict[str, Any]]:
        """Return the records of some survivors in the order asked for; each shard is opened once and read forwards."""
        found: list[dict[str, Any]] = [{} for _ in range(len(rows))]
        order = np.argsort(rows, kind="stable").tolist()
        open_shard, file = -1, None
        try:
            for number in order:
                shard, place = self.place(int(rows[number]))
                if shard != open_shard:
                    if file is not None:
                        file.close()
                    open_shard, file = shard, (self.shards[shard].folder / "documents.jsonl").open("rb")
                assert file is not None
                found[number] = self._read(file, shard, place)
        finally:
            if file is not None:
                file.close()
        return found

    def _read(self, file: BinaryIO, shard: int, place: int) -> dict[str, Any]:
        starts = self._documents(shard)[0]
        file.seek(int(starts[place]))
        record: dict[str, Any] = json.loads(file.read(int(starts[place + 1] - starts[place])))
        return record
