"""One index from end to end: batches are read ahead, encoded, checked document by document, written, verified, and named last.

Three threads share the work: one reads and parses, one encodes (on the library's own threads), one checks and writes.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from megatron_cpt.index.batches import Batch
from megatron_cpt.index.codec import Codec, Ids, Lengths
from megatron_cpt.index.format import IndexWriter
from megatron_cpt.index.parity import Mismatch, Parity, choose_encoder, first_line, reference_only, reraise_if_ours
from megatron_cpt.index.sidecar import write_sidecar
from megatron_cpt.index.tally import LabelTally, TextSample
from megatron_cpt.index.verify import compare_texts, verify_index
from megatron_cpt.record.manifest import versions_in_use

NOT_ENCODABLE = "not_encodable"
HOLDS_END_MARK = "holds_end_mark"
WORDS = {
    NOT_ENCODABLE: "holds bytes that the tokenizer has no piece for",
    HOLDS_END_MARK: "holds the end-of-document token, which this tokenizer takes for more than text",
}


class RejectFile:
    """Lists documents that were left out, one JSON line each; whole on disk before the index counts as finished."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIO | None = None

    def restart(self) -> None:
        """Begin the list again."""
        self._file = self._path.open("w", encoding="utf-8", newline="\n")

    def add(self, number: int, name: Any, reason: str) -> None:
        assert self._file is not None, "restart comes first"
        self._file.write(json.dumps({"id": name, "line": number, "reason": reason}, ensure_ascii=False) + "\n")

    def close(self) -> None:
        """Bring the list to disk."""
        assert self._file is not None, "restart comes first"
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


@dataclass(frozen=True)
class Job:
    """What one index is made of.

    Attributes:
        batches: opens the texts from their beginning; called again when the fast encoder proves unequal.
        end_id: put once at each document's end; None leaves documents as they are.
        labels: source and licence of documents that carry none.
        samples: texts spread over the corpus, for the probe of the fast encoder.
        inputs: what decides the bytes, for the sidecar; called when the texts have been read.
        tokenizer: what the sidecar says of the tokenizer beside its digest and its sizes.
        rejects: takes the documents that are left out.
        progress: told the records and the bytes of text that were read so far, after each batch.
        fast: try the fast encoder.
    """

    prefix: Path
    codec: Codec
    batches: Callable[[], Iterator[Batch]]
    end_id: int | None
    inputs: Callable[[], Mapping[str, Any]]
    labels: Mapping[str, str] = field(default_factory=dict)
    samples: Sequence[str] = ()
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    rejects: RejectFile | None = None
    progress: Callable[[int, int], None] = lambda records, num_bytes: None
    fast: bool = True


def write_index(job: Job, *, say: Callable[[str], None]) -> dict[str, Any]:
    """Write, verify and record one index; return its sidecar.

    Args:
        say: takes a sentence when the encoder changes in the middle of a file.

    Raises:
        DataError: no document was kept, or the index fails its checks.
    """
    parity = choose_encoder(job.codec, job.samples) if job.fast else reference_only(job.codec, "asked for")
    try:
        return _Pass(job, parity).run()
    except Mismatch as error:
        reason = f"{error}; the file was begun again"
    except _FastFailure as error:
        reason = f"{parity.encoder.name} failed: {error}; the file was begun again"
    say(f"index: {job.prefix.name}: {reason} with {job.codec.exact.name}")
    return _Pass(job, reference_only(job.codec, reason)).run()


class _FastFailure(Exception):
    """The fast library gave up in the middle of a file."""


class _Pass:
    """One walk through the texts with one encoder."""

    def __init__(self, job: Job, parity: Parity) -> None:
        self.job, self.parity = job, parity
        self.left_out: Counter[str] = Counter()
        self.tally = LabelTally(job.labels)
        self.sample = TextSample(job.codec.expected_back)
        self.num_read = self.num_bytes = self.num_unknown = self.longest = 0

    def run(self) -> dict[str, Any]:
        job = self.job
        num_records = num_bytes = 0
        with IndexWriter(job.prefix, num_ids=job.codec.num_ids) as writer:  # its lock keeps others from the list of rejects too
            if job.rejects:
                job.rejects.restart()
            with ThreadPoolExecutor(1) as reading, ThreadPoolExecutor(1) as writing:
                batches = job.batches()
                ahead = reading.submit(next, batches, None)
                written: Future[None] | None = None
                try:
                    while (batch := ahead.result()) is not None:
                        ahead = reading.submit(next, batches, None)
                        ids, lengths = self._encode(batch.texts)
                        if written is not None:
                            written.result()
                        written = writing.submit(self._take, writer, batch, ids, lengths)
                        num_records, num_bytes = num_records + batch.num_read, num_bytes + int(batch.sizes.sum())
                        job.progress(num_records, num_bytes)
                    if written is not None:
                        written.result()
                finally:
                    ahead.cancel()
            writer.finish()
            num_documents, num_tokens = len(writer.lengths), sum(writer.lengths)
            sha256 = {".bin": writer.bin_sha256.hexdigest(), ".idx": writer.idx_sha256}
        pair = verify_index(job.prefix, num_ids=job.codec.num_ids, end_id=job.end_id, num_documents=num_documents)
        compared = compare_texts(pair, job.codec.back, self.sample.digests(), has_end=job.end_id is not None)
        if job.rejects:
            job.rejects.close()
        facts = {
            "dtype": writer.dtype.name, "documents": num_documents, "tokens": num_tokens, "longest_document_tokens": self.longest,
            "text_bytes": self.num_bytes, "records_read": self.num_read, "left_out": dict(sorted(self.left_out.items())),
            "unknown_tokens": self.num_unknown, "documents_decoded_and_compared": compared, **self.tally.plain(),
        }  # fmt: skip
        tokenizer = {"sha256": job.codec.sha256, "num_ids": job.codec.num_ids, "end_of_document_id": job.end_id, **job.tokenizer}
        return write_sidecar(
            job.prefix, tokenizer=tokenizer, facts=facts, encoder=self.parity.plain(), inputs=job.inputs(), sha256=sha256,
            versions=versions_in_use(),
        )  # fmt: skip

    def _encode(self, texts: list[str]) -> tuple[Ids, Lengths]:
        if not self.parity.is_fast:
            return self.parity.encoder.encode(texts)
        try:
            ids, lengths = self.parity.encoder.encode(texts)
        except BaseException as error:
            reraise_if_ours(error)
            raise _FastFailure(first_line(error)) from None
        self.parity.recheck(texts, ids, lengths)
        return ids, lengths

    def _take(self, writer: IndexWriter, batch: Batch, ids: Ids, lengths: Lengths) -> None:
        """Check a batch's documents, leave out those that fail, and write the others with their end marks."""
        self.num_read += batch.num_read
        for number, reason in batch.left_out:
            self._leave_out(number, None, reason)
        if not batch.texts:
            return
        job = self.job
        places = np.flatnonzero(ids == job.end_id) if job.end_id is not None else np.zeros(0, np.int64)
        whole = job.codec.holds_whole(batch.texts, batch.sizes, ids, lengths) & (lengths > 0)
        with_end = np.zeros(lengths.size, dtype=bool)
        with_end[np.searchsorted(np.cumsum(lengths), places, side="right")] = True
        keep = whole & ~with_end
        texts, labels, sizes = batch.texts, batch.labels, batch.sizes
        if not keep.all():
            for place in np.flatnonzero(~keep).tolist():
                reason = NOT_ENCODABLE if not whole[place] else HOLDS_END_MARK
                self._leave_out(batch.numbers[place], batch.ids[place], reason)
            ids = ids[np.repeat(keep, lengths)]
            lengths, sizes = lengths[keep], sizes[keep]
            kept = np.flatnonzero(keep).tolist()
            texts, labels = [texts[place] for place in kept], [labels[place] for place in kept]
            if not kept:
                return
        if job.codec.unknown_id is not None:
            self.num_unknown += int(np.count_nonzero(ids == job.codec.unknown_id))
        if job.end_id is not None:
            ids, lengths = with_end_marks(ids, lengths, job.end_id, writer)
        self.sample.add(len(writer.lengths), texts)
        self.tally.add(labels, lengths)
        self.num_bytes += int(sizes.sum())
        self.longest = max(self.longest, int(lengths.max()))
        writer.add_many(ids, lengths)

    def _leave_out(self, number: int, name: Any, reason: str) -> None:
        self.left_out[reason] += 1
        if self.job.rejects:
            self.job.rejects.add(number, name, WORDS.get(reason, reason))


def with_end_marks(ids: Ids, lengths: Lengths, end_id: int, writer: IndexWriter) -> tuple[Ids, Lengths]:
    """Return the ids with the end mark after each document, in the writer's dtype, and the lengths with it."""
    if ids.size and int(ids.max()) > np.iinfo(writer.dtype).max:
        return np.insert(ids, np.cumsum(lengths), end_id), lengths + 1  # the writer refuses it by name
    longer = lengths + 1
    ends = np.cumsum(longer) - 1
    marked = np.empty(ids.size + lengths.size, dtype=writer.dtype)
    is_text = np.ones(marked.size, dtype=bool)
    is_text[ends] = False
    marked[is_text] = ids
    marked[ends] = end_id
    return marked, longer
