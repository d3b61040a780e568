"""The bill of a run: `ledger.jsonl`, one line when an attempt starts, lines while it lives, one when it ends. Lines are only added.

A failed attempt stays on the bill. One that was killed has a start and no end: its last heartbeat says how long it lasted at least,
and of training the recorded steps say what it read (killed.py).
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from megatron_cpt.errors import EXIT_BUDGET, EXIT_ROLLED_BACK, EXIT_STOPPED, CptError
from megatron_cpt.meter.energy import Meter, NoMeter
from megatron_cpt.record.store import append_line
from megatron_cpt.record.typed import to_plain
from megatron_cpt.record.unknown import Figure, Unavailable, combine

LEDGER_NAME = "ledger.jsonl"
STEP_RECORDS = "train/metrics.jsonl"  # relative to the run folder
BEAT_SECONDS = 30.0  # well below the time in which a RAPL counter can wrap, and the most that a kill can take off the bill

Status = Literal["finished", "failed", "stopped", "rolled_back"]


@dataclass(frozen=True)
class Planned:
    """What the plan expected of a stage; written beside the actual figures."""

    seconds: Figure
    tokens: int
    usd: Figure
    kwh: Figure


@dataclass
class Attempt:
    """One attempt of a stage. Set `tokens` as work goes on; `exit_code` and `status` follow from how the block ends, or are set here."""

    path: Path
    stage: str
    num_ranks: int
    usd_per_device_hour: Figure
    meter: Meter
    planned: Planned | None
    attempt_id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    tokens: int = 0
    exit_code: int = 0
    status: Status | None = None
    joules: Figure | None = None
    """Energy of all nodes, when the work itself summed it; None takes this node's meter."""
    source_tokens: dict[str, int] | None = None
    """Tokens that this attempt read, by source and by licence; None where the stage reads no sources of its own."""
    licence_tokens: dict[str, int] | None = None
    start_tokens: int | None = None
    """Tokens in the weights with which this attempt began; None where nothing is trained."""
    round: int = 1
    """The round of the run; lines of the first do not say it."""
    _begin: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Seconds since the start by a clock that does not jump."""
        return time.monotonic() - self._begin

    def start(self) -> None:
        self._append(
            "start",
            num_ranks=self.num_ranks,
            pid=os.getpid(),
            host=socket.gethostname(),
            process_start=process_start(os.getpid()),
            usd_per_device_hour=_plain(self.usd_per_device_hour),
        )

    def beat(self) -> None:
        """Write that the attempt is alive, with its seconds and tokens so far, and keep the meter's counters from wrapping unseen."""
        self.meter.read()
        self._append("beat", seconds=self.seconds, tokens=self.tokens)

    def end(self, status: Status) -> None:
        seconds = self.seconds
        joules = self.meter.read() if self.joules is None else self.joules
        usd = combine(lambda price: price * seconds * self.num_ranks / 3600, self.usd_per_device_hour)
        self._append(
            "end",
            status=status,
            exit_code=self.exit_code,
            num_ranks=self.num_ranks,
            seconds=seconds,
            device_seconds=seconds * self.num_ranks,
            tokens=self.tokens,
            joules=_plain(joules),
            energy_scope=self.meter.scope,
            usd=_plain(usd),
            planned=None if self.planned is None else to_plain(self.planned),
            **({} if self.start_tokens is None else {"start_tokens": self.start_tokens}),
            **({} if self.source_tokens is None else {"source_tokens": self.source_tokens, "licence_tokens": self.licence_tokens}),
        )

    def _append(self, kind: str, **fields: Any) -> None:
        of_round = {} if self.round == 1 else {"round": self.round}
        append_line(self.path, {"kind": kind, "attempt": self.attempt_id, "stage": self.stage, "time": time.time(), **of_round, **fields})


@contextlib.contextmanager
def attempt(
    run_dir: Path,
    stage: str,
    *,
    num_ranks: int,
    usd_per_device_hour: Figure,
    meter: Meter | None = None,
    planned: Planned | None = None,
    beat_seconds: float | None = BEAT_SECONDS,
    round_number: int = 1,
) -> Iterator[Attempt]:
    """Put an attempt of a stage on the bill: a line before the work, one after it however it ends, and a heartbeat between.

    The status follows from the exception that ends the block: none is `finished`, `Stopped` and `BudgetReached` are `stopped`,
    `RolledBack` is `rolled_back`, everything else is `failed`. The exception goes on.
    """
    entry = Attempt(
        path=run_dir / LEDGER_NAME,
        stage=stage,
        num_ranks=num_ranks,
        usd_per_device_hour=usd_per_device_hour,
        meter=meter or NoMeter("no meter was opened for this stage"),
        planned=planned,
        round=round_number,
    )
    entry.start()
    done = threading.Event()
    heart = None
    if beat_seconds is not None:
        heart = threading.Thread(target=_beat_until, args=(entry, done, beat_seconds), name="ledger-heartbeat", daemon=True)
        heart.start()
    status: Status = "failed"
    try:
        yield entry
        status = entry.status or "finished"
    except BaseException as error:
        entry.exit_code, status = _ending(error)
        raise
    finally:
        done.set()
        if heart is not None:
            heart.join()
        entry.end(status)


def _beat_until(entry: Attempt, done: threading.Event, every_seconds: float) -> None:
    while not done.wait(every_seconds):
        try:
            entry.beat()
        except OSError:
            return  # a full disk must not end the work; the end line will raise it where the user sees it


def _ending(error: BaseException) -> tuple[int, Status]:
    if isinstance(error, CptError):
        code = error.exit_code
    elif isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    else:
        code = 130 if isinstance(error, KeyboardInterrupt) else 1
    by_code: dict[int, Status] = {0: "finished", EXIT_STOPPED: "stopped", EXIT_BUDGET: "stopped", EXIT_ROLLED_BACK: "rolled_back"}
    return code, by_code.get(code, "failed")


def _plain(figure: Figure) -> Any:
    return {"unavailable": figure.reason} if isinstance(figure, Unavailable) else figure


def is_alive(start: dict[str, Any]) -> bool:
    """Say whether the process of a ledger's start line works still, as far as this machine can see."""
    pid, ticks = start.get("pid"), start.get("process_start")
    return isinstance(pid, int) and ticks is not None and start.get("host") == socket.gethostname() and process_start(pid) == ticks


def process_start(pid: int) -> int | None:
    """Return the start time of a live process in clock ticks since boot, None when there is none: it tells two owners of one pid apart."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return int(text.rpartition(")")[2].split()[19])  # field 22 of proc(5), counted after the name, which may hold spaces
    except (OSError, ValueError, IndexError):
        return None
