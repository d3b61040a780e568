"""The last pass: survivors that are kept go to their side, the others to the rejects with their reason, all in corpus order."""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from megatron_cpt.config.schema import SourceConfig
from megatron_cpt.corpus.blocks import document_line
from megatron_cpt.corpus.clean import clean_text
from megatron_cpt.corpus.decide import DUPLICATE, KEPT, NEAR_DUPLICATE, NOT_SELECTED, REASONS, Decisions
from megatron_cpt.corpus.scratch import Shard
from megatron_cpt.corpus.split import SIDES, TRAIN, sides_of
from megatron_cpt.corpus.survivors import Survivors
from megatron_cpt.corpus.tasks import Task

NUM_EXAMPLES = 2
BLOCK_BYTES = 1 << 20


@dataclass
class Tally:
    """The balance sheet of one source; `documents`, `num_bytes` and `num_chars` are by side."""

    read: int = 0
    documents: Counter[str] = field(default_factory=Counter)
    num_bytes: Counter[str] = field(default_factory=Counter)
    num_chars: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    repaired: Counter[str] = field(default_factory=Counter)
    noted: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    lengths: Counter[int] = field(default_factory=Counter)  # of training documents: by the bits of their number of characters

    @property
    def kept(self) -> int:
        return self.documents.total()


class KeptIds:
    """Finds the id of any survivor again, in the shard where it lies."""

    def __init__(self, survivors: Survivors, decisions: Decisions) -> None:
        self.survivors, self.decisions = survivors, decisions

    def of(self, row: int) -> str:
        """Return `source: id` of the survivor with this number, as it stands in the corpus."""
        found = self.survivors.record(row)
        return f"{found['source']}: {self.id_of(row, found)}"

    def id_of(self, row: int, record: dict[str, Any]) -> str:
        return unique_id(record["id"], self.survivors.sha256_high(row)) if self.decisions.renamed[row] else record["id"]


def unique_id(document_id: str, sha256_high: int) -> str:
    return f"{document_id}#{sha256_high:016x}"


@dataclass
class SourceWriter:
    """Writes the files of one source from its tasks' shards."""

    folder: Path
    name: str
    source: SourceConfig
    decisions: Decisions
    kept_ids: KeptIds
    tally: Tally = field(default_factory=Tally)

    def run(self, tasks: Sequence[tuple[int, Task, Shard]]) -> Tally:
        """Write every task's documents, given as (number of the shard, task, shard); check the balance."""
        with ExitStack() as stack:

            def open_for(relative: str) -> BinaryIO:
                return stack.enter_context((self.folder / relative).open("wb", buffering=BLOCK_BYTES))

            self.sides = {
                number: open_for(f"{self.name}.{side}.jsonl")
                for number, side in enumerate(SIDES)
                if side != "valid" or self.source.valid_fraction > 0
            }
            self.rejects, self.repairs = open_for(f"rejects/{self.name}.jsonl"), open_for(f"repairs/{self.name}.jsonl")
            lines_before: dict[str, int] = {}  # of a file whose ranges are several tasks
            for number, task, shard in tasks:
                files = [(piece.file, lines_before.get(piece.file, 0)) for piece in task.pieces]
                self.write_shard(number, shard, files)
                for piece, read in zip(task.pieces, shard.counts.read, strict=True):
                    lines_before[piece.file] = lines_before.get(piece.file, 0) + read
        assert self.tally.read == self.tally.kept + self.tally.rejected.total(), f"{self.name}: {self.tally}"
        return self.tally

    def write_shard(self, number: int, shard: Shard, files: Sequence[tuple[str, int]]) -> None:
        documents, rows = shard.documents(), self.decisions.of_shard(number)
        reason = self.decisions.reason[rows]
        self.tally.read += sum(shard.counts.read)
        self.tally.noted.update(shard.counts.noted)
        sides = sides_of(documents["sha256_high"], valid_fraction=self.source.valid_fraction, test_fraction=self.source.test_fraction)
        for side, name in enumerate(SIDES):
            chosen = documents[(sides == side) & (reason == KEPT)]
            self.tally.documents[name] += len(chosen)
            self.tally.num_bytes[name] += int(chosen["num_bytes"].sum(dtype=np.int64))
            self.tally.num_chars[name] += int(chosen["num_chars"].sum(dtype=np.int64))
        trained_on = documents["num_chars"][(sides == TRAIN) & (reason == KEPT)]
        self.tally.lengths.update(np.frexp(trained_on.astype(np.float64))[1].tolist())
        self.copy_lines(shard, documents, np.where(reason == KEPT, sides.astype(np.int64), -1), self.decisions.renamed[rows])
        decided = self.decided_rejects(documents, reason, rows.start)
        for piece, line, why, detail in heapq.merge(shard.json_rows("rejects.jsonl"), decided, key=lambda row: (row[0], row[1])):
            file, before = files[piece]
            self.tally.rejected[why] += 1
            record = {"file": file, "line": before + line, "reason": why, "detail": clean_text(detail).text}
            self.rejects.write(document_line(record))
        for survivor, piece, line, repairs in shard.json_rows("repairs.jsonl"):
            if reason[survivor] == KEPT:
                file, before = files[piece]
                self.tally.repaired.update(dict.fromkeys(repairs, 1))
                self.repairs.write(document_line({"file": file, "line": before + line, "repairs": repairs}))

    def copy_lines(self, shard: Shard, documents: np.ndarray, sides: np.ndarray, renamed: np.ndarray) -> None:
        """Copy runs of neighbouring lines that go to one side (-1: nowhere) in blocks; a line with a new id is written anew."""
        ends = np.cumsum(documents["line_bytes"], dtype=np.int64)
        breaks = np.flatnonzero((np.diff(sides) != 0) | renamed[1:] | renamed[:-1]) + 1 if len(sides) > 1 else np.empty(0, np.int64)
        bounds = [0, *breaks.tolist(), len(sides)] if len(sides) else []
        with (shard.folder / "documents.jsonl").open("rb") as lines:
            for begin, end in pairwise(bounds):
                if sides[begin] < 0:
                    continue
                lines.seek(int(ends[begin - 1]) if begin else 0)
                left = int(ends[end - 1]) - lines.tell()
                out = self.sides[int(sides[begin])]
                for _ in range(end - begin):
                    if not renamed[begin] and len(self.tally.examples) == NUM_EXAMPLES:
                        break
                    line = lines.readline()
                    left -= len(line)
                    out.write(self.with_example(line, int(documents["sha256_high"][begin]) if renamed[begin] else None))
                while left and (block := lines.read(min(left, BLOCK_BYTES))):
                    out.write(block)
                    left -= len(block)

    def with_example(self, line: bytes, sha256_high: int | None) -> bytes:
        """Return a line, with the digest added to its id where one is given; keep the beginning of the first texts as examples."""
        record = json.loads(line)
        if len(self.tally.examples) < NUM_EXAMPLES:
            self.tally.examples.append(record["text"][:160])
        return line if sha256_high is None else document_line({**record, "id": unique_id(record["id"], sha256_high)})

    def decided_rejects(self, documents: np.ndarray, reason: np.ndarray, first_row: int) -> Iterator[list[Any]]:
        """Yield a row `[piece, line, reason, detail]` for each survivor that was decided against."""
        for place in np.flatnonzero(reason != KEPT).tolist():
            document = documents[place]
            detail = ""
            if reason[place] in (DUPLICATE, NEAR_DUPLICATE):
                kept = self.kept_ids.of(int(self.decisions.kept_of[first_row + place]))
                near = "" if reason[place] == DUPLICATE else "near "
                detail = f"text sha256 {int(document['sha256_high']):016x} is {near}that of the kept {kept}"
            elif reason[place] == NOT_SELECTED:
                assert self.decisions.choice is not None
                detail = self.decisions.choice.reason_of(first_row + place)
            yield [int(document["piece"]), int(document["line"]), REASONS[reason[place]], detail]
