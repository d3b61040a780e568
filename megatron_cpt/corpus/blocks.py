"""The blocks of the first pass: read, clean, filter, write. Each record leaves as a survivor or as a reject with its reason.

What is decided here follows from the record alone (and from fixed settings), never from other documents: so tasks need not know of
each other. What depends on other documents (copies, selection) is decided afterwards, in `decide.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from megatron_cpt.config.filter_schema import FilterConfig
from megatron_cpt.config.schema import SourceConfig
from megatron_cpt.corpus.clean import clean_text, text_of, text_problem
from megatron_cpt.corpus.compare_block import CompareUnits, needs_units
from megatron_cpt.corpus.filters import TextFilters
from megatron_cpt.corpus.readers import Unreadable, is_one_text, read_records
from megatron_cpt.corpus.scratch import TaskWriter, halves
from megatron_cpt.corpus.select.in_corpus import FeatureColumns
from megatron_cpt.corpus.sources import text_keys_of
from megatron_cpt.corpus.tasks import Piece, Task, TaskPlan
from megatron_cpt.errors import DataError

MAX_ID_CHARS = 200


def blocks_of(plan: TaskPlan, task: Task, writer: TaskWriter) -> list[PipelineStep]:
    """Return the first pass over one task, as datatrove runs it."""
    source = plan.sources[task.source]
    filtering = [FilterTexts(plan.settings.filters, source, writer)] if plan.settings.filters != FilterConfig() else []
    compare = [CompareUnits(plan.settings, source, writer)] if needs_units(plan.settings, writer.scratch) else []
    features = FeatureColumns(plan.settings.select, writer) if FeatureColumns.wanted(plan, task.source) else None
    return [
        ReadRecords(task, source, writer),
        CleanTexts(source, writer),
        *filtering,
        *compare,
        WriteShard(task.source, writer, features),
    ]


class DamagedFiles(DataError):
    """Files of a task are damaged: `problems` has a message for each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class CorpusBlock(PipelineStep):  # type: ignore[misc] # datatrove has no types
    """A block that leaves records out: it tells the task's writer which and why."""

    def __init__(self, writer: TaskWriter) -> None:
        super().__init__()
        self.writer = writer

    def reject(self, document: Document, reason: str, detail: str) -> None:
        self.writer.reject(document.metadata["piece"], document.metadata["line"], reason, detail)


class ReadRecords(CorpusBlock):
    """Reads a task's pieces; a record without a usable text is left out here.

    A document's metadata are `piece` (number in the task) and `line` (from 1 within the piece), `repairs` and the user's `id`.
    """

    name = "records"
    type = "READ"

    def __init__(self, task: Task, source: SourceConfig, writer: TaskWriter) -> None:
        super().__init__(writer)
        self.task, self.text_keys = task, text_keys_of(source)

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        damaged = []
        for number, piece in enumerate(self.task.pieces):
            try:
                yield from self.read_piece(number, piece)
            except DataError as error:
                damaged.append(str(error))
        if damaged:
            raise DamagedFiles(damaged)

    def read_piece(self, number: int, piece: Piece) -> Iterator[Document]:
        path = Path(piece.path)
        keys = self.text_keys[:1] if is_one_text(path) else self.text_keys
        for record in read_records(path, text_keys=keys, start=piece.start, end=piece.end):
            self.writer.read[number] += 1
            if isinstance(record, Unreadable):
                self.writer.reject(number, record.line, record.reason, record.detail)
            elif problem := text_problem(record.fields, keys):
                self.writer.reject(number, record.line, *problem)
            else:
                repairs = {"byte_order_mark": 1} if record.had_bom else {}
                metadata = {"piece": number, "line": record.line, "id": record.fields.get("id"), "repairs": repairs}
                yield Document(text=text_of(record.fields, keys), id="", metadata=metadata)


class CleanTexts(CorpusBlock):
    """Makes texts strict UTF-8 without control characters; leaves out those with nothing in them and short ones."""

    name = "texts"
    type = "CLEAN"

    def __init__(self, source: SourceConfig, writer: TaskWriter) -> None:
        super().__init__(writer)
        self.min_chars = source.min_chars

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        for document in data or ():
            cleaned = clean_text(document.text)
            document.text = cleaned.text
            for what, count in cleaned.repairs.items():
                document.metadata["repairs"][what] = document.metadata["repairs"].get(what, 0) + count
            if not cleaned.text.strip():
                self.reject(document, "empty_text", "nothing but white space or control characters")
            elif len(cleaned.text) < self.min_chars:
                self.reject(document, "too_short", f"{len(cleaned.text)} characters, min_chars {self.min_chars}")
            else:
                yield document


class FilterTexts(CorpusBlock):
    """Leaves out texts by the filters of the source's language, masks what is private and counts what was found, by source."""

    name = "filters"
    type = "FILTER"

    def __init__(self, settings: FilterConfig, source: SourceConfig, writer: TaskWriter) -> None:
        super().__init__(writer)
        self.min_chars = source.min_chars
        self.filters = TextFilters(settings, language=source.language)

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        for document in data or ():
            before, verdict = document.text, self.filters(document.text)
            if verdict.language is not None:
                self.writer.note(f"language {verdict.language}")
            for kind, count in verdict.counts.items():
                self.writer.note(f"found {kind}", count)
            document.text = verdict.text
            if verdict.reason is not None:
                self.reject(document, verdict.reason, verdict.detail)
            elif not verdict.text.strip():
                self.reject(document, "empty_text", "nothing is left behind the filters")
            elif len(verdict.text) < self.min_chars:
                self.reject(document, "too_short", f"{len(verdict.text)} characters behind the filters, min_chars {self.min_chars}")
            else:
                if verdict.text != before:
                    document.metadata["repairs"].update(self.filters.changes(verdict.counts))
                yield document


class WriteShard(CorpusBlock):
    """Gives every survivor its id and digests, writes it, and publishes the task's folder when all have come."""

    name = "shard"
    type = "WRITE"

    def __init__(self, source: str, writer: TaskWriter, features: FeatureColumns | None) -> None:
        super().__init__(writer)
        self.source, self.features = source, features

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        for document in data or ():
            piece, line = document.metadata["piece"], document.metadata["line"]
            encoded = document.text.encode("utf-8")
            digest = hashlib.sha256(encoded)
            document.id = document_id(document.metadata["id"], digest.hexdigest())
            if document.metadata["repairs"]:
                self.writer.repaired(piece, line, document.metadata["repairs"])
            written = document_line({"id": document.id, "text": document.text, "source": self.source})
            if self.features is not None:
                self.features.add(document.text)
            places = (len(encoded), len(document.text), len(written), piece, line)
            self.writer.keep(written, (*halves(digest.digest()), *id_key(document.id), *places))
            for name, row in document.metadata.get("columns", {}).items():
                self.writer.add_rows(name, row)
            yield document
        self.stat_update("kept", value=self.writer.kept)
        self.writer.publish()


def document_id(given: object, text_sha256: str) -> str:
    """Return the user's id, or a prefix of the text's digest where there is none that is usable."""
    chosen = ""
    if isinstance(given, str | int) and not isinstance(given, bool):
        chosen = clean_text(str(given)[: MAX_ID_CHARS + 1]).text.strip()
    return text_sha256[:16] if not chosen or len(chosen) > MAX_ID_CHARS else chosen


def id_key(document_id: str) -> tuple[int, int]:
    return halves(hashlib.sha256(document_id.encode("utf-8")).digest())


def document_line(record: dict[str, Any]) -> bytes:
    """Return a record as one line of JSON, in UTF-8; what many a reader takes for an end of line is escaped."""
    line = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
    for separator in ("\u2028", "\u2029", "\x85"):
        line = line.replace(separator, f"\\u{ord(separator):04x}")
    return line.encode("utf-8") + b"\n"
