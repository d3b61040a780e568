"""The frozen plan of the first pass: what is read, in which tasks, by which settings. Workers on any machine rebuild their work from it.

A task is a few whole files of one source, or a byte range of a long jsonl file. Tasks go in the order of the corpus: sources by
name, files by path, ranges by place; so outputs put together in task order do not depend on how many tasks there were.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from megatron_cpt.config.schema import CorpusConfig, SourceConfig
from megatron_cpt.corpus.sources import files_of
from megatron_cpt.errors import DataError
from megatron_cpt.record.hashing import sha256_plain
from megatron_cpt.record.store import read_json, write_json
from megatron_cpt.record.typed import from_plain, to_plain

MB = 1_000_000
PLAN_NAME = "tasks.json"
WORK_VERSION = 1  # of what a task leaves: another one when its files change their form or the rules of the first pass change


@dataclass(frozen=True)
class Piece:
    """A file, or the lines of it that begin at bytes `start` to `end - 1` (None: at any byte from `start` on)."""

    file: str
    path: str
    start: int = 0
    end: int | None = None


@dataclass(frozen=True)
class Task:
    """What one worker reads at a time. `identity` follows from everything that decides what it leaves: so work done for an earlier plan
    counts for a later one wherever its files and settings are the same."""

    source: str
    pieces: tuple[Piece, ...]
    num_bytes: int
    identity: str = ""

    @property
    def shown(self) -> str:
        """The task's files, for messages."""
        first, last = self.pieces[0].path, self.pieces[-1].path
        return first if first == last else f"{first} to {last} ({len(self.pieces)} files)"


@dataclass(frozen=True)
class TaskPlan:
    """Everything that a worker needs."""

    sources: dict[str, SourceConfig]
    settings: CorpusConfig
    tasks: tuple[Task, ...]

    def save(self, folder: Path) -> None:
        write_json(folder / PLAN_NAME, to_plain(self))

    @classmethod
    def load(cls, folder: Path) -> TaskPlan:
        """Read the plan of a folder.

        Raises:
            DataError: there is none, or it is not readable.
        """
        return from_plain(cls, read_json(folder / PLAN_NAME), where=folder / PLAN_NAME)

    @property
    def num_bytes(self) -> int:
        return sum(task.num_bytes for task in self.tasks)


def plan_tasks(sources: dict[str, SourceConfig], settings: CorpusConfig, *, inputs: Mapping[str, Any]) -> TaskPlan:
    """Cut the sources into tasks of about `settings.engine.task_mb`.

    Args:
        inputs: what decides the corpus, with the digest of each file (`source_inputs`). Without them no task is known again.

    Raises:
        DataError: a source has no file, or a file cannot be looked at.
    """
    common: dict[str, Any] = {key: value for key, value in inputs.items() if key != "sources"} if inputs else {"plan": uuid.uuid4().hex}
    common["all settings"] = {group: values for group, values in asdict(settings).items() if group != "engine"}
    tasks: list[Task] = []
    for name in sorted(sources):
        source = inputs["sources"][name] if inputs else {"settings": None, "files": {}}
        for task in tasks_of(name, sources[name], int(settings.engine.task_mb * MB)):
            pieces = [[piece.file, piece.start, piece.end, source["files"].get(piece.file)] for piece in task.pieces]
            identity = sha256_plain([WORK_VERSION, name, source["settings"], common, pieces])
            tasks.append(replace(task, identity=identity[:24]))
    return TaskPlan(dict(sources), settings, tuple(tasks))


def tasks_of(name: str, source: SourceConfig, task_bytes: int) -> list[Task]:
    tasks: list[Task] = []
    waiting: list[Piece] = []
    waiting_bytes = 0

    def close() -> None:
        nonlocal waiting, waiting_bytes
        if waiting:
            tasks.append(Task(name, tuple(waiting), waiting_bytes))
        waiting, waiting_bytes = [], 0

    for relative, path in files_of(name, source.path):
        try:
            size = path.stat().st_size
        except OSError as error:
            raise DataError(f"A file of source {name!r} cannot be read.", where=path, value=error.strerror) from None
        absolute = str(path.resolve())
        if path.name.lower().endswith(".jsonl") and size >= 2 * task_bytes > 0:
            close()
            edges = [size * part // (size // task_bytes) for part in range(size // task_bytes + 1)]
            tasks += [
                Task(name, (Piece(relative, absolute, start, None if end == size else end),), end - start) for start, end in pairwise(edges)
            ]
            continue
        if waiting and waiting_bytes + size > task_bytes:
            close()
        waiting.append(Piece(relative, absolute))
        waiting_bytes += size
    close()
    return tasks
