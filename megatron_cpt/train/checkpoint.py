"""Saving and resuming on all ranks: the model through megatron-core's distributed format, the record by the first rank."""

from __future__ import annotations

import logging
import secrets
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_cpt.errors import CheckpointError, CptError, FollowsAnotherRank
from megatron_cpt.model.dist_checkpoint import PendingSave, load_model, save_model
from megatron_cpt.model.fsdp import is_fully_sharded, shards_of
from megatron_cpt.plan.run_plan import RunPlan
from megatron_cpt.record.manifest import Manifest
from megatron_cpt.record.store import append_line, read_lines, require_free_space, write_text
from megatron_cpt.train.checkpoint_files import (
    MODEL_FOLDER,
    CheckpointRecord,
    best_steps,
    check_contents,
    check_counters,
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
from megatron_cpt.train.metrics import METRICS_NAME, of_round
from megatron_cpt.train.optimizer import gather_weights, rate_in_force
from megatron_cpt.train.runtime import is_first_rank
from megatron_cpt.train.schedule import learning_rate
from megatron_cpt.train.state import TrainState
from megatron_cpt.train.tracking import RUN_ID_NAME

CHECKPOINTS_FOLDER = "checkpoints"
BYTES_PER_PARAM = {"fp32": 12, "bf16": 14}  # weights and two fp32 moments; bf16 keeps fp32 weights beside its own
NONE_FOUND = -1
WAIT_SECONDS = 0.05  # between two looks at the first rank's publication

logger = logging.getLogger(__name__)


class Publication:
    """Work of one rank's thread, and how far it is as a number that ranks can compare. Without work it is done at once."""

    DONE, BUSY, FAILED = 0, 1, 2

    def __init__(self, work: Callable[[], None] | None) -> None:
        self._work = work
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="publish-checkpoint", daemon=True) if work is not None else None
        if self._thread is not None:
            self._thread.start()

    @property
    def code(self) -> int:
        if self._thread is not None and self._thread.is_alive():
            return self.BUSY
        return self.DONE if self._error is None else self.FAILED

    def wait(self) -> int:
        """Wait for the work's end and return its code."""
        if self._thread is not None:
            self._thread.join()
        return self.code

    def raise_failure(self) -> None:
        """Raise what went wrong here, or that another rank knows."""
        if self._error is None:
            raise FollowsAnotherRank("The first rank could not publish a checkpoint.")
        if isinstance(self._error, OSError):
            raise CheckpointError(
                "The checkpoint could not be published.",
                where=self._error.filename,
                value=str(self._error),
                next_step="Check the disk's space and quota. Earlier checkpoints are untouched.",
            ) from self._error
        raise self._error

    def _run(self) -> None:
        assert self._work is not None
        try:
            self._work()
        except BaseException as error:  # raised again at a step boundary, on all ranks
            self._error = error


@dataclass
class _Saving:
    """A save that has begun and is not published yet; `write` is None when every rank's part is on disk."""

    state: TrainState
    partial: Path
    final: Path
    began: float
    blocked_seconds: float = 0.0
    write: PendingSave | None = None
    publication: Publication | None = None


class Checkpoints:
    """The checkpoints of one run. Every method is collective."""

    def __init__(self, run_dir: Path, *, plan: RunPlan, chunks: list[Any], optimizer: Any, device: torch.device) -> None:
        self._run_dir, self._plan, self._device = run_dir, plan, device
        self._chunks, self._optimizer = chunks, optimizer
        self._train_dir = run_dir / "train"
        self._folder = self._train_dir / CHECKPOINTS_FOLDER
        self._attempt = f"{from_first(secrets.randbits(32), device=device):08x}"
        self._saved_step: int | None = None
        self._saving: _Saving | None = None

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
        record = check_counters(record, self._plan, folder)
        load_model(folder / MODEL_FOLDER, self._chunks, optimizer=self._optimizer)
        if record.wandb_run_id is not None and is_first_rank():
            write_text(self._train_dir / RUN_ID_NAME, record.wandb_run_id)
        self._saved_step = step
        state = record.state()
        rate = learning_rate(self._plan.schedule, samples_seen=state.samples_seen + self._plan.layout.global_batch_size)
        logger.info("Resuming after step %d of %d from %s.", step, self._plan.num_steps, folder)
        logger.info("The rate was %.2e there, and the plan's next one is %.2e.", rate_in_force(self._optimizer), rate)
        return state

    def save(self, state: TrainState) -> None:
        """Write a checkpoint aside, publish it whole and prune older ones; nothing to do when this step is saved already.

        Raises:
            CheckpointError: a weight is not finite, or the write failed; the earlier checkpoints are untouched.
            ConfigError: the disk cannot hold another checkpoint; nothing was written.
        """
        self._begin(state, asynchronous=False)
        self.advance(wait=True)

    def save_beside_training(self, state: TrainState) -> None:
        """Begin a checkpoint that is written while training goes on, when the plan says so; otherwise `save`.

        Raises:
            CheckpointError, ConfigError: as `save`, also for the checkpoint before, which is waited for.
        """
        if not self._plan.checkpoint.asynchronous:
            self.save(state)
            return
        self._begin(state, asynchronous=True)

    def advance(self, *, wait: bool = False) -> None:
        """Complete and publish a save that has begun, as far as it can be done without waiting, or to its end.

        Raises:
            CheckpointError: the write failed; it was removed, and the earlier checkpoints are untouched.
        """
        saving = self._saving
        if saving is None:
            return
        started = time.monotonic()
        try:
            done = self._advance(saving, wait=wait)
        except BaseException:
            self.abort()
            raise
        saving.blocked_seconds += time.monotonic() - started
        if not done:
            return
        self._saving = None
        self._saved_step = saving.state.step
        if is_first_rank():
            self._record(saving)
        logger.info("Saved %s.", saving.final)

    def abort(self) -> None:
        """Give up a save that has begun: end this rank's writer and remove the folder. Not collective, for the failure path.

        A checkpoint that all ranks have written is published nevertheless: it is of an earlier step, and needs no other rank.
        """
        saving, self._saving = self._saving, None
        if saving is None:
            return
        if saving.write is not None:
            saving.write.abort()
        if not is_first_rank():
            return
        if saving.publication is not None and saving.publication.wait() == Publication.DONE:
            self._saved_step = saving.state.step
        else:
            shutil.rmtree(saving.partial, ignore_errors=True)

    def _begin(self, state: TrainState, *, asynchronous: bool) -> None:
        if self._saving is not None and self._saving.state.step != state.step:
            logger.info("Waiting for the checkpoint of step %d, which is still being written.", self._saving.state.step)
            self.advance(wait=True)
        if state.step in (self._saved_step, 0) or self._saving is not None:
            return
        started = time.monotonic()
        gather_weights(self._chunks)
        self._require_finite_weights(state)
        final, partial = self._folder / final_name(state.step), self._folder / partial_name(state.step, self._attempt)
        if is_first_rank():
            self._require_space()
            partial.mkdir(parents=True)
        barrier(device=self._device)
        self._saving = saving = _Saving(state, partial, final, began=started)
        common = {"step": state.step, "plan_fingerprint": self._plan.fingerprint}
        try:
            if asynchronous:
                saving.write = PendingSave(partial / MODEL_FOLDER, self._chunks, optimizer=self._optimizer, common=common)
            else:
                save_model(partial / MODEL_FOLDER, self._chunks, optimizer=self._optimizer, common=common)
        except BaseException:
            self.abort()
            raise
        saving.blocked_seconds = time.monotonic() - started

    def _advance(self, saving: _Saving, *, wait: bool) -> bool:
        if saving.publication is None:
            if saving.write is not None and not saving.write.finished(wait=wait):
                return False
            saving.write = None
            saving.publication = Publication((lambda: self._publish(saving)) if is_first_rank() else None)
        code = highest(saving.publication.code, device=self._device)
        while wait and code == Publication.BUSY:  # no single wait is long: hashing a large checkpoint outlasts a collective's limit
            time.sleep(WAIT_SECONDS)
            code = highest(saving.publication.code, device=self._device)
        if code == Publication.FAILED:
            saving.publication.raise_failure()
        return code == Publication.DONE

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
                next_step=f"Restore one, or remove {self._train_dir} to train again from the initial weights.",
            )
        saved = [record["step"] for record in read_lines(self._train_dir / METRICS_NAME) if self._is_checkpoint_of_round(record)]
        if self._plan.resumes_from is not None:
            raise CheckpointError(
                "The checkpoint that the plan goes on from is gone.",
                where=self._run_dir / self._plan.resumes_from.checkpoint,
                next_step="Restore it. It is the one that good.json names, or the candidate of the round before.",
            )
        if saved:
            raise CheckpointError(
                "This run has saved checkpoints, and none is there.",
                where=self._folder,
                value=f"the last one was of step {saved[-1]}",
                next_step=f"Restore it, or remove {self._train_dir} to train again from the initial weights.",
            )
        return NONE_FOUND

    def _is_checkpoint_of_round(self, record: dict[str, Any]) -> bool:
        """Say whether a record is of a checkpoint that this round saved; those of earlier ones may be in a branch by now."""
        return record.get("kind") == "checkpoint" and record.get("round", 1) == self._plan.round

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
        if not is_fully_sharded(self._chunks):  # sharded weights are the optimizer's own
            self._optimizer.reload_model_params()
        logger.info("Starting from %s.", init / "checkpoint")

    def _check_plan(self, record: CheckpointRecord, folder: Path) -> None:
        """Accept a checkpoint of this plan, or the one of another plan that this one declares that it goes on from."""
        point = self._plan.resumes_from
        is_declared = point is not None and folder == self._run_dir / point.checkpoint and record.weights_sha256 == point.sha256
        if record.plan_fingerprint != self._plan.fingerprint and not is_declared:
            raise CheckpointError(
                "The newest checkpoint was written under another plan (model, data, schedule or batch differ).",
                where=folder,
                value=record.plan_fingerprint,
                rule=f"plan fingerprint {self._plan.fingerprint}",
                next_step="Go on with the plan that it was written under; after a verdict begin a new round (megatron-cpt run --new-round),"
                " or use a new run_name.",
            )

    def _require_finite_weights(self, state: TrainState) -> None:
        if is_fully_sharded(self._chunks):
            weights = [rows for chunk in self._chunks for _, _, rows in shards_of(chunk)]
        else:
            weights = [parameter for chunk in self._chunks for parameter in chunk.parameters()]
        spoilt = any(not bool(torch.isfinite(weight).all()) for weight in weights)
        if highest(int(spoilt), device=self._device):
            raise CheckpointError("A weight is not a finite number; no checkpoint was written.", where=f"step {state.step}")

    def _require_space(self) -> None:
        size = int(1.1 * self._plan.estimate.num_params * BYTES_PER_PARAM[self._plan.layout.dtype])
        require_free_space(self._folder, size, purpose="a checkpoint")

    def _publish(self, saving: _Saving) -> None:
        """Hash what was written, give it its final name and prune. First rank only, in a thread: hashing takes a while."""
        run_id_path = self._train_dir / RUN_ID_NAME
        record = describe(
            saving.partial,
            saving.state,
            sources=[entry.source for entry in self._plan.blend],
            plan_fingerprint=self._plan.fingerprint,
            wandb_run_id=run_id_path.read_text(encoding="utf-8") if run_id_path.exists() else None,
        )
        if saving.final.exists():  # a damaged one that the resume skipped
            shutil.rmtree(saving.final)
        publish(saving.partial, saving.final, record)
        domain_texts = [text.name for text in self._plan.eval.texts if text.role == "domain"]
        ranked = best_steps(read_lines(self._train_dir / METRICS_NAME), texts=domain_texts)
        prune(self._folder, keep_last=self._plan.checkpoint.keep_last, best_first=ranked, keep_best=self._plan.checkpoint.keep_best)

    def _record(self, saving: _Saving) -> None:
        """Note a published checkpoint, and for how long training stood still for it."""
        record = {
            "kind": "checkpoint",
            "step": saving.state.step,
            "seconds": time.monotonic() - saving.began,
            "blocked_seconds": saving.blocked_seconds,
        }
        append_line(self._train_dir / METRICS_NAME, of_round(record, self._plan.round))
