"""Weights & Biases, as a guest: it starts within a bound, and whatever fails in it is a warning, never the run's end."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from megatron_cpt.plan.run_plan import RunPlan
from megatron_cpt.record.store import write_text
from megatron_cpt.record.typed import to_plain
from megatron_cpt.train.hooks import BaseHook, TrainingClock
from megatron_cpt.train.metrics import step_record
from megatron_cpt.train.state import TrainState

START_SECONDS = 30
RUN_ID_NAME = "wandb-run-id"

logger = logging.getLogger(__name__)


class WandbRun(BaseHook):
    """Sends each step's numbers to one wandb run that survives restarts by its id."""

    def __init__(self, train_dir: Path, *, plan: RunPlan, sources: Sequence[str], clock: TrainingClock) -> None:
        self._train_dir, self._plan, self._sources, self._clock = train_dir, plan, sources, clock
        self._run: Any = None

    def on_start(self, state: TrainState) -> None:
        self._guard("start", self._start)

    def after_step(self, state: TrainState) -> None:
        if self._run is None:
            return
        record = step_record(state, sources=self._sources, elapsed_seconds=self._clock.seconds())
        flat = {key: value for key, value in record.items() if isinstance(value, int | float)}
        flat |= {f"source_samples/{source}": count for source, count in record["source_samples"].items()}
        self._guard("log", lambda: self._run.log(flat, step=state.step))

    def close(self) -> None:
        if self._run is not None:
            self._guard("finish", self._run.finish)

    def _start(self) -> None:
        import wandb  # noqa: PLC0415  -- imported only where it is used: it costs a second and may be absent

        self._run = wandb.init(
            project=self._plan.wandb_project,
            name=self._plan.run_name,
            id=run_id(self._train_dir, new=lambda: secrets.token_hex(4)),
            resume="allow",
            dir=str(self._train_dir),
            mode=self._plan.wandb_mode,
            config=to_plain(self._plan),
            settings=wandb.Settings(init_timeout=START_SECONDS, console="off", silent=True, disable_git=True, disable_code=True),
        )

    def _guard(self, doing: str, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # whatever a tracker raises must not end a run that costs money
            logger.warning("wandb could not %s (%s: %s); training goes on without it.", doing, type(error).__name__, error)
            self._run = None


def run_id(train_dir: Path, *, new: Callable[[], str]) -> str:
    """Return the run's wandb id, made once: a file keeps it between attempts, and every checkpoint carries a copy."""
    path = train_dir / RUN_ID_NAME
    if not path.exists():
        write_text(path, new())
    return path.read_text(encoding="utf-8")
