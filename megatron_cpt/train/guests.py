"""Trackers as guests: a thread of their own works for them, and whatever fails in them is a warning, never the run's end.

Training puts what is to be shown into a queue and goes on. It waits for a guest at its end alone, and then for a bounded time.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any

from megatron_cpt.train.alerts import Alert, alert_of
from megatron_cpt.train.hooks import BaseHook
from megatron_cpt.train.metric_names import MetricNames
from megatron_cpt.train.state import TrainState

FINISH_SECONDS = 75  # an upload that is not done by then stays on disk, for `wandb sync`
QUEUE_LENGTH = 10_000  # rows that wait for a guest: some minutes of short steps; one that is further behind is left behind

logger = logging.getLogger(__name__)


class Guest(BaseHook):
    """A tracker that is dropped with a warning when it fails, falls behind, or does not end in time. It never holds up a step."""

    name = "a tracker"
    extra = ""
    """The extra of this package that installs it."""

    def __init__(self, names: MetricNames) -> None:
        self._names = names
        self._rows: queue.Queue[tuple[dict[str, float], Alert | None] | None] = queue.Queue(QUEUE_LENGTH)
        self._worker: threading.Thread | None = None
        self._run: Any = None
        self._exit_code = 0
        self.num_shown = 0

    def on_start(self, state: TrainState) -> None:
        self._names.begin(state)
        self.open()

    def open(self) -> None:
        """Load the tracker, and start it beside whatever goes on here."""
        try:
            self._load()  # here and not in the thread: a process that is forked meanwhile must find no import half done
        except ImportError as error:
            logger.warning("%s is not installed (%s), so the run is not shown there: pip install 'megatron-cpt[%s]'.",
                           self.name, error.name or error, self.extra)  # fmt: skip
            return
        except Exception as error:
            self._complain("load", error)
            return
        self._worker = threading.Thread(target=self._work, name=f"tracker-{self.name}", daemon=True)
        self._worker.start()

    def record(self, record: Mapping[str, Any]) -> None:
        """Show one record of `metrics.jsonl`, in its turn."""
        if self._worker is None:
            return
        try:
            row, alert = self._names.row(record), alert_of(record)
        except Exception as error:
            self._worker = None
            self._complain("read a record", error)
            return
        if alert is not None and record.get("is_end") and alert.level == "ERROR":
            self._exit_code = 1
        if not row and alert is None:
            return
        try:
            self._rows.put_nowait((row, alert))
        except queue.Full:
            self._worker = None
            logger.warning("%s is %d records behind; training goes on without it.", self.name, QUEUE_LENGTH)

    def close(self) -> None:
        """Wait for what is in the queue and for the tracker's end, for a bounded time."""
        if self._worker is None:
            return
        worker, self._worker = self._worker, None
        try:
            self._rows.put(None, timeout=FINISH_SECONDS)
        except queue.Full:
            pass
        else:
            worker.join(FINISH_SECONDS)
        if worker.is_alive():
            logger.warning("%s could not finish within %d s; it is left behind.", self.name, FINISH_SECONDS)

    def _work(self) -> None:
        doing = "start"
        try:
            self._run = self._start()
            doing = "log"
            while (item := self._rows.get()) is not None:
                self._show(*item)
                self.num_shown += 1
            doing = "finish"
            self._finish()
        except BaseException as error:  # whatever a tracker raises must not end a run that costs money
            self._worker = None
            self._complain(doing, error)

    def _complain(self, doing: str, error: BaseException) -> None:
        logger.warning("%s could not %s (%s: %s); training goes on without it.", self.name, doing, type(error).__name__, error)

    def _load(self) -> None:
        raise NotImplementedError

    def _start(self) -> Any:
        raise NotImplementedError

    def _show(self, row: Mapping[str, float], alert: Alert | None) -> None:
        raise NotImplementedError

    def _finish(self) -> None:
        raise NotImplementedError


def within(seconds: float, action: Callable[[], Any]) -> Any:
    """Do something on a thread of its own, wait so long at most, and return its result; it is left behind when it takes longer.

    Raises:
        TimeoutError: it was not done in time.
        BaseException: whatever it raised.
    """
    results: list[Any] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            results.append(action())
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, name="tracker", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"not done within {seconds:g} s")
    if raised:
        raise raised[0]
    return results[0]
