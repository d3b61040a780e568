"""Files that are whole or absent: written aside, synced, renamed; appended lines survive a kill."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from megatron_cpt.errors import ConfigError, DataError


def write_text(path: Path, text: str) -> None:
    """Replace a file atomically: after a crash it holds the old text or the new one, never a part."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file atomically, as `write_text` does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_json(path: Path, data: Any) -> None:
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Return the content of a JSON file that this project wrote.

    Raises:
        DataError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError("A record is missing.", where=path, next_step="Run the stage that writes it.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError("A record is not readable JSON.", where=path, value=str(error)) from None


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that a rename outlives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish_folder(aside: Path, final: Path) -> None:
    """Rename a finished folder to its final name, which must not exist."""
    assert not final.exists(), f"{final} exists"
    final.parent.mkdir(parents=True, exist_ok=True)
    os.rename(aside, final)
    sync_folder(final.parent)


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON line and sync it; a torn last line left by a kill is closed first, so no later line is lost."""
    line = json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                line = "\n" + line
        file.write(line.encode("utf-8"))
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the records of a JSON-lines file; a torn line (the mark of a kill) is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_bytes().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def require_free_space(folder: Path, num_bytes: int, *, purpose: str) -> None:
    """Refuse to begin a write that the disk cannot hold.

    Raises:
        ConfigError: fewer than `num_bytes` are free on the folder's file system.
    """
    existing = folder
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < num_bytes:
        raise ConfigError(
            f"Not enough disk space for {purpose}.",
            where=folder,
            value=f"{free / 1e9:.2f} GB free",
            rule=f"{num_bytes / 1e9:.2f} GB needed",
            next_step="Free space, or set runs_dir to a larger disk.",
        )


def _locked(file: IO[str], patience_s: float) -> bool:
    last_try = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= last_try:
                return False
            time.sleep(0.2)
        else:
            return True


@contextlib.contextmanager
def exclusive(path: Path, *, purpose: str, patience_s: float = 0.0) -> Iterator[None]:
    """Hold a lock file while a block runs; a second process is refused and told who holds it.

    The lock belongs to the open file, so it ends with the process that holds it, however that ends. A killed process may
    need a moment for that, while it is in a write to a slow disk: `patience_s` is how many seconds to wait for it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        if not _locked(file, patience_s):
            file.seek(0)
            raise ConfigError(
                f"Another process is {purpose}.",
                where=path,
                value=f"process {file.read().strip() or 'unknown'}",
                next_step="Wait for it, or end it, then start again.",
            )
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
