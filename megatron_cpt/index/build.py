"""The index stage's body: each source's train documents to one `.bin/.idx`, verified from disk before it counts.

A source is a part of the work: other processes may have done parts before, and the stage gathers them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_cpt.errors import DataError
from megatron_cpt.index.codec import HfCodec
from megatron_cpt.index.shards import shard_batches, spread_samples
from megatron_cpt.index.sidecar import finished_with
from megatron_cpt.index.write import Job, RejectFile, write_index
from megatron_cpt.record.hashing import files_under, sha256_file
from megatron_cpt.record.manifest import StageResult
from megatron_cpt.record.vocab_contract import TOKENIZER_NAME, check_vocab, read_layout
from megatron_cpt.record.vocab_layout import VocabLayout


def names_with_text(corpus_facts: dict[str, Any]) -> list[str]:
    """Return the sources that get an index, in order: those with train documents.

    Raises:
        DataError: there is none.
    """
    names = [name for name, facts in sorted(corpus_facts["sources"].items()) if facts["train_documents"]]
    if not names:
        raise DataError("No source has a train document.", where="corpus", next_step="Lower test_fraction of a source that is trained on.")
    return names


def build_index(
    result: StageResult, *, corpus_folder: Path, vocab_folder: Path, corpus_facts: dict[str, Any], say: Callable[[str], None]
) -> int:
    """Write `<source>.train.bin`, `.idx` and `.json` for every source that has train documents; return the tokens that were written now.

    The bytes are those that Megatron-LM's own tool writes with `--append-eod` for the same ids: one sequence a document, the
    end-of-document id once at its end. A document that holds bytes which the tokenizer has no piece for is left out and listed in
    `rejects/<source>.jsonl`. A source whose pair stands finished in the folder, made of the same shard and tokenizer, is not done again.

    Raises:
        DataError: the vocabulary is not what its contract says, no source has a train document, an index fails its checks, or another
            process is at one.
        ConfigError: a pair stands finished that was made of another shard or tokenizer; what differs is named.
    """
    parts = build_parts(result.folder, corpus_folder=corpus_folder, vocab_folder=vocab_folder, corpus_facts=corpus_facts, say=say)
    for path in files_under(result.folder):
        if path.name.startswith(".") or path.suffix == ".partial":  # of a process that was killed; each source is whole by now
            path.unlink()
    result.facts["tokenizer_fingerprint"] = read_layout(vocab_folder).fingerprint
    result.facts["sources"] = {
        name: {"role": corpus_facts["sources"][name]["role"], "licence": corpus_facts["sources"][name]["licence"], **part.facts}
        for name, part in parts.items()
    }
    return sum(part.tokens_now for part in parts.values())


@dataclass(frozen=True)
class Part:
    """One source's pair. `was_done`: it stood there whole."""

    facts: dict[str, Any]
    was_done: bool

    @property
    def tokens_now(self) -> int:
        return 0 if self.was_done else int(self.facts["tokens"])


def build_parts(
    folder: Path,
    *,
    corpus_folder: Path,
    vocab_folder: Path,
    corpus_facts: dict[str, Any],
    say: Callable[[str], None],
    share: tuple[int, int] = (0, 1),
) -> dict[str, Part]:
    """Write and verify the pairs of sources, each under its writer's lock, in the folder where the stage gathers all of them.

    Args:
        share: (I, N): the sources I, I + N, I + 2N ... alone; by default all.

    Raises:
        CptError: as `build_index`.
    """
    layout = check_vocab(vocab_folder)
    codec = HfCodec.from_file(vocab_folder / TOKENIZER_NAME, num_ids=layout.num_ids)
    (folder / "rejects").mkdir(parents=True, exist_ok=True)
    parts = {}
    for name in names_with_text(corpus_facts)[share[0] :: share[1]]:
        source = corpus_facts["sources"][name]
        shard = corpus_folder / f"{name}.train.jsonl"
        facts, was_done = index_source(folder, name, shard, codec, layout, licence=source["licence"], say=say)
        read = facts["documents"] + facts["unencodable_documents"]
        if read != source["train_documents"]:
            raise DataError(
                "A shard does not hold the documents of its record.", where=name, value=read, rule=f"{source['train_documents']} documents"
            )
        parts[name] = Part(facts, was_done)
        left_out = f", {facts['unencodable_documents']:,} left out" if facts["unencodable_documents"] else ""
        done = ", finished before" if was_done else f", by {facts['encoder']}"
        say(f"index: {name}: {facts['documents']:,} documents, {facts['tokens']:,} tokens, {facts['dtype']}{left_out}{done}")
    return parts


def index_source(
    folder: Path, name: str, shard: Path, codec: HfCodec, layout: VocabLayout, *, licence: str, say: Callable[[str], None]
) -> tuple[dict[str, Any], bool]:
    """Write and verify one source's index, unless it stands there whole; return its figures, and whether it stood there."""
    prefix = folder / f"{name}.train"
    inputs = {
        "texts": {shard.name: sha256_file(shard)}, "key": "text", "tokenizer_fingerprint": layout.fingerprint,
        "end_of_document_id": layout.end_of_document_id,
    }  # fmt: skip
    record = finished_with(prefix, inputs)
    was_done = record is not None
    if record is None:
        job = Job(
            prefix, codec, lambda: shard_batches(shard), layout.end_of_document_id, lambda: inputs,
            labels={"source": name, "licence": licence}, samples=spread_samples(shard, key="text"),
            tokenizer={"fingerprint": layout.fingerprint}, rejects=RejectFile(folder / "rejects" / f"{name}.jsonl"),
        )  # fmt: skip
        record = write_index(job, say=say)
    kept = ("documents", "tokens", "longest_document_tokens", "dtype", "documents_decoded_and_compared", "by_source", "by_licence")
    facts = {key: record[key] for key in kept}
    return {**facts, "unencodable_documents": sum(record["left_out"].values()), "encoder": record["encoder"]["name"]}, was_done
