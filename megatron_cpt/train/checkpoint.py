"""Saving and resuming on all ranks: the model through megatron-core's distributed format, the record by the first rank."""

from __future__ import annotations

import logging
import secrets
import shutil
from pathlib import Path
from typing import Any

import torch

from megatron_cpt.errors import CheckpointError, CptError
from megatron_cpt.model.dist_checkpoint import load_model, save_model
from megatron_cpt.plan.run_plan import RunPlan
from megatron_cpt.record.manifest import Manifest
from megatron_cpt.record.store import require_free_space, write_text
from megatron_cpt.train.checkpoint_files import (
    MODEL_FOLDER,
    CheckpointRecord,
    check_contents,
    complete_checkpoints,
    describe,
    final_name,
    partial_name,
    prune,
    publish,
    read_record,
    remove_torsos,
)
from megatron_cpt.train.collectives import barrier, from_first, highest
from megatron_cpt.train.runtime import is_first_rank
from megatron_cpt.train.state import TrainState
from megatron_cpt.train.tracking import RUN_ID_NAME

CHECKPOINTS_FOLDER = "checkpoints"
BYTES_PER_PARAM = {"fp32": 12, "bf16": 14}  # weights and two fp32 moments; bf16 keeps fp32 weights beside its own
NONE_FOUND = -1

logger = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run. Every method is collective."""

    def __init__(self, run_dir: Path, *, plan: RunPlan, chunks: list[Any], optimizer: Any, device: torch.device) -> None:
        self._run_dir, self._plan, self._device = run_dir, plan, device
        self._chunks, self._optimizer = chunks, optimizer
        self._train_dir = run_dir / "train"
        self._folder = self._train_dir / CHECKPOINTS_FOLDER
        self._attempt = f"{from_first(secrets.randbits(32), device=device):08x}"
        self._saved_step: int | None = None

    @property
    def newest(self) -> str | None:
        """The newest checkpoint that this process knows of, relative to the run folder."""
        return f"train/{CHECKPOINTS_FOLDER}/{final_name(self._saved_step)}" if self._saved_step is not None else None

    def resume_or(self, start: TrainState) -> TrainState:
        """Load the newest complete checkpoint and return its state; without one, load the initial weights and return `start`.

        Raises:
            CheckpointError: the checkpoint belongs to another plan, all are damaged, or there is nothing to start from.
        """
        step = from_first(self._find() if is_first_rank() else NONE_FOUND, device=self._device)
        if step == NONE_FOUND:
            self._load_initial()
            return start
        folder = self._folder / final_name(step)
        record = read_record(folder)
        self._check_plan(record, folder)
        load_model(folder / MODEL_FOLDER, self._chunks, optimizer=self._optimizer)
        if record.wandb_run_id is not None and is_first_rank():
            write_text(self._train_dir / RUN_ID_NAME, record.wandb_run_id)
        self._saved_step = step
        logger.info("Resuming after step %d of %d from %s.", step, self._plan.num_steps, folder)
        return record.state()

    def save(self, state: TrainState) -> None:
        """Write a checkpoint aside, publish it whole and prune older ones; nothing to do when this step is saved already.

        Raises:
            CheckpointError: a weight is not finite, or the write failed; the earlier checkpoints are untouched.
            ConfigError: the disk cannot hold another checkpoint; nothing was written.
        """
        if state.step in (self._saved_step, 0):
            return
        self._require_finite_weights(state)
        final, partial = self._folder / final_name(state.step), self._folder / partial_name(state.step, self._attempt)
        if is_first_rank():
            self._require_space()
            partial.mkdir(parents=True)
        barrier(device=self._device)
        try:
            common = {"step": state.step, "plan_fingerprint": self._plan.fingerprint}
            save_model(partial / MODEL_FOLDER, self._chunks, optimizer=self._optimizer, common=common)
            barrier(device=self._device)
            if is_first_rank():
                self._publish(partial, final, state)
        except BaseException:
            if is_first_rank():
                shutil.rmtree(partial, ignore_errors=True)
            raise
        barrier(device=self._device)
        self._saved_step = state.step
        logger.info("Saved %s.", final)

    def _find(self) -> int:
        """Return the step of the newest checkpoint whose files are whole, or NONE_FOUND. First rank only."""
        remove_torsos(self._folder)
        self._require_space()
        for folder, record in complete_checkpoints(self._folder):
            try:
                check_contents(folder, record)
            except CptError as error:
                logger.warning("Skipping a damaged checkpoint: %s", error)
                continue
            return record.step
        if any(self._folder.glob("step_*")):
            raise CheckpointError(
                "No checkpoint of this run is whole.",
                where=self._folder,
                next_step=f"Restore one, or remove {self._folder} to train again from the initial weights.",
            )
        return NONE_FOUND

    def _load_initial(self) -> None:
        init = self._run_dir / "init"
        manifest = Manifest.load(init)
        manifest.check_outputs(init)
        wanted = self._plan.identity.get("init", manifest.fingerprint)
        if manifest.fingerprint != wanted:
            raise CheckpointError(
                "The initial checkpoint is not the one that the plan was made for.",
                where=init,
                value=manifest.fingerprint,
                rule=f"fingerprint {wanted}",
                next_step="Use a new run_name.",
            )
        load_model(init / "checkpoint", self._chunks)
        self._optimizer.reload_model_params()
        logger.info("Starting from %s.", init / "checkpoint")

    def _check_plan(self, record: CheckpointRecord, folder: Path) -> None:
        if record.plan_fingerprint != self._plan.fingerprint:
            raise CheckpointError(
                "The newest checkpoint was written under another plan (model, data, schedule or batch differ).",
                where=folder,
                value=record.plan_fingerprint,
                rule=f"plan fingerprint {self._plan.fingerprint}",
                next_step="Go on with the plan that it was written under, or use a new run_name.",
            )

    def _require_finite_weights(self, state: TrainState) -> None:
        spoilt = any(not bool(torch.isfinite(parameter).all()) for chunk in self._chunks for parameter in chunk.parameters())
        if highest(int(spoilt), device=self._device):
            raise CheckpointError("A weight is not a finite number; no checkpoint was written.", where=f"step {state.step}")

    def _require_space(self) -> None:
        size = int(1.1 * self._plan.estimate.num_params * BYTES_PER_PARAM[self._plan.layout.dtype])
        require_free_space(self._folder, size, purpose="a checkpoint")

    def _publish(self, partial: Path, final: Path, state: TrainState) -> None:
        run_id_path = self._train_dir / RUN_ID_NAME
        record = describe(
            partial,
            state,
            sources=[entry.source for entry in self._plan.blend],
            plan_fingerprint=self._plan.fingerprint,
            wandb_run_id=run_id_path.read_text(encoding="utf-8") if run_id_path.exists() else None,
        )
        if final.exists():  # a damaged one that the resume skipped
            shutil.rmtree(final)
        publish(partial, final, record)
        prune(self._folder, keep_last=self._plan.checkpoint.keep_last)
