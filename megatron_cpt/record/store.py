"""Files that are whole or absent: written aside, synced, renamed; appended lines survive a kill."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from megatron_cpt.errors import ConfigError, DataError

APPEND_PATIENCE_SECONDS = 10.0  # for another process's append, which takes the milliseconds of one sync
NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTSUP)  # what file systems say that cannot lock


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


def share_file(source: Path, target: Path) -> None:
    """Make `target` a hard link to a file that nothing will be written into; a copy where the file system has no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def publish_folder(aside: Path, final: Path) -> None:
    """Rename a finished folder to its final name, which must not exist."""
    assert not final.exists(), f"{final} exists"
    final.parent.mkdir(parents=True, exist_ok=True)
    os.rename(aside, final)
    sync_folder(final.parent)


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON line and sync it; a torn last line left by a kill is closed first, so no later line is lost.

    The line goes out in one write of a file opened for appending, under a lock where the file system has one. Without a lock (some
    network file systems) lines of processes of one machine still never mix; of two machines one line may replace another.

    Raises:
        OSError: the line could not be written as a whole; what was written of it is taken back where the lock is held.
    """
    line = (json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n").encode("utf-8")
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        is_locked = _lock_for_append(descriptor)
        size = os.lseek(descriptor, 0, os.SEEK_END)
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = b"\n" + line
        try:
            written = os.write(descriptor, line)
            while written < len(line):  # a disk that is almost full takes a part; the next write says why
                written += os.write(descriptor, line[written:])
        except OSError:
            if is_locked:
                os.ftruncate(descriptor, size)
            raise
        os.fsync(descriptor)
    finally:
        os.close(descriptor)  # and with it the lock
    if is_new:
        sync_folder(path.parent)


def _lock_for_append(descriptor: int) -> bool:
    """Lock an open file against other writers; False where the file system has no locks, or a stopped process does not let go."""
    last_try = time.monotonic() + APPEND_PATIENCE_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= last_try:
                return False
            time.sleep(0.002)
        except OSError as error:
            if error.errno not in NO_LOCKS_HERE:
                raise
            return False
        else:
            return True


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the records of a JSON-lines file; a torn line (the mark of a kill) is left out."""
    return read_lines_and_torn(path)[0]


def read_lines_and_torn(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """Return the records of a JSON-lines file, and the numbers (from 1) of the lines that hold none, such as one that a kill tore."""
    records: list[dict[str, Any]] = []
    torn: list[int] = []
    if not path.exists():
        return records, torn
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        try:
            record = json.loads(line) if line.strip() else None
        except ValueError:
            record = line
        if isinstance(record, dict):
            records.append(record)
        elif record is not None:
            torn.append(number)
    return records, torn


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
