"""The index stage's body: each source's train documents to one `.bin/.idx`, verified from disk before it counts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from megatron_cpt.errors import DataError
from megatron_cpt.index.encode import Document, Faithful, encode
from megatron_cpt.index.format import IndexWriter
from megatron_cpt.index.verify import compare_texts, verify_index
from megatron_cpt.record.manifest import StageResult
from megatron_cpt.record.store import write_text
from megatron_cpt.record.tokenizer_file import load_tokenizer
from megatron_cpt.record.vocab_contract import TOKENIZER_NAME, check_vocab
from megatron_cpt.record.vocab_layout import VocabLayout


def build_index(
    result: StageResult, *, corpus_folder: Path, vocab_folder: Path, corpus_facts: dict[str, Any], say: Callable[[str], None]
) -> None:
    """Write `<source>.train.bin` and `.idx` for every source that has train documents.

    The bytes are those that Megatron-LM's own tool writes with `--append-eod` for the same ids: one sequence a document, the
    end-of-document id once at its end. A document that holds bytes which the tokenizer has no piece for is left out and listed in
    `rejects/<source>.jsonl`.

    Raises:
        DataError: the vocabulary is not what its contract says, no source has a train document, or an index fails its checks.
    """
    layout = check_vocab(vocab_folder)
    tokenizer = load_tokenizer(vocab_folder / TOKENIZER_NAME)
    names = [name for name, facts in sorted(corpus_facts["sources"].items()) if facts["train_documents"]]
    if not names:
        raise DataError("No source has a train document.", where="corpus", next_step="Lower test_fraction of a source that is trained on.")
    (result.folder / "rejects").mkdir()
    result.facts["tokenizer_fingerprint"] = layout.fingerprint
    result.facts["sources"] = {}
    for name in names:
        source = corpus_facts["sources"][name]
        facts = index_source(result.folder, name, corpus_folder / f"{name}.train.jsonl", tokenizer, layout)
        read = facts["documents"] + facts["unencodable_documents"]
        if read != source["train_documents"]:
            raise DataError(
                "A shard does not hold the documents of its record.", where=name, value=read, rule=f"{source['train_documents']} documents"
            )
        result.facts["sources"][name] = {"role": source["role"], "licence": source["licence"], **facts}
        left_out = f", {facts['unencodable_documents']:,} left out" if facts["unencodable_documents"] else ""
        say(f"index: {name}: {facts['documents']:,} documents, {facts['tokens']:,} tokens, {facts['dtype']}{left_out}")


def documents_of(shard: Path) -> Iterator[Document]:
    """Yield the documents of a corpus shard, one at a time."""
    with shard.open(encoding="utf-8", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            record = json.loads(line)
            yield Document(number, record["id"], record["text"])


def index_source(folder: Path, name: str, shard: Path, tokenizer: Tokenizer, layout: VocabLayout) -> dict[str, Any]:
    """Write and verify one source's index; return its figures."""
    faithful = Faithful(tokenizer, layout.num_ids)
    prefix = folder / f"{name}.train"
    left_out: dict[int, dict[str, Any]] = {}
    with IndexWriter(prefix, num_ids=layout.num_ids) as writer:
        for document, ids in encode(tokenizer, documents_of(shard)):
            if ids.size and faithful(document.text, ids):
                writer.add(np.append(ids, layout.end_of_document_id))
            else:
                reason = "holds bytes that the tokenizer has no piece for"
                left_out[document.number] = {"id": document.name, "line": document.number, "reason": reason}
        writer.finish()
        lengths, dtype = writer.lengths, writer.dtype.name
    index = verify_index(prefix, num_ids=layout.num_ids, end_id=layout.end_of_document_id, num_documents=len(lengths))
    compared = compare_texts(index, tokenizer, (document for document in documents_of(shard) if document.number not in left_out))
    rejects = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in left_out.values())
    write_text(folder / "rejects" / f"{name}.jsonl", rejects)
    return {
        "documents": len(lengths), "tokens": sum(lengths), "longest_document_tokens": max(lengths), "dtype": dtype,
        "unencodable_documents": len(left_out), "documents_decoded_and_compared": compared,
    }  # fmt: skip
