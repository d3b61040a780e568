"""The record beside an index, `<prefix>.json`: what it holds, of which tokenizer, by which encoder, and the digests of both files.

It is written last. An index that has it is whole; a rerun takes such a pair as it is when its inputs are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_cpt.errors import ConfigError, DataError
from megatron_cpt.record.hashing import sha256_file
from megatron_cpt.record.index_pair import bin_path, idx_path, sidecar_path
from megatron_cpt.record.manifest import differing_fields
from megatron_cpt.record.store import read_json, write_json

SCHEMA_VERSION = 1
FORMAT = "Megatron indexed dataset, version 1"


def write_sidecar(
    prefix: Path, *, tokenizer: Mapping[str, Any], facts: Mapping[str, Any], encoder: Mapping[str, Any], inputs: Mapping[str, Any],
    sha256: Mapping[str, str], versions: Mapping[str, str],
) -> dict[str, Any]:  # fmt: skip
    """Write the sidecar of a finished pair and return it.

    Args:
        inputs: what decides the bytes: digests of the texts, the tokenizer, the key and the end mark.
        sha256: digests of the files by suffix, `.bin` and `.idx`.
    """
    record = {
        "schema_version": SCHEMA_VERSION,
        "format": FORMAT,
        "tokenizer": dict(tokenizer),
        **facts,
        "encoder": dict(encoder),
        "inputs": dict(inputs),
        "files": {
            path.suffix: {"size_bytes": path.stat().st_size, "sha256": sha256[path.suffix]} for path in (bin_path(prefix), idx_path(prefix))
        },
        "versions": dict(versions),
    }
    write_json(sidecar_path(prefix), record)
    return record


def read_sidecar(prefix: Path) -> dict[str, Any]:
    """Return the record of an index.

    Raises:
        DataError: there is none, or another version wrote it.
    """
    record = read_json(sidecar_path(prefix))
    if not isinstance(record, dict) or record.get("schema_version") != SCHEMA_VERSION:
        raise DataError("The record of an index was written by another version.", where=sidecar_path(prefix))
    return record


def check_digests(prefix: Path, record: Mapping[str, Any]) -> None:
    """Compare both files with their record, byte by byte.

    Raises:
        DataError: a file is missing or differs; it is named.
    """
    for path in (bin_path(prefix), idx_path(prefix)):
        wanted = record["files"][path.suffix]["sha256"]
        if not path.is_file() or sha256_file(path) != wanted:
            raise DataError(
                "A file of an index is not the one that was written." if path.is_file() else "A file of an index is missing.",
                where=path, rule=f"sha256 {wanted}", next_step="Build the index again.",
            )  # fmt: skip


def finished_with(prefix: Path, inputs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the record of a pair that is whole and was made of these inputs, None where there is no whole pair.

    Raises:
        ConfigError: a whole pair of other inputs stands there; each differing field is named.
    """
    if not sidecar_path(prefix).is_file():
        return None
    try:
        record = read_sidecar(prefix)
        recorded = record["inputs"]
        check_digests(prefix, record)
    except (DataError, KeyError):
        return None
    changes = differing_fields(recorded, inputs)
    if changes:
        raise ConfigError(
            "An index was finished with other inputs:\n    " + "\n    ".join(changes), where=prefix,
            rule="a finished index is never redone in place", next_step=f"Remove {prefix.parent} and run again to build it anew.",
        )  # fmt: skip
    return record
