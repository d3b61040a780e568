"""What happens after a step beside training: records, progress, evaluation, checkpoints. A hook never changes the run.

Hooks that write files or lines live on the first rank only; evaluation and checkpoints are collective and live on all.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from megatron_cpt.record.store import append_line, read_lines
from megatron_cpt.train.divergence import require_finite
from megatron_cpt.train.forgetting import Scores
from megatron_cpt.train.instruments import Instruments
from megatron_cpt.train.limits import Limits
from megatron_cpt.train.metrics import attempt_record, of_round, rewind, step_record, unseen_events
from megatron_cpt.train.state import TrainState

logger = logging.getLogger(__name__)


class Hook(Protocol):
    """Called in the order of the list; `close` also after a failure, then without other ranks to talk to."""

    def on_start(self, state: TrainState) -> None: ...

    def after_step(self, state: TrainState) -> None: ...

    def at_budget_stop(self, state: TrainState) -> None: ...

    def close(self) -> None: ...


class BaseHook:
    """A hook that does nothing."""

    def on_start(self, state: TrainState) -> None:
        return

    def after_step(self, state: TrainState) -> None:
        return

    def at_budget_stop(self, state: TrainState) -> None:
        return

    def close(self) -> None:
        return


class Tracker(Protocol):
    """A sink of records that may fail without a word to training."""

    def record(self, record: Mapping[str, Any]) -> None: ...


class LookAt(Protocol):
    """Is told what an in-loop evaluation found, on every rank."""

    def __call__(self, bits_per_byte: Mapping[str, float], tasks: Mapping[str, Mapping[str, float | None]], *, step: int) -> None: ...


class TrainingClock:
    """Training time of the run in seconds: this attempt's, and what earlier attempts used."""

    def __init__(self) -> None:
        self.begin(used_before=0.0)

    def begin(self, *, used_before: float) -> None:
        """Start this attempt's time, on top of what earlier attempts used."""
        self._used_before = used_before
        self._started = time.monotonic()

    def seconds(self) -> float:
        return self._used_before + time.monotonic() - self._started


class MetricsFile(BaseHook):
    """Appends one record a step to `metrics.jsonl`, after dropping those that a resumed run will write anew; trackers get a copy."""

    def __init__(
        self,
        path: Path,
        *,
        sources: Sequence[str],
        licences: Sequence[str],
        clock: TrainingClock,
        instruments: Instruments | None = None,
        trackers: Sequence[Tracker] = (),
        attempt_id: str | None = None,
        round_number: int = 1,
    ) -> None:
        self._attempt_id, self._round = attempt_id, round_number
        self._path, self._sources, self._licences, self._clock = path, sources, licences, clock
        self._instruments, self._trackers = instruments, trackers

    def on_start(self, state: TrainState) -> None:
        before = read_lines(self._path)
        self._clock.begin(used_before=rewind(self._path, step=state.step, round_number=self._round))
        news = [*unseen_events(before), read_lines(self._path)[-1]] if before else []  # the last one says where the run goes on
        if self._instruments is not None:
            head = attempt_record(
                state,
                attempt_id=self._attempt_id,
                sources=self._sources,
                licences=self._licences,
                elapsed_seconds=self._clock.seconds(),
            )
            append_line(self._path, of_round({**head, **self._instruments.describe()}, self._round))
        for record in news:
            self._tell(record)

    def after_step(self, state: TrainState) -> None:
        assert state.last is not None
        readings = self._instruments.read(state.last) if self._instruments is not None else {}
        elapsed = self._clock.seconds()
        self.write(step_record(state, sources=self._sources, licences=self._licences, elapsed_seconds=elapsed, readings=readings))

    def write(self, record: dict[str, Any]) -> None:
        """Keep one record and pass it on."""
        record = of_round(record, self._round)
        append_line(self._path, record)
        self._tell(record)

    def _tell(self, record: Mapping[str, Any]) -> None:
        for tracker in self._trackers:
            tracker.record(record)


class InLoopEvaluation(BaseHook):
    """Scores the plan's texts every so many steps and appends `eval` and `forgetting` records. Collective; the first rank writes."""

    def __init__(
        self,
        evaluate: Callable[[], Scores],
        *,
        every_steps: int,
        record: Callable[[dict[str, Any]], None],
        compare: Callable[[Scores, int], dict[str, Any] | None] = lambda _scores, _step: None,
        limits: Limits | None = None,
        look_at: LookAt | None = None,
    ) -> None:
        """Take the scorer and the sink.

        Args:
            evaluate: returns the scores by text, and by task where these are scored, in the form of `eval.json`, on every rank.
            every_steps: 0 evaluates only when a budget stops the run.
            record: keeps one record; does nothing on ranks that do not write.
            compare: returns the `forgetting` record of scores at a step, or None where there is nothing to compare with.
            limits: what ends training for a score; None where the plan has no hard limit.
            look_at: is told each evaluation's bits per byte by text, and metrics by task.
        """
        self._evaluate, self._every_steps, self._record, self._compare = evaluate, every_steps, record, compare
        self._limits, self._look_at = limits, look_at
        self._evaluated_step: int | None = None

    def on_start(self, state: TrainState) -> None:
        if self._limits is not None and self._limits.were_broken_at(state.step):
            self._score(state)  # a kill came between that step's checkpoint and the end: it ends now

    def after_step(self, state: TrainState) -> None:
        if self._every_steps and state.step % self._every_steps == 0:
            self._score(state)

    def at_budget_stop(self, state: TrainState) -> None:
        if self._evaluated_step != state.step:
            self._score(state)

    def _score(self, state: TrainState) -> None:
        started = time.monotonic()
        evaluated = self._evaluate()
        scores = {name: score for name, score in evaluated.items() if "bits_per_byte" in score}
        tasks = {name: _metrics(score) for name, score in evaluated.items() if name not in scores}
        bits_per_byte = {name: float(score["bits_per_byte"]) for name, score in scores.items()}
        self._evaluated_step = state.step
        if self._limits is not None and self._limits.are_broken_by(bits_per_byte, step=state.step):
            return
        for name, value in bits_per_byte.items():
            require_finite(f"loss on {name}", value, step=state.step)
        loss = {name: float(score["nats"]) / int(score["tokens"]) for name, score in scores.items()}
        seconds = time.monotonic() - started
        record = {"kind": "eval", "step": state.step, "bits_per_byte": bits_per_byte, "loss": loss, "seconds": seconds}
        self._record({**record, "tasks": tasks} if tasks else record)
        logger.info("step %d: bits per byte %s", state.step, ", ".join(f"{name} {value:.4f}" for name, value in bits_per_byte.items()))
        for name, metrics in tasks.items():
            shown = ", ".join(f"{metric} {'unknown' if value is None else f'{value:.4f}'}" for metric, value in metrics.items())
            logger.info("step %d: %s %s", state.step, name, shown)
        compared = self._compare(scores, state.step)
        if compared is not None:
            self._record(compared)
            logger.info(
                "step %d: against the frozen base %s", state.step, ", ".join(_against_base(*text) for text in compared["texts"].items())
            )
        if self._limits is not None:
            self._limits.look_at(compared, step=state.step)
        if self._look_at is not None:
            self._look_at(bits_per_byte, tasks, step=state.step)


def _metrics(score: Mapping[str, Any]) -> dict[str, float | None]:
    """Return a task's means, None for one that is not a finite number, which JSON cannot hold."""
    values = {metric: float(value) for metric, value in score["metrics"].items()}
    return {metric: value if math.isfinite(value) else None for metric, value in values.items()}


class PeriodicCheckpoint(BaseHook):
    """Brings a save that is under way nearer to its end after each step, and begins one every so many steps. Collective."""

    def __init__(self, save: Callable[[TrainState], None], *, advance: Callable[[], None], every_steps: int) -> None:
        self._save, self._advance, self._every_steps = save, advance, every_steps

    def after_step(self, state: TrainState) -> None:
        self._advance()
        if state.step % self._every_steps == 0:
            self._save(state)


def short_duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"


class ProgressLines(BaseHook):
    """Logs a plain line every so many steps, for log files and terminals that are not one."""

    def __init__(self, *, num_steps: int, every_steps: int) -> None:
        self._num_steps, self._every_steps = num_steps, every_steps
        self._started, self._first_step = time.monotonic(), 0

    def on_start(self, state: TrainState) -> None:
        self._started, self._first_step = time.monotonic(), state.step

    def after_step(self, state: TrainState) -> None:
        if state.step % self._every_steps and state.step != self._num_steps:
            return
        last = state.last
        assert last is not None
        per_step = (time.monotonic() - self._started) / (state.step - self._first_step)
        logger.info(
            "step %d/%d  loss %.4f  rate %.2e  grad norm %.3f  %.0f tokens/s  %s left",
            state.step,
            self._num_steps,
            last.loss,
            last.learning_rate,
            last.grad_norm,
            sum(last.source_tokens) / last.seconds,
            short_duration(per_step * (self._num_steps - state.step)),
        )


class _BarWithNote(Progress):
    """A bar, and a line of words below it."""

    note = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.note:
            yield Text(self.note)


class ProgressBar(BaseHook):
    """Draws a bar with loss, rate, speed and time left on a terminal, and under it the last evaluation; fits 80 columns."""

    def __init__(self, *, num_steps: int, console: Console | None = None) -> None:
        self._progress = _BarWithNote(
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            refresh_per_second=4,
            expand=True,
            console=console,
            redirect_stderr=sys.stderr.isatty(),  # a log that the user sends to a file stays there
        )
        self._num_steps = num_steps
        self._task = self._progress.add_task("train", total=num_steps, text="")
        self._started, self._first_step = time.monotonic(), 0

    def on_start(self, state: TrainState) -> None:
        self._started, self._first_step = time.monotonic(), state.step
        self._progress.update(self._task, completed=state.step)
        self._progress.start()

    def after_step(self, state: TrainState) -> None:
        last = state.last
        assert last is not None
        per_step = (time.monotonic() - self._started) / (state.step - self._first_step)
        left = short_duration(per_step * (self._num_steps - state.step))
        speed = sum(last.source_tokens) / last.seconds
        text = f"loss {last.loss:.4f} rate {last.learning_rate:.2e} {speed:,.0f} tok/s {left} left"
        self._progress.update(self._task, completed=state.step, text=text)

    def record(self, record: Mapping[str, Any]) -> None:
        """Show an evaluation below the bar, and with it how far each text is from the frozen base where that is known."""
        if record["kind"] == "eval":
            scores = "  ".join(f"{name} {value:.4f}" for name, value in record["bits_per_byte"].items())
            self._progress.note = f"step {record['step']}: bits per byte {scores}"
        elif record["kind"] == "forgetting":
            self._progress.note += "\nagainst the frozen base " + "  ".join(_against_base(*text) for text in record["texts"].items())

    def close(self) -> None:
        self._progress.stop()


def _against_base(name: str, found: Mapping[str, Any]) -> str:
    """Say how far one text's bits per byte are from the base's, with the interval where there is one."""
    if "difference" not in found:
        return f"{name} unknown"
    interval = f" [{found['low']:+.4f}, {found['high']:+.4f}]" if "low" in found else ""
    return f"{name} {found['difference']:+.4f}{interval}"


def progress(*, num_steps: int, every_steps: int) -> ProgressBar | ProgressLines:
    """Return the bar on a terminal and plain lines anywhere else."""
    return ProgressBar(num_steps=num_steps) if sys.stdout.isatty() else ProgressLines(num_steps=num_steps, every_steps=every_steps)
