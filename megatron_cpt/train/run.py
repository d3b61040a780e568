"""Puts one rank's parts together, trains, and says how it ended."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from megatron_cpt.backend import choose
from megatron_cpt.errors import ConfigError
from megatron_cpt.launch_ranks import ATTEMPT_VARIABLE, die_with_parent, metered, tie_helpers_to_this_process
from megatron_cpt.meter.energy import open_meter
from megatron_cpt.plan.money import clock_limits
from megatron_cpt.plan.run_plan import RunPlan
from megatron_cpt.record.manifest import Manifest
from megatron_cpt.record.store import read_json, read_lines
from megatron_cpt.record.unknown import Figure, Unavailable
from megatron_cpt.record.vocab_contract import check_vocab
from megatron_cpt.train import hooks as hook
from megatron_cpt.train.alerts import end_event, failure_event
from megatron_cpt.train.forgetting import Scores, forgetting_record, warn_of
from megatron_cpt.train.guests import Guest
from megatron_cpt.train.instruments import Instruments, process_memory
from megatron_cpt.train.limits import Limits
from megatron_cpt.train.metric_names import MetricNames
from megatron_cpt.train.metrics import METRICS_NAME
from megatron_cpt.train.presence import present, watch
from megatron_cpt.train.runtime import (
    StopRequest,
    configure_log,
    fail,
    is_first_rank,
    only_attempt,
    rank,
    rank_died,
    record_end,
    status_of,
)
from megatron_cpt.train.spend import Spend
from megatron_cpt.train.state import TrainState
from megatron_cpt.train.thresholds import Thresholds
from megatron_cpt.train.tracking import TensorBoardRun, WandbRun

Evaluate = Callable[[RunPlan, Path, list[Any]], Mapping[str, Mapping[str, Any]]]

logger = logging.getLogger(__name__)


def run(plan_path: Path, *, evaluate: Evaluate | None) -> int:
    """Train a plan on this rank and return the exit code: 0 finished, 75 stopped, 6 budget, otherwise the error's.

    Args:
        plan_path: `<run>/plan/plan.yaml`; everything is written under `<run>/train/`.
        evaluate: scores of model chunks by text, in the form of `eval.json`, called on every rank; None for no evaluation.
    """
    die_with_parent()
    tie_helpers_to_this_process()
    configure_log()
    plan, run_dir = RunPlan.load(plan_path), plan_path.resolve().parent.parent
    train_dir = run_dir / "train"
    train_dir.mkdir(parents=True, exist_ok=True)
    with only_attempt(train_dir), present(train_dir, rank=rank()), metered(run_dir, backend=plan.backend):
        return Attempt(plan, run_dir, train_dir, evaluate=evaluate).run()


class Attempt:
    """One rank's attempt at a plan."""

    def __init__(self, plan: RunPlan, run_dir: Path, train_dir: Path, *, evaluate: Evaluate | None) -> None:
        self._plan, self._run_dir, self._train_dir, self._evaluate = plan, run_dir, train_dir, evaluate
        self._started = time.time()
        self._hooks: list[hook.Hook] = []
        self._guests: list[Guest] = []
        self._checkpoint: Any = None
        self._told_of_baseline = False
        self._limits: Limits | None = None
        self._first: TrainState | None = None
        self._last: TrainState | None = None

    def run(self) -> int:
        """Train to an end and record it; a failure is recorded without a word to the other ranks."""
        end_watch = watch(self._train_dir, on_death=self._end_after_death)
        try:
            code = self._train()
        except BaseException as error:  # torch's CheckpointException is none of Exception's
            self._tell_guests(failure_event(error, step=self._step))
            self._close_hooks()
            if self._checkpoint is not None:
                self._checkpoint.abort()
            return self._fail(error)
        finally:
            end_watch()
        return code

    def _end_after_death(self, dead: list[int]) -> None:
        """End this process from the watching thread: the main one may wait for the dead rank until the collective's limit."""
        os._exit(self._fail(rank_died(dead, step=self._step)))

    def _fail(self, error: BaseException) -> int:
        return fail(
            error,
            self._train_dir,
            started=self._started,
            step=self._step,
            checkpoint=self._newest(),
            source_tokens=self._read_tokens(),
        )

    @property
    def _step(self) -> int | None:
        return None if self._last is None else self._last.step

    def _train(self) -> int:
        plan = self._plan
        self._check_inputs()
        backend = choose(plan.backend)
        # megatron and torch load only now: the CPU backend must be in place before
        from megatron_cpt.model.parallel import shutdown, start_ranks  # noqa: PLC0415
        from megatron_cpt.train.collectives import highest  # noqa: PLC0415
        from megatron_cpt.train.loop import train  # noqa: PLC0415

        start_ranks(plan.layout, backend=backend, seed=plan.seed)
        clock = hook.TrainingClock()
        limits = clock_limits(plan.stop, plan.tariff, num_ranks=plan.layout.num_ranks)
        stop = StopRequest(
            self._train_dir,
            limits={key: known(seconds) for key, seconds in limits.items()},
            agree=lambda code: highest(code, device=backend.device),
            seconds_used=clock.seconds,
        )
        parts = self._build(backend, stop)
        self._hooks = self._make_hooks(parts, clock, stop)
        state = train(plan, parts, self._hooks)
        status = status_of(stop)
        self._tell_guests(end_event(status, stop.reason, step=state.step))
        self._close_hooks()
        logger.info("Training %s after step %d of %d. %s", status, state.step, plan.num_steps, stop.reason)
        seconds = time.time() - self._started
        code = record_end(
            self._train_dir,
            status=status,
            step=state.step,
            seconds=seconds,
            reason=stop.reason,
            checkpoint=self._newest(),
            source_tokens=self._read_tokens(),
            breach=self._limits.breach if self._limits is not None else None,
        )
        shutdown()
        return code

    def _build(self, backend: Any, stop: StopRequest) -> Any:
        from megatron.core import parallel_state  # noqa: PLC0415

        from megatron_cpt.model.build import build_chunks  # noqa: PLC0415
        from megatron_cpt.train.checkpoint import Checkpoints  # noqa: PLC0415
        from megatron_cpt.train.collectives import barrier  # noqa: PLC0415
        from megatron_cpt.train.data import TrainingData, build_dataset  # noqa: PLC0415
        from megatron_cpt.train.loop import Parts  # noqa: PLC0415
        from megatron_cpt.train.optimizer import wrap_and_optimize  # noqa: PLC0415
        from megatron_cpt.train.packing import prepare  # noqa: PLC0415

        plan = self._plan
        dataset = build_dataset(plan, self._run_dir, self._train_dir, barrier=lambda: barrier(device=backend.device))
        # Megatron marks a parameter as split over tensor-parallel ranks only where it initialises it, and the gradient norm
        # counts an unmarked one on the first of them alone. So the weights are initialised, though all are loaded over.
        model = build_chunks(plan.shape, plan.vocab, plan.layout, backend=backend, router_aux_loss=plan.optimizer.router_aux_loss)
        prepare(model, plan.packing)
        chunks, optimizer = wrap_and_optimize(model, plan)
        data = TrainingData(
            dataset,
            plan=plan,
            data_rank=parallel_state.get_data_parallel_rank(),
            device=backend.device,
            context_rank=parallel_state.get_context_parallel_rank(),
        )
        self._checkpoint = Checkpoints(self._run_dir, plan=plan, chunks=chunks, optimizer=optimizer, device=backend.device)
        return Parts(chunks, optimizer, data, self._checkpoint, stop, self._run_dir)

    def _make_hooks(self, parts: Any, clock: hook.TrainingClock, stop: StopRequest) -> list[hook.Hook]:
        """Return the hooks in the order of their calls: what is written before a checkpoint is never missing after it."""
        plan = self._plan
        hooks: list[hook.Hook] = [_StepKeeper(self)]
        record: Callable[[dict[str, Any]], None] = lambda _: None  # noqa: E731
        compare: Callable[[Scores, int], dict[str, Any] | None] = lambda _scores, _step: None  # noqa: E731
        if is_first_rank():
            trackers = self._guests = self._trackers()
            progress = hook.progress(num_steps=plan.num_steps, every_steps=plan.log_every_steps)
            metrics = hook.MetricsFile(
                self._train_dir / METRICS_NAME,
                sources=[entry.source for entry in plan.blend],
                licences=[entry.licence for entry in plan.blend],
                clock=clock,
                instruments=Instruments(plan, meter=open_meter(plan.backend), memory=process_memory(on_cuda=plan.backend == "cuda")),
                trackers=[*trackers, *([progress] if isinstance(progress, hook.ProgressBar) else [])],
                attempt_id=os.environ.get(ATTEMPT_VARIABLE),
                round_number=plan.round,
            )
            hooks += [*trackers, metrics, progress]
            record, compare = metrics.write, self._compare
        path = self._train_dir / METRICS_NAME
        records: Callable[[], list[dict[str, Any]]] = lambda: read_lines(path) if is_first_rank() else []  # noqa: E731
        thresholds = Thresholds(plan, agree=stop.agree, end=stop.end_at_threshold, record=record, records=records)
        hooks.append(thresholds)
        if self._evaluate is not None:
            from megatron_cpt.train.optimizer import gather_weights  # noqa: PLC0415  -- megatron

            evaluate = self._evaluate

            def score() -> Scores:
                gather_weights(parts.chunks)
                return evaluate(plan, self._run_dir, parts.chunks)

            if plan.gate.limits:
                self._limits = Limits(plan, agree=stop.agree, stop=stop.break_limit, record=record, records=records)
            every_steps = plan.eval_every_steps
            hooks.append(
                hook.InLoopEvaluation(
                    score, every_steps=every_steps, record=record, compare=compare, limits=self._limits, look_at=thresholds.look_at
                )
            )
        saves = parts.checkpoint
        save: Callable[[TrainState], None] = lambda state: None if stop.is_spoilt else saves.save_beside_training(state)  # noqa: E731
        hooks.append(hook.PeriodicCheckpoint(save, advance=saves.advance, every_steps=plan.checkpoint.every_steps))
        return hooks

    def _trackers(self) -> list[Guest]:
        def names() -> MetricNames:
            spend = Spend.of_run(self._run_dir, self._plan, attempt_id=os.environ.get(ATTEMPT_VARIABLE))
            return MetricNames.of(self._plan, spend=spend)

        trackers: list[Guest] = []
        if self._plan.wandb_mode != "disabled":
            trackers.append(WandbRun(self._train_dir, plan=self._plan, names=names()))
        if self._plan.tensorboard:
            trackers.append(TensorBoardRun(self._train_dir, names=names()))
        return trackers

    def _tell_guests(self, event: Mapping[str, Any]) -> None:
        for guest in self._guests:
            guest.record(event)

    def _compare(self, scores: Scores, step: int) -> dict[str, Any] | None:
        """Return the `forgetting` record of scores; None, said once, when the frozen base was not scored before training."""
        path = self._run_dir / "baseline" / "eval.json"
        if not path.exists():
            if not self._told_of_baseline:
                logger.warning("There is no %s, so forgetting is unknown.", path)
            self._told_of_baseline = True
            return None
        record = forgetting_record(self._plan, read_json(path), scores, step=step)
        warn_of(self._plan, record)
        return record

    def _check_inputs(self) -> None:
        """Refuse a vocabulary or an index that is not the one that the plan was made for; the initial weights are checked when loaded."""
        if self._plan.gate.limits and not (self._run_dir / "baseline" / "eval.json").exists():
            raise ConfigError(
                "The plan has hard limits against the frozen base, and the base was not scored.",
                where=self._run_dir / "baseline" / "eval.json",
                next_step="Run: megatron-cpt run --only baseline ...",
            )
        if "vocab" in self._plan.identity:
            check_vocab(self._run_dir / "vocab", expected=self._plan.vocab)
        wanted = self._plan.identity.get("index")
        if wanted is None:
            return
        folder = self._run_dir / "index"
        manifest = Manifest.load(folder)
        manifest.check_outputs(folder)
        if manifest.fingerprint != wanted:
            raise ConfigError(
                "The index is not the one that the plan was made for.",
                where=folder,
                value=manifest.fingerprint,
                rule=f"fingerprint {wanted}",
                next_step="Use a new run_name.",
            )

    def _close_hooks(self) -> None:
        for each in self._hooks:
            each.close()
        self._hooks = []

    def _newest(self) -> str | None:
        return self._checkpoint.newest if self._checkpoint is not None else None

    def note(self, state: TrainState) -> None:
        self._first, self._last = self._first or state, state

    def _read_tokens(self) -> dict[str, int]:
        """Return the tokens that this attempt read, by source."""
        if self._first is None or self._last is None:
            return {}
        pairs = zip(self._plan.blend, self._last.source_tokens, self._first.source_tokens, strict=True)
        return {entry.source: last - first for entry, last, first in pairs}


def known(seconds: Figure) -> float:
    assert not isinstance(seconds, Unavailable), "a plan with a limit on an unknown rate is refused when it is made"
    return seconds


class _StepKeeper(hook.BaseHook):
    """Tells the attempt how far it is, for the record of a failure."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt

    def on_start(self, state: TrainState) -> None:
        self._attempt.note(state)

    def after_step(self, state: TrainState) -> None:
        self._attempt.note(state)
