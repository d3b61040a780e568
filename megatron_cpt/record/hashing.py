"""Content identity: a thing is its bytes, never its name, path or time."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

CHUNK_BYTES = 1 << 20


def sha256_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_text(text: str) -> str:
    return sha256_bytes(text.encode("utf-8"))


def sha256_file(path: Path) -> str:
    """Return the hex digest of a file, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(CHUNK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def canonical_json(data: Any) -> str:
    """Return one fixed spelling of plain data: sorted keys, no spaces, no NaN."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_plain(data: Any) -> str:
    """Return the digest of plain data (dict, list, str, int, float, bool, None)."""
    return sha256_text(canonical_json(data))


def files_under(folder: Path) -> list[Path]:
    """Return every regular file under a folder, sorted by its relative path."""
    return sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.relative_to(folder).as_posix())


def sha256_folder(folder: Path) -> str:
    """Return one digest over the relative names and contents of all files of a folder."""
    return sha256_plain({path.relative_to(folder).as_posix(): sha256_file(path) for path in files_under(folder)})
