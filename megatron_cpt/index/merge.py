"""Joins indexes to one: tokens one after another, document boundaries kept, offsets in 64 bits."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_cpt.errors import DataError
from megatron_cpt.index.format import write_idx
from megatron_cpt.index.sidecar import check_digests, read_sidecar, write_sidecar
from megatron_cpt.record.hashing import CHUNK_BYTES, sha256_file
from megatron_cpt.record.index_pair import DTYPES, IndexPair, bin_path, idx_path, open_pair, sidecar_path
from megatron_cpt.record.manifest import versions_in_use
from megatron_cpt.record.store import sync_folder


def merge_indexes(prefixes: Sequence[Path], target: Path) -> IndexPair:
    """Write the documents of several indexes, in their order, as one; a sidecar is written where all of them have one.

    Raises:
        DataError: an index is damaged, dtypes or tokenizers differ, some have a sidecar and some have none, or the target is there.
    """
    pairs = [open_pair(prefix) for prefix in prefixes]
    records = _records_of(prefixes, pairs)
    for path in (bin_path(target), idx_path(target), sidecar_path(target)):
        if path.exists():
            raise DataError("The target of a merge is there already.", where=path, next_step="Choose another name.")
    dtype = pairs[0].tokens.dtype
    code = next(number for number, known in DTYPES.items() if known == dtype)
    lengths = np.concatenate([pair.lengths for pair in pairs])
    before = np.cumsum([0, *(pair.lengths.size for pair in pairs)])
    documents = np.concatenate([np.zeros(1, np.int64), *(pair.documents[1:] + first for pair, first in zip(pairs, before, strict=False))])
    partial_bin, partial_idx = (path.with_name(path.name + ".partial") for path in (bin_path(target), idx_path(target)))
    try:
        digest = hashlib.sha256()
        with partial_bin.open("wb") as file:
            for prefix in prefixes:
                with bin_path(prefix).open("rb") as part:
                    while block := part.read(CHUNK_BYTES):
                        digest.update(block)
                        file.write(block)
            file.flush()
            os.fsync(file.fileno())
        with partial_idx.open("wb") as file:
            write_idx(file, lengths, code, documents)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial_bin, bin_path(target))
        os.replace(partial_idx, idx_path(target))
        sync_folder(target.parent)
    finally:
        for path in (partial_bin, partial_idx):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
    merged = open_pair(target)
    if records:
        facts = _facts_of(records, merged)
        parts = [
            {path.suffix: record["files"][path.suffix]["sha256"] for path in (bin_path(p), idx_path(p))}
            for p, record in zip(prefixes, records, strict=True)
        ]
        write_sidecar(
            target, tokenizer=records[0]["tokenizer"], facts=facts, encoder={"name": "merge", "parts": [r["encoder"] for r in records]},
            inputs={"merged": [{"name": prefix.name, **part} for prefix, part in zip(prefixes, parts, strict=True)]},
            sha256={".bin": digest.hexdigest(), ".idx": sha256_file(idx_path(target))}, versions=versions_in_use(),
        )  # fmt: skip
    return merged


def _records_of(prefixes: Sequence[Path], pairs: Sequence[IndexPair]) -> list[dict[str, Any]]:
    """Return the sidecars, or nothing where no index has one; refuse what does not belong together."""
    dtypes = {pair.tokens.dtype.name for pair in pairs}
    if len(dtypes) > 1:
        raise DataError(
            "Indexes of different dtypes are not merged.", where=prefixes[0], value=", ".join(sorted(dtypes)),
            rule="one tokenizer, so one dtype",
        )  # fmt: skip
    with_record = [prefix for prefix in prefixes if sidecar_path(prefix).is_file()]
    if not with_record:
        return []
    if len(with_record) < len(prefixes):
        bare = next(prefix for prefix in prefixes if prefix not in with_record)
        raise DataError("An index without a record is not merged with those that have one.", where=bare, rule="its tokenizer is unknown")
    records = [read_sidecar(prefix) for prefix in prefixes]
    for prefix, record in zip(prefixes, records, strict=True):
        check_digests(prefix, record)
        for key in ("sha256", "end_of_document_id"):
            if record["tokenizer"][key] != records[0]["tokenizer"][key]:
                raise DataError(
                    "Indexes of different tokenizers or end marks are not merged.", where=prefix,
                    value=f"{key} {record['tokenizer'][key]}", rule=f"{records[0]['tokenizer'][key]}, as in {prefixes[0].name}",
                )  # fmt: skip
    return records


def _facts_of(records: Sequence[dict[str, Any]], merged: IndexPair) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "dtype": merged.tokens.dtype.name, "documents": merged.num_documents, "tokens": merged.num_tokens,
        "longest_document_tokens": max(record["longest_document_tokens"] for record in records),
    }  # fmt: skip
    for key in ("text_bytes", "records_read", "unknown_tokens", "documents_decoded_and_compared"):
        facts[key] = sum(record[key] for record in records)
    left_out: dict[str, int] = {}
    for record in records:
        for reason, count in record["left_out"].items():
            left_out[reason] = left_out.get(reason, 0) + count
    facts["left_out"] = left_out
    for key in ("by_source", "by_licence"):
        groups: dict[str, dict[str, int]] = {}
        for record in records:
            for label, counts in record[key].items():
                group = groups.setdefault(label, {"documents": 0, "tokens": 0})
                for name in group:
                    group[name] += counts[name]
        facts[key] = groups
    return facts
