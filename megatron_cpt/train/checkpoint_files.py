"""Checkpoints on disk, without torch: what makes one complete, which is newest, which may be pruned.

`train/checkpoints/step_00000040/` holds `model/` (megatron-core's distributed format) and `checkpoint.json`, written
last. A folder is built under a name that begins with a dot and is renamed when whole, so a torso is known by its name.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron_cpt.errors import CheckpointError, CptError
from megatron_cpt.plan.run_plan import RunPlan
from megatron_cpt.record.hashing import files_under, sha256_file, sha256_plain
from megatron_cpt.record.manifest import OutputFile, versions_in_use
from megatron_cpt.record.store import publish_folder, read_json, write_json
from megatron_cpt.record.typed import from_plain, to_plain
from megatron_cpt.train.state import TrainState

SCHEMA_VERSION = 1
RECORD_NAME = "checkpoint.json"
MODEL_FOLDER = "model"
GOOD_NAME = "good.json"
FINAL_NAME = re.compile(r"step_\d{8,}")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckpointRecord:
    """What a checkpoint is, by its own word; `files` are relative to its folder."""

    schema_version: int
    step: int
    samples_seen: int
    tokens_seen: int
    sources: tuple[str, ...]
    source_samples: tuple[int, ...]
    source_tokens: tuple[int, ...]
    plan_fingerprint: str
    wandb_run_id: str | None
    files: dict[str, OutputFile]
    versions: dict[str, str]
    skipped_steps: int = 0
    recent_grad_norms: tuple[float, ...] = ()

    @property
    def weights_sha256(self) -> str:
        """The digest by which evaluation, gate and pointer know the checkpoint."""
        return sha256_plain({name: file.sha256 for name, file in self.files.items()})

    def state(self) -> TrainState:
        return TrainState(
            self.step,
            self.samples_seen,
            self.source_samples,
            self.source_tokens,
            skipped_steps=self.skipped_steps,
            recent_grad_norms=self.recent_grad_norms,
        )


def final_name(step: int) -> str:
    return f"step_{step:08d}"


def partial_name(step: int, attempt: str) -> str:
    return f".{final_name(step)}-{attempt}.partial"


def describe(
    folder: Path, state: TrainState, *, sources: Sequence[str], plan_fingerprint: str, wandb_run_id: str | None
) -> CheckpointRecord:
    """Hash every file of a saved folder and return its record."""
    return CheckpointRecord(
        schema_version=SCHEMA_VERSION,
        step=state.step,
        samples_seen=state.samples_seen,
        tokens_seen=state.tokens_seen,
        sources=tuple(sources),
        source_samples=state.source_samples,
        source_tokens=state.source_tokens,
        plan_fingerprint=plan_fingerprint,
        wandb_run_id=wandb_run_id,
        files={path.relative_to(folder).as_posix(): OutputFile(path.stat().st_size, sha256_file(path)) for path in files_under(folder)},
        versions=versions_in_use(),
        skipped_steps=state.skipped_steps,
        recent_grad_norms=state.recent_grad_norms,
    )


def publish(partial: Path, final: Path, record: CheckpointRecord) -> None:
    """Write the record, the last file of the folder, and give the folder its final name."""
    write_json(partial / RECORD_NAME, to_plain(record))
    publish_folder(partial, final)


def read_record(folder: Path) -> CheckpointRecord:
    """Read a checkpoint's record and compare the size of every file with it.

    Raises:
        CptError: the record is missing or damaged, or a file is missing or has another size.
    """
    path = folder / RECORD_NAME
    record = from_plain(CheckpointRecord, read_json(path), where=path)
    for name, file in record.files.items():
        part = folder / name
        size = part.stat().st_size if part.is_file() else None
        if size != file.size_bytes:
            raise CheckpointError(
                f"A file of a checkpoint is {'missing' if size is None else 'damaged'}.",
                where=part,
                value=f"{size} bytes",
                rule=f"{file.size_bytes} bytes by its record",
            )
    return record


def check_contents(folder: Path, record: CheckpointRecord) -> None:
    """Compare the hash of every file with the record; reads the whole checkpoint once.

    Raises:
        CheckpointError: naming the first file that differs.
    """
    for name, file in record.files.items():
        if sha256_file(folder / name) != file.sha256:
            raise CheckpointError("The content of a checkpoint's file has changed since it was saved.", where=folder / name)


def check_counters(record: CheckpointRecord, plan: RunPlan, folder: Path) -> CheckpointRecord:
    """Return a record by the plan's sources, of which an earlier round may not have known the last; refuse one whose counters
    contradict each other or the plan: rate and order of data follow from them, and would jump.

    Raises:
        CheckpointError: with the counters.
    """
    samples, tokens = record.step * plan.layout.global_batch_size, record.step * plan.layout.tokens_per_step
    counters = (record.samples_seen, sum(record.source_samples), record.tokens_seen, sum(record.source_tokens))
    sources = tuple(entry.source for entry in plan.blend)
    num_new = len(sources) - len(record.sources)
    is_of_plan = record.sources == sources[: len(record.sources)] and record.step <= plan.num_steps
    if num_new and is_of_plan:
        is_of_plan = record.plan_fingerprint != plan.fingerprint
    if counters != (samples, samples, tokens, tokens) or not is_of_plan:
        raise CheckpointError(
            "The counters of a checkpoint's record do not fit each other.",
            where=folder / RECORD_NAME,
            value=f"step {record.step}; samples {counters[0]}, of all sources {counters[1]}; tokens {counters[2]}, {counters[3]}",
            rule=f"{samples} samples and {tokens} tokens at that step, of the {plan.num_steps} steps of the plan",
            next_step="Remove this checkpoint to go on from the one before.",
        )
    if not num_new:
        return record
    nothing = (0,) * num_new
    return replace(
        record, sources=sources, source_samples=(*record.source_samples, *nothing), source_tokens=(*record.source_tokens, *nothing)
    )


def complete_checkpoints(checkpoints_dir: Path) -> list[tuple[Path, CheckpointRecord]]:
    """Return the complete checkpoints, newest (highest step by the record, not by the name) first."""
    found = []
    for folder in checkpoints_dir.glob("step_*"):
        try:
            found.append((folder, read_record(folder)))
        except CptError as error:
            logger.warning("Skipping a checkpoint that is not complete: %s", error)
    return sorted(found, key=lambda pair: pair[1].step, reverse=True)


def remove_torsos(checkpoints_dir: Path) -> None:
    """Remove folders that a killed save left behind; only one process may do so, and only when none is saving."""
    for torso in checkpoints_dir.glob(".step_*.partial"):
        logger.warning("Removing an unfinished checkpoint that a killed save left: %s", torso)
        shutil.rmtree(torso)


def best_steps(records: Iterable[Mapping[str, Any]], *, texts: Sequence[str]) -> list[int]:
    """Return the steps that an in-loop evaluation scored, lowest mean bits per byte of the given texts first.

    Args:
        records: of `metrics.jsonl`; `eval` records that lack one of the texts, and all other kinds, are passed over.
    """
    scores = {
        int(record["step"]): sum(record["bits_per_byte"][text] for text in texts) / len(texts)
        for record in records
        if record.get("kind") == "eval" and texts and set(texts) <= set(record["bits_per_byte"])
    }
    return sorted(scores, key=lambda step: (scores[step], -step))


def prune(checkpoints_dir: Path, *, keep_last: int, best_first: Sequence[int] = (), keep_best: int = 0) -> None:
    """Remove all but the newest `keep_last` checkpoints and the `keep_best` best, and never one that the run's `good.json` names.

    The pin is read as text: whatever the record's form, a checkpoint whose folder name appears in it stays.

    Args:
        best_first: steps, the best first; those that have no checkpoint do not count.
    """
    good = checkpoints_dir.parent.parent / GOOD_NAME
    pinned = set(FINAL_NAME.findall(good.read_text(encoding="utf-8"))) if good.exists() else set()
    complete = complete_checkpoints(checkpoints_dir)
    there = {record.step for _, record in complete}
    best = [step for step in best_first if step in there][:keep_best]
    for folder, record in complete[max(keep_last, 1) :]:
        if folder.name not in pinned and record.step not in best:
            torso = folder.with_name(f".{folder.name}-pruned.partial")  # a kill in the middle leaves a torso, not a half checkpoint
            folder.rename(torso)
            shutil.rmtree(torso)
