"""The training loop. Everything it needs is in `Parts`; everything that follows a step is a hook."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_cpt.plan.run_plan import RunPlan
from megatron_cpt.train.checkpoint import Checkpoints
from megatron_cpt.train.data import TrainingData
from megatron_cpt.train.first_loss import promised_loss
from megatron_cpt.train.hooks import Hook
from megatron_cpt.train.prefetch import one_ahead
from megatron_cpt.train.runtime import StopRequest
from megatron_cpt.train.state import TrainState
from megatron_cpt.train.step import optimizer_step


@dataclass(frozen=True)
class Parts:
    """What one rank trains with: its model chunks (wrapped for data parallelism), optimizer, data, checkpoints, stop, and the run."""

    chunks: list[Any]
    optimizer: Any
    data: TrainingData
    checkpoint: Checkpoints
    stop: StopRequest
    run_dir: Path


def train(plan: RunPlan, parts: Parts, hooks: Sequence[Hook]) -> TrainState:
    """Train from the newest checkpoint, or the initial one, to the plan's end or an agreed stop; return the last state.

    Raises:
        CheckpointError: nothing to start from, the checkpoint belongs to another plan, or its weights are not what their record says.
        TrainingDiverged: a loss or gradient was not finite; nothing was saved after it.
    """
    state = parts.checkpoint.resume_or(TrainState.start(plan))
    loaded = parts.checkpoint.newest or "init/checkpoint"
    promise = promised_loss(plan, parts.run_dir, state, checkpoint=loaded, device=parts.data.device)
    batches = one_ahead(parts.data.from_sample(state.samples_seen))
    for hook in hooks:
        hook.on_start(state)
    while state.step < plan.num_steps and not parts.stop.requested():  # every rank agrees inside
        state = state.after(optimizer_step(parts.chunks, parts.optimizer, next(batches), plan, before=state, promise=promise))
        for hook in hooks:
            hook.after_step(state)
    if parts.stop.is_spoilt:
        parts.checkpoint.advance(wait=True)
    else:
        parts.checkpoint.save(state)
    if parts.stop.is_budget and not parts.stop.is_limit:  # there is time left for a last look, unlike after a signal
        for hook in hooks:
            hook.at_budget_stop(state)
    return state
