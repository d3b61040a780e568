"""Which ranks of this machine died without a word: each leaves a file with its process, and removes it when it ends by itself.

A rank that is killed cannot say so, and to the others it looks like a closed connection or, on a GPU, like one that never
answers. Only ranks of the same machine are looked at: a process id means nothing on another one, where the launcher ends the job.
"""

from __future__ import annotations

import json
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from megatron_cpt.record.store import write_text

FOLDER = ".ranks"
WATCH_SECONDS = 2.0
_NAME = re.compile(r"\d+\.json")


def attempt_id() -> str:
    """Return what the ranks of one launcher on one machine share."""
    return f"{socket.gethostname()}-{os.environ.get('TORCHELASTIC_RUN_ID', 'none')}-{os.getppid()}"


@contextmanager
def present(train_dir: Path, *, rank: int) -> Iterator[None]:
    """Leave this process's file while a block runs; only a killed process leaves it behind."""
    path = train_dir / FOLDER / f"{rank}.json"
    me = psutil.Process()
    write_text(path, json.dumps({"attempt": attempt_id(), "process": me.pid, "started": me.create_time()}))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def dead_ranks(train_dir: Path) -> list[int]:
    """Return the ranks of this attempt and machine whose process ended without removing its file, in order."""
    dead = []
    for path in (train_dir / FOLDER).glob("*.json"):
        if not _NAME.fullmatch(path.name):
            continue  # a file that is being written
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue  # its rank ended by itself just now
        if record["attempt"] == attempt_id() and not _lives(record["process"], record["started"]):
            dead.append(int(path.stem))
    return sorted(dead)


def watch(train_dir: Path, *, on_death: Callable[[list[int]], None]) -> Callable[[], None]:
    """Look for dead ranks in a thread every two seconds, and call `on_death` there once; return what ends the watch.

    The main thread may be inside a collective that no Python code can interrupt.
    """
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(WATCH_SECONDS):
            dead = dead_ranks(train_dir)
            if dead:
                on_death(dead)
                return

    threading.Thread(target=look, name="watch-ranks", daemon=True).start()
    return ended.set


def _lives(process: int, started: float) -> bool:
    try:
        found = psutil.Process(process)
        # another process under the same number began at another time; a zombie has ended
        return bool(found.create_time() == started and found.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
