"""A copy of a run that shares its files, and the proof that the run was left as it was."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from megatron_cpt.meter.ledger import LEDGER_NAME
from megatron_cpt.record.hashing import sha256_bytes, sha256_file
from megatron_cpt.record.store import share_file

DRILLS = "drill"  # the folder in a run that holds its drills, each a run folder of its own
HASHED_BELOW_BYTES = 64 << 20  # larger files, such as shards of weights, are told by size and time of their last change
LOCK_NAME = ".lock"


def share_folder(source: Path, target: Path, *, without: tuple[str, ...] = ()) -> None:
    """Make `target` a copy of a folder whose files are hard links; where the file system has none, they are copied.

    A file that is replaced as a whole in the copy leaves the original alone. Nothing may be written into a shared file, so those
    that grow line by line are left out (`without`, by name) or copied by the caller.
    """
    for folder, _, names in os.walk(source):
        there = target / Path(folder).relative_to(source)
        there.mkdir(parents=True, exist_ok=True)
        for name in names:
            if name != LOCK_NAME and name not in without:
                share_file(Path(folder) / name, there / name)


def snapshot(run_dir: Path) -> dict[str, str]:
    """Return what tells a change of each file of a run, but its drills, its locks and its bill: a digest, or size and time."""
    found = {}
    for folder, inner, names in os.walk(run_dir):
        if Path(folder) == run_dir:
            inner[:] = [name for name in inner if name != DRILLS]
        for name in names:
            path = Path(folder) / name
            if name != LOCK_NAME and path != run_dir / LEDGER_NAME:
                found[path.relative_to(run_dir).as_posix()] = _mark(path)
    return found


def _mark(path: Path) -> str:
    status = path.stat()
    if status.st_size < HASHED_BELOW_BYTES:
        return sha256_file(path)
    return f"{status.st_size} bytes, changed at {status.st_mtime_ns}"


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Name the files that came, went or changed between two snapshots."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def only_grew(path: Path, *, size_before: int, sha256_before: str) -> bool:
    """Say whether a file that is only ever added to still begins with what it held."""
    with path.open("rb") as file:
        return sha256_bytes(file.read(size_before)) == sha256_before
