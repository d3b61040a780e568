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
from megatron_cpt.launch_ranks import die_with_parent, tie_helpers_to_this_process
from megatron_cpt.plan.run_plan import RunPlan
from megatron_cpt.record.manifest import Manifest
from megatron_cpt.train import hooks as hook
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
from megatron_cpt.train.state import TrainState
from megatron_cpt.train.tracking import WandbRun

Evaluate = Callable[[RunPlan, Path, list[Any]], Mapping[str, float]]

logger = logging.getLogger(__name__)


def run(plan_path: Path, *, evaluate: Evaluate | None) -> int:
    """Train a plan on this rank and return the exit code: 0 finished, 75 stopped, 6 budget, otherwise the error's.

    Args:
        plan_path: `<run>/plan/plan.yaml`; everything is written under `<run>/train/`.
        evaluate: bits per byte by text of model chunks, called on every rank; None when the caller offers no evaluation.
    """
    die_with_parent()
    tie_helpers_to_this_process()
    configure_log()
    plan, run_dir = RunPlan.load(plan_path), plan_path.resolve().parent.parent
    train_dir = run_dir / "train"
    train_dir.mkdir(parents=True, exist_ok=True)
    with only_attempt(train_dir), present(train_dir, rank=rank()):
        return Attempt(plan, run_dir, train_dir, evaluate=evaluate).run()


class Attempt:
    """One rank's attempt at a plan."""

    def __init__(self, plan: RunPlan, run_dir: Path, train_dir: Path, *, evaluate: Evaluate | None) -> None:
        self._plan, self._run_dir, self._train_dir, self._evaluate = plan, run_dir, train_dir, evaluate
        self._started = time.time()
        self._hooks: list[hook.Hook] = []
        self._checkpoint: Any = None
        self._step: int | None = None

    def run(self) -> int:
        """Train to an end and record it; a failure is recorded without a word to the other ranks."""
        end_watch = watch(self._train_dir, on_death=self._end_after_death)
        try:
            code = self._train()
        except BaseException as error:  # torch's CheckpointException is none of Exception's
            self._close_hooks()
            if self._checkpoint is not None:
                self._checkpoint.abort()
            return fail(error, self._train_dir, started=self._started, step=self._step, checkpoint=self._newest())
        finally:
            end_watch()
        return code

    def _end_after_death(self, dead: list[int]) -> None:
        """End this process from the watching thread: the main one may wait for the dead rank until the collective's limit."""
        error = rank_died(dead, step=self._step)
        os._exit(fail(error, self._train_dir, started=self._started, step=self._step, checkpoint=self._newest()))

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
        stop = StopRequest(
            self._train_dir,
            max_hours=plan.stop.max_hours,
            agree=lambda code: highest(code, device=backend.device),
            seconds_used=clock.seconds,
        )
        parts = self._build(backend, stop)
        self._hooks = self._make_hooks(parts, clock)
        state = train(plan, parts, self._hooks)
        self._close_hooks()
        status = status_of(stop)
        logger.info("Training %s after step %d of %d. %s", status, state.step, plan.num_steps, stop.reason)
        seconds = time.time() - self._started
        code = record_end(self._train_dir, status=status, step=state.step, seconds=seconds, reason=stop.reason, checkpoint=self._newest())
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

        plan = self._plan
        dataset = build_dataset(plan, self._run_dir, self._train_dir, barrier=lambda: barrier(device=backend.device))
        # Megatron marks a parameter as split over tensor-parallel ranks only where it initialises it, and the gradient norm
        # counts an unmarked one on the first of them alone. So the weights are initialised, though all are loaded over.
        model = build_chunks(plan.shape, plan.vocab, plan.layout, backend=backend)
        chunks, optimizer = wrap_and_optimize(model, plan)
        data = TrainingData(dataset, plan=plan, data_rank=parallel_state.get_data_parallel_rank(), device=backend.device)
        self._checkpoint = Checkpoints(self._run_dir, plan=plan, chunks=chunks, optimizer=optimizer, device=backend.device)
        return Parts(chunks, optimizer, data, self._checkpoint, stop)

    def _make_hooks(self, parts: Any, clock: hook.TrainingClock) -> list[hook.Hook]:
        """Return the hooks in the order of their calls: what is written before a checkpoint is never missing after it."""
        plan, metrics = self._plan, self._train_dir / METRICS_NAME
        sources = [entry.source for entry in plan.blend]
        hooks: list[hook.Hook] = [_StepKeeper(self)]
        if is_first_rank():
            hooks += [
                hook.MetricsFile(metrics, sources=sources, clock=clock),
                hook.progress(num_steps=plan.num_steps, every_steps=plan.log_every_steps),
            ]
            if plan.wandb_mode != "disabled":
                hooks.append(WandbRun(self._train_dir, plan=plan, sources=sources, clock=clock))
        if plan.eval_every_steps and self._evaluate is not None:
            evaluate = self._evaluate
            record = hook.append_to(metrics) if is_first_rank() else lambda _: None
            score = lambda: evaluate(plan, self._run_dir, parts.chunks)  # noqa: E731
            hooks.append(hook.InLoopEvaluation(score, every_steps=plan.eval_every_steps, record=record))
        saves = parts.checkpoint
        every_steps = plan.checkpoint.every_steps
        hooks.append(hook.PeriodicCheckpoint(saves.save_beside_training, advance=saves.advance, every_steps=every_steps))
        return hooks

    def _check_inputs(self) -> None:
        """Refuse an index that is not the one that the plan was made for; the initial weights are checked when loaded."""
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

    def note_step(self, step: int) -> None:
        self._step = step


class _StepKeeper(hook.BaseHook):
    """Tells the attempt how far it is, for the record of a failure."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt

    def on_start(self, state: TrainState) -> None:
        self._attempt.note_step(state.step)

    def after_step(self, state: TrainState) -> None:
        self._attempt.note_step(state.step)
