"""The corpus stage's body: every record of every source is read once and ends in a train file, a test file or a reject file."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from megatron_cpt.config.schema import SourceConfig
from megatron_cpt.corpus.card import write_data_card
from megatron_cpt.corpus.clean import clean_text, text_problem
from megatron_cpt.corpus.readers import Row, Unreadable, read_records
from megatron_cpt.corpus.sources import files_of
from megatron_cpt.errors import DataError, raise_all
from megatron_cpt.record.manifest import StageResult

MAX_ID_CHARS = 200
NUM_EXAMPLES = 2
SAY_EVERY = 100_000


@dataclass
class Tally:
    """The balance sheet of one source."""

    read: int = 0
    train_documents: int = 0
    test_documents: int = 0
    train_bytes: int = 0
    test_bytes: int = 0
    train_chars: int = 0
    test_chars: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    repaired: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    @property
    def kept(self) -> int:
        return self.train_documents + self.test_documents


@dataclass
class Seen:
    """Digests of kept texts and ids over all sources: 16 bytes a document, held in memory."""

    texts: set[bytes] = field(default_factory=set)
    ids: set[bytes] = field(default_factory=set)


def build_corpus(result: StageResult, *, sources: dict[str, SourceConfig], say: Callable[[str], None]) -> None:
    """Write `<source>.train.jsonl`, `<source>.test.jsonl`, `rejects/`, `repairs/` and the data card into the stage's folder.

    Each line of the train and test files is `{"id", "text", "source"}`. Sources go by name, files by path, records by order; the
    first of several equal texts is kept. The side of a document is decided by the digest of its text alone.

    Raises:
        DataError: a file cannot be read, or a source keeps nothing, or one of its sides is empty although it should not be.
    """
    seen = Seen()
    tallies: dict[str, Tally] = {}
    for folder in ("rejects", "repairs"):
        (result.folder / folder).mkdir()
    for name in sorted(sources):
        tally = tallies[name] = Tally()
        SourcePass(result.folder, name, sources[name], seen, tally, say).run()
        assert tally.read == tally.kept + tally.rejected.total(), f"{name}: {tally}"
        say(
            f"corpus: {name}: {tally.read:,} read, {tally.train_documents:,} train, {tally.test_documents:,} test,"
            f" {tally.rejected.total():,} rejected{reasons_in_words(tally.rejected)}"
        )
    raise_all(
        DataError,
        [problem for name in sorted(sources) for problem in split_problems(name, sources[name], tallies[name])],
        where="corpus",
        next_step="Correct the source, or its test_fraction or min_chars; the reasons say what happened to its records.",
    )
    result.facts["sources"] = {name: facts_of(sources[name], tallies[name]) for name in sorted(sources)}
    write_data_card(result.folder, result.facts["sources"], {name: tally.examples for name, tally in tallies.items()})


def reasons_in_words(reasons: Counter[str]) -> str:
    return f" ({', '.join(f'{reason} {count:,}' for reason, count in reasons.most_common())})" if reasons else ""


def split_problems(name: str, source: SourceConfig, tally: Tally) -> list[str]:
    """Return why a source cannot be used after reading, if it cannot."""
    if tally.kept == 0:
        return [f"source {name}: none of its {tally.read} records was kept{reasons_in_words(tally.rejected)}"]
    if source.test_fraction > 0 and tally.test_documents == 0:
        return [
            f"source {name}: no test document among {tally.kept} kept ones at test_fraction {source.test_fraction}; "
            "the side follows from each text's digest, so a few documents can all fall on one side: raise test_fraction or add documents"
        ]
    if source.test_fraction < 1 and tally.train_documents == 0:
        return [f"source {name}: all {tally.kept} kept documents fell on the test side at test_fraction {source.test_fraction}"]
    return []


def facts_of(source: SourceConfig, tally: Tally) -> dict[str, Any]:
    return {
        "role": source.role, "licence": source.licence, "language": source.language, "provenance": source.provenance,
        "read": tally.read, "kept": tally.kept, "rejected": dict(sorted(tally.rejected.items())),
        "repaired": dict(sorted(tally.repaired.items())), "train_documents": tally.train_documents, "test_documents": tally.test_documents,
        "train_bytes": tally.train_bytes, "test_bytes": tally.test_bytes, "train_chars": tally.train_chars, "test_chars": tally.test_chars,
    }  # fmt: skip


def test_side(text_sha256: str, test_fraction: float) -> bool:
    """Say whether a text is held out: its digest, read as a fraction of 2**64, lies below `test_fraction`."""
    return int(text_sha256[:16], 16) < test_fraction * 2.0**64


@dataclass
class SourcePass:
    """One walk over a source's files."""

    folder: Path
    name: str
    source: SourceConfig
    seen: Seen
    tally: Tally
    say: Callable[[str], None]

    def run(self) -> None:
        with ExitStack() as stack:

            def open_for(relative: str) -> TextIO:
                return stack.enter_context((self.folder / relative).open("w", encoding="utf-8", newline="\n"))

            self.train, self.test = open_for(f"{self.name}.train.jsonl"), open_for(f"{self.name}.test.jsonl")
            self.rejects, self.repairs = open_for(f"rejects/{self.name}.jsonl"), open_for(f"repairs/{self.name}.jsonl")
            for relative, path in files_of(self.name, self.source.path):
                for record in read_records(path, text_key=self.source.text_key):
                    self.tally.read += 1
                    self.take(record, relative)
                    if self.tally.read % SAY_EVERY == 0:
                        self.say(f"corpus: {self.name}: {self.tally.read:,} records read")

    def take(self, record: Row | Unreadable, file: str) -> None:
        if isinstance(record, Unreadable):
            self.reject(file, record.line, record.reason, record.detail)
            return
        if problem := text_problem(record.fields, self.source.text_key):
            self.reject(file, record.line, *problem)
            return
        cleaned = clean_text(record.fields[self.source.text_key])
        text, repairs = cleaned.text, dict(cleaned.repairs)
        if record.had_bom:
            repairs["byte_order_mark"] = repairs.get("byte_order_mark", 0) + 1
        if not text.strip():
            self.reject(file, record.line, "empty_text", "nothing but white space or control characters")
            return
        if len(text) < self.source.min_chars:
            self.reject(file, record.line, "too_short", f"{len(text)} characters, min_chars {self.source.min_chars}")
            return
        encoded = text.encode("utf-8")
        digest = hashlib.sha256(encoded)
        if digest.digest()[:16] in self.seen.texts:
            self.reject(file, record.line, "duplicate", f"text sha256 {digest.hexdigest()[:16]} was kept before")
            return
        self.seen.texts.add(digest.digest()[:16])
        if repairs:
            self.tally.repaired.update(dict.fromkeys(repairs, 1))
            write_line(self.repairs, {"file": file, "line": record.line, "repairs": repairs})
        self.keep(self.document_id(record.fields.get("id"), digest.hexdigest()), text, digest.hexdigest(), len(encoded))

    def document_id(self, given: object, text_sha256: str) -> str:
        """Return the user's id, or a prefix of the text's digest; made unique by that digest where two texts share an id."""
        chosen = ""
        if isinstance(given, str | int) and not isinstance(given, bool):
            chosen = clean_text(str(given)[: MAX_ID_CHARS + 1]).text.strip()
        if not chosen or len(chosen) > MAX_ID_CHARS:
            chosen = text_sha256[:16]
        if id_key(chosen) in self.seen.ids:
            chosen = f"{chosen}#{text_sha256[:16]}"
        self.seen.ids.add(id_key(chosen))
        return chosen

    def keep(self, document_id: str, text: str, text_sha256: str, num_bytes: int) -> None:
        tally = self.tally
        if test_side(text_sha256, self.source.test_fraction):
            tally.test_documents += 1
            tally.test_bytes += num_bytes
            tally.test_chars += len(text)
            file = self.test
        else:
            tally.train_documents += 1
            tally.train_bytes += num_bytes
            tally.train_chars += len(text)
            file = self.train
        write_line(file, {"id": document_id, "text": text, "source": self.name})
        if len(tally.examples) < NUM_EXAMPLES:
            tally.examples.append(text[:160])

    def reject(self, file: str, line: int, reason: str, detail: str) -> None:
        self.tally.rejected[reason] += 1
        write_line(self.rejects, {"file": file, "line": line, "reason": reason, "detail": clean_text(detail).text})


def id_key(document_id: str) -> bytes:
    return hashlib.sha256(document_id.encode("utf-8")).digest()[:16]


def write_line(file: TextIO, record: dict[str, Any]) -> None:
    line = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
    for separator in ("\u2028", "\u2029", "\x85"):  # many a reader takes these for ends of lines
        line = line.replace(separator, f"\\u{ord(separator):04x}")
    file.write(line + "\n")
