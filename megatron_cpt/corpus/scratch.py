"""What a task of the first pass leaves: survivors, their arrays, rejects, repairs and counts, in a folder that is whole or absent.

tasks/<task>/documents.jsonl   one line a survivor, in the corpus's final form
tasks/<task>/documents.bin     one `DOCUMENT` record a survivor
tasks/<task>/<name>.bin        further columns, one row a survivor (band keys, features of selection)
tasks/<task>/rejects.jsonl     what was left out: piece, line, reason, detail
tasks/<task>/repairs.jsonl     what was mended: number of the survivor, piece, line, repairs
tasks/<task>/contaminated.jsonl  where records hold what is evaluated: piece, line, what
tasks/<task>/counts.json       records read of each piece, and the size of each file above; written last
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from megatron_cpt.corpus.tasks import Task
from megatron_cpt.errors import DataError
from megatron_cpt.record.store import publish_folder, write_json
from megatron_cpt.record.typed import from_plain, to_plain

COUNTS_NAME = "counts.json"
# 56 bytes a survivor on disk; the first four fields are big-endian halves of digests, so that numbers sort as hex digits do
DOCUMENT = np.dtype(
    [
        ("sha256_high", "<u8"), ("sha256_low", "<u8"),  # of the text, first 16 bytes
        ("id_high", "<u8"), ("id_low", "<u8"),  # of the id, first 16 bytes
        ("num_bytes", "<u4"), ("num_chars", "<u4"),  # of the text
        ("line_bytes", "<u4"),  # in documents.jsonl
        ("piece", "<u4"), ("line", "<u8"),  # where it stood: line within the piece, from 1
    ]
)  # fmt: skip
PACKED = struct.Struct("<QQQQIIIIQ")


@dataclass(frozen=True)
class Counts:
    """A task's balance: records read of each piece; documents by what was repaired; whatever blocks count; sizes of its files."""

    read: tuple[int, ...]
    kept: int
    rejected: dict[str, int]
    noted: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)


def halves(digest: bytes) -> tuple[int, int]:
    """Return the first 16 bytes of a digest as two numbers."""
    return int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:16], "big")


def task_folder(scratch: Path, task: Task) -> Path:
    return scratch / "tasks" / task.identity


class TaskWriter:
    """Writes one task's folder aside; `publish` renames it, after which the task is done."""

    def __init__(self, scratch: Path, task: Task) -> None:
        self.scratch = scratch
        self.final = task_folder(scratch, task)
        self.aside = self.final.with_name(f".{self.final.name}-{uuid.uuid4().hex[:8]}.partial")
        self.aside.mkdir(parents=True)
        self.read = [0] * len(task.pieces)
        self.kept = 0
        self.rejected: dict[str, int] = {}
        self.noted: dict[str, int] = {}
        self._files: dict[str, BinaryIO] = {}
        for name in ("documents.jsonl", "documents.bin", "rejects.jsonl", "repairs.jsonl"):
            self._open(name)

    def _open(self, name: str) -> BinaryIO:
        self._files[name] = file = (self.aside / name).open("wb", buffering=1 << 20)
        return file

    def keep(self, line: bytes, record: tuple[int, ...]) -> None:
        """Add a survivor: its final line, and the fields of `DOCUMENT`."""
        self._files["documents.jsonl"].write(line)
        self._files["documents.bin"].write(PACKED.pack(*record))
        self.kept += 1

    def add_rows(self, name: str, rows: np.ndarray) -> None:
        """Add rows of a further column for the newest survivors; each survivor has one row in the end."""
        file = self._files.get(f"{name}.bin") or self._open(f"{name}.bin")
        file.write(np.ascontiguousarray(rows).tobytes())

    def reject(self, piece: int, line: int, reason: str, detail: str) -> None:
        self.rejected[reason] = self.rejected.get(reason, 0) + 1
        self._write_json("rejects.jsonl", [piece, line, reason, detail])

    def contaminated(self, piece: int, line: int, matches: list[list[Any]]) -> None:
        """Note which items stand in a record, as rows `[bench, item, share, run]`."""
        if "contaminated.jsonl" not in self._files:
            self._open("contaminated.jsonl")
        self._write_json("contaminated.jsonl", [piece, line, matches])

    def repaired(self, piece: int, line: int, repairs: dict[str, int]) -> None:
        """Note what was mended in the survivor that comes next."""
        self._write_json("repairs.jsonl", [self.kept, piece, line, repairs])

    def note(self, what: str, count: int = 1) -> None:
        self.noted[what] = self.noted.get(what, 0) + count

    def _write_json(self, name: str, row: list[Any]) -> None:
        self._files[name].write(json.dumps(row, separators=(",", ":")).encode("ascii") + b"\n")

    def publish(self) -> None:
        """Sync, check the balance and rename; a folder that another worker finished meanwhile stands."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
        assert sum(self.read) == self.kept + sum(self.rejected.values()), (self.read, self.kept, self.rejected)
        sizes = {name: (self.aside / name).stat().st_size for name in self._files}
        write_json(self.aside / COUNTS_NAME, to_plain(Counts(tuple(self.read), self.kept, self.rejected, self.noted, sizes)))
        if self.final.exists():
            shutil.rmtree(self.aside)
            return
        publish_folder(self.aside, self.final)

    def discard(self) -> None:
        for file in self._files.values():
            try:
                file.close()
            except OSError:  # what is buffered does not fit on a full disk; it is thrown away in any case
                continue
        shutil.rmtree(self.aside, ignore_errors=True)


@dataclass(frozen=True)
class Shard:
    """What a finished task left."""

    folder: Path
    counts: Counts

    @classmethod
    def load(cls, scratch: Path, task: Task) -> Shard:
        """Read a finished task's counts and check the sizes of its files.

        Raises:
            DataError: the task is not done, or one of its files is cut.
        """
        folder = task_folder(scratch, task)
        path = folder / COUNTS_NAME
        if not path.is_file():
            raise DataError(f"The task over {task.shown} is not done.", where=folder, next_step="Run again: finished tasks stay.")
        counts = from_plain(Counts, json.loads(path.read_text(encoding="utf-8")), where=path)
        for name, size in counts.sizes.items():
            found = (folder / name).stat().st_size if (folder / name).is_file() else None
            if found != size:
                raise DataError(
                    f"The task over {task.shown} is incomplete: its file {name} is {'missing' if found is None else 'cut'}.",
                    where=folder / name,
                    value=f"{found} bytes",
                    rule=f"{size} bytes by its counts",
                    next_step=f"Remove {folder} and run again: the task is done anew.",
                )
        return cls(folder, counts)

    def documents(self) -> np.ndarray:
        """Return the `DOCUMENT` records of the survivors, in order."""
        return np.fromfile(self.folder / "documents.bin", DOCUMENT)

    def rows(self, name: str, dtype: np.dtype | type, *, width: int) -> np.ndarray:
        """Return a further column, shape (survivors, width)."""
        return np.fromfile(self.folder / f"{name}.bin", dtype).reshape(self.counts.kept, width)

    def lines(self) -> Iterator[bytes]:
        """Yield the survivors' lines in order."""
        with (self.folder / "documents.jsonl").open("rb", buffering=1 << 20) as file:
            yield from file

    def texts(self) -> Iterator[str]:
        """Yield the survivors' texts in order."""
        for line in self.lines():
            yield json.loads(line)["text"]

    def json_rows(self, name: str) -> Iterator[list[Any]]:
        """Yield the rows of `rejects.jsonl`, `repairs.jsonl` or `contaminated.jsonl`; of a file that a task had no need for none."""
        if name not in self.counts.sizes:
            return
        with (self.folder / name).open("rb") as file:
            for line in file:
                yield json.loads(line)


def drop_incomplete(scratch: Path, task: Task) -> str | None:
    """Remove a task's folder whose files are cut, so that it is done anew; return what was wrong with it."""
    folder = task_folder(scratch, task)
    if not folder.exists():
        return None
    try:
        Shard.load(scratch, task)
    except (DataError, ValueError) as error:
        shutil.rmtree(folder)
        return str(error).splitlines()[0]
    return None
