"""One rank's life under torchrun: death with its launcher, stop requests on which all ranks agree, and the outcome file."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megatron_cpt.errors import CptError, FollowsAnotherRank
from megatron_cpt.gate.limits import Breach
from megatron_cpt.record.store import exclusive, make_folder
from megatron_cpt.train.outcome import EXIT_CODES, OUTCOME_NAME, SCHEMA_VERSION, Outcome, Status, write_outcome
from megatron_cpt.train.presence import dead_ranks

STOP_FILE = "stop-requested"
LOCK_PATIENCE_S = 20.0  # a killed rank may sit in a checkpoint write for a while before it is gone
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
DEBUG_VARIABLE = "MEGATRON_CPT_DEBUG"
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FOLLOW_PATIENCE_S = 5.0  # for the rank that knows why to say so, or for a killed one to be gone
# What gloo and NCCL say to the ranks that are left when another one has gone.
LOST_CONNECTION = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")

logger = logging.getLogger(__name__)


def rank() -> int:
    """Return this process's rank as torchrun numbers it; 0 outside torchrun."""
    return int(os.environ.get("RANK", "0"))


def is_first_rank() -> bool:
    return rank() == 0


def configure_log() -> None:
    """Send this package's messages to the error stream: all from the first rank, warnings from the others with their rank."""
    handler = _ErrorStream()
    handler.setFormatter(logging.Formatter("%(message)s" if is_first_rank() else f"[rank {rank()}] %(message)s"))
    package = logging.getLogger("megatron_cpt")
    package.handlers, package.propagate = [handler], False
    package.setLevel(logging.INFO if is_first_rank() else logging.WARNING)
    if os.environ.get(DEBUG_VARIABLE) != "1":  # torch and megatron-core warn about each other on every rank; no user can mend it
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*attribute of a Tensor that is not a leaf Tensor.*")


class _ErrorStream(logging.StreamHandler[Any]):
    """Writes to the error stream that is in force when a message comes: a progress bar has its own, and draws itself below."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:
        return sys.stderr

    @stream.setter
    def stream(self, _: Any) -> None:
        raise AttributeError("this handler follows sys.stderr")


class StopRequest:
    """Ends training early on a signal, a stop file or a budget, on all ranks after the same step."""

    NONE, STOP, BUDGET = 0, 1, 2  # BUDGET + n is the limit number n

    def __init__(
        self, train_dir: Path, *, limits: Mapping[str, float], agree: Callable[[int], int], seconds_used: Callable[[], float]
    ) -> None:
        """Install the signal handlers.

        Args:
            limits: the plan's limits by key, each as seconds of the run's training time, earlier attempts included.
            agree: returns the highest of all ranks' numbers; a collective.
            seconds_used: training time so far; the first rank's counts.
        """
        self._file = train_dir / STOP_FILE
        self._limits = dict(limits)
        self.agree = agree
        self._signal: int | None = None
        self._seconds_used = seconds_used
        self.code = self.NONE
        self.reason = ""
        self.is_limit = False
        self.is_spoilt = False
        self._reached = ""
        for number in STOP_SIGNALS:
            signal.signal(number, self._remember)
        if is_first_rank():
            self._forget_stale_file()

    def requested(self) -> bool:
        """Return whether any rank was asked to stop; every rank gets the same answer.

        A collective of one number, but after a limit or threshold.
        """
        if self.is_limit:
            return True
        if self._reached:
            self.code, self.reason = self.BUDGET, self._reached
            return True
        self.code = self.agree(self._local_code())
        if self.is_budget:
            self.reason = f"the plan's {list(self._limits)[self.code - self.BUDGET]} was reached"
        elif self.code == self.STOP:
            self.reason = f"signal {signal.Signals(self._signal).name}" if self._signal else "a stop was requested"
            if is_first_rank():
                self._file.unlink(missing_ok=True)  # the request is honoured; the next attempt must not meet it
        return self.code != self.NONE

    def break_limit(self, reason: str, *, is_spoilt: bool) -> None:
        """End training after this step, since a hard limit on an in-loop score was broken. Called on every rank in the same step.

        Args:
            is_spoilt: the weights give no finite loss, and are not worth a checkpoint.
        """
        self.is_limit, self.is_spoilt, self.reason = True, is_spoilt, reason

    def end_at_threshold(self, reason: str) -> None:
        """End training after this step as a limit of the plan does. Called on every rank in the same step; the first reason stays."""
        self._reached = self._reached or reason

    @property
    def is_budget(self) -> bool:
        """Whether the last answer was a stop for a limit of the plan."""
        return self.code >= self.BUDGET

    def _local_code(self) -> int:
        if self._signal is not None:
            return self.STOP
        if is_first_rank() and self._file.exists():
            return self.STOP
        if is_first_rank():
            used = self._seconds_used()
            return next((self.BUDGET + number for number, limit in enumerate(self._limits.values()) if used >= limit), self.NONE)
        return self.NONE

    def _remember(self, number: int, _: Any) -> None:
        self._signal = number

    def _forget_stale_file(self) -> None:
        if self._file.exists() and self._file.stat().st_mtime < _launcher_start():
            logger.warning("Removing a stop request that an earlier attempt did not live to honour: %s", self._file)
            self._file.unlink(missing_ok=True)


def _launcher_start() -> float:
    import psutil  # noqa: PLC0415  -- megatron-core's own need; not wanted where only this module's constants are

    return float(psutil.Process(os.getppid()).create_time())


def status_of(stop: StopRequest) -> Status:
    if stop.is_limit:
        return "limit"
    if stop.is_budget:
        return "budget"
    return "stopped" if stop.code == StopRequest.STOP else "finished"


@contextmanager
def only_attempt(train_dir: Path) -> Iterator[None]:
    """Hold the run's training lock on the first rank; a second trainer of the same run is refused."""
    if not is_first_rank():
        yield
        return
    with exclusive(train_dir / ".lock", purpose="training this run", patience_s=LOCK_PATIENCE_S):
        (train_dir / OUTCOME_NAME).unlink(missing_ok=True)
        for claim in train_dir.glob(".failed-*"):
            claim.unlink()
        yield


def record_end(
    train_dir: Path,
    *,
    status: Status,
    step: int,
    seconds: float,
    reason: str,
    checkpoint: str | None,
    source_tokens: Mapping[str, int] | None = None,
    breach: Breach | None = None,
) -> int:
    """Write the outcome of an agreed end from the first rank and return the exit code, on every rank."""
    code = EXIT_CODES[status]
    if is_first_rank():
        tokens = dict(source_tokens or {})
        outcome = Outcome(SCHEMA_VERSION, status, step, code, seconds, reason, checkpoint, rank=0, source_tokens=tokens, breach=breach)
        write_outcome(train_dir, outcome)
    return code


def fail(
    error: BaseException,
    train_dir: Path,
    *,
    started: float,
    step: int | None,
    checkpoint: str | None,
    source_tokens: Mapping[str, int] | None = None,
) -> int:
    """Report a failure once per machine and return its exit code. Issues no collective: the other ranks may be gone.

    The first rank to fail writes `outcome.json`. A rank that fails because another one did gives that one time to say why, and
    names it when it is found dead.
    """
    cause = _cause(error, train_dir, step=step)
    code = cause.exit_code if isinstance(cause, CptError) else 1
    if _claim_failure(train_dir):
        debug = not isinstance(cause, CptError) or os.environ.get(DEBUG_VARIABLE) == "1"
        text = "".join(traceback.format_exception(cause)) if debug else str(cause)
        if checkpoint is not None:
            text += f"\nThe last good checkpoint is {checkpoint}; starting the same run again goes on from it."
        print(f"[rank {rank()}] {text}" if rank() else text, file=sys.stderr, flush=True)
        seconds = time.time() - started
        outcome = Outcome(SCHEMA_VERSION, "failed", step, code, seconds, str(cause), checkpoint, rank(), dict(source_tokens or {}))
        try:
            write_outcome(train_dir, outcome)
        except OSError as unwritten:  # a full disk may be the failure itself; what was printed must not be the last that is known
            print(f"The end of this attempt could not be recorded: {unwritten}", file=sys.stderr, flush=True)
    return code


def rank_died(dead: list[int], *, step: int | None) -> CptError:
    """Return the error that names ranks which ended without a word, and the step after which they did."""
    names = ", ".join(map(str, dead))
    return CptError(
        f"Rank {names} died without a word {'before the first step' if step is None else f'after step {step} was done'}.",
        where=f"rank {names}",
        rule="a rank says why it ends; one that does not was killed, by hand, for memory or with its machine",
        next_step="Look for its end in the system's log (dmesg, sacct), then start the same run again.",
    )


def _cause(error: BaseException, train_dir: Path, *, step: int | None) -> BaseException:
    follows = isinstance(error, FollowsAnotherRank) or any(mark in str(error) for mark in LOST_CONNECTION)
    last_look = time.monotonic() + FOLLOW_PATIENCE_S
    while follows and not _failure_claim(train_dir).exists():
        dead = dead_ranks(train_dir)
        if dead:
            return rank_died(dead, step=step)
        if time.monotonic() > last_look:
            break
        time.sleep(0.1)
    if isinstance(error, OSError) and error.errno in FULL_DISK:
        return CptError(
            "The disk is full.",
            where=error.filename or train_dir,
            value=str(error),
            next_step="Free space or raise the quota, then start the same run again: it goes on from its last checkpoint.",
        )
    return error


def _failure_claim(train_dir: Path) -> Path:
    attempt = f"{os.environ.get('TORCHELASTIC_RUN_ID', 'none')}-{os.getppid()}"
    return train_dir / f".failed-{attempt.replace('/', '_')}"


def _claim_failure(train_dir: Path) -> bool:
    try:
        make_folder(train_dir)
        os.close(os.open(_failure_claim(train_dir), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True
