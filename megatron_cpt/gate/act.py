"""Carries out a verdict: moves the pointer to the good checkpoint and, on a rollback, the candidate out of the way.

`good.json` in the run folder names the one checkpoint that may be resumed from or exported. The verdict is on disk before
anything moves and the pointer is written last, so a killed run of this module is finished by running it again.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_cpt.errors import CheckpointError, DataError
from megatron_cpt.gate.verdict import VERDICT_NAME, Verdict
from megatron_cpt.record.hashing import files_under, sha256_file, sha256_plain
from megatron_cpt.record.store import append_line, read_json, read_lines, sync_folder, write_json
from megatron_cpt.record.typed import to_plain

GOOD_NAME = "good.json"
BRANCH_NAME = "branch.json"
CHECKPOINT_RECORD = "checkpoint.json"
INIT_CHECKPOINT = "init/checkpoint"
CHECKPOINTS = "train/checkpoints"
BRANCHES = "train/branches"
LEDGER = "ledger.jsonl"
METRICS = "train/metrics.jsonl"


@dataclass(frozen=True)
class GoodCheckpoint:
    """The checkpoint that may be resumed from or exported: its path in the run folder and the digest of its weights."""

    checkpoint: str
    sha256: str
    verdict: str
    verdict_sha256: str

    @property
    def is_trained(self) -> bool:
        """Whether it is a checkpoint of training that was promoted, and not the start."""
        return self.checkpoint.startswith(f"{CHECKPOINTS}/")

    @classmethod
    def load(cls, run_dir: Path) -> GoodCheckpoint:
        """Read the pointer of a run.

        Raises:
            DataError: no checkpoint of the run was judged yet, or the pointer is damaged.
        """
        data = read_json(run_dir / GOOD_NAME)
        fields = ("checkpoint", "sha256", "verdict", "verdict_sha256")
        if not isinstance(data, dict) or any(not isinstance(data.get(name), str) for name in fields):
            raise DataError("The pointer to the good checkpoint is damaged.", where=run_dir / GOOD_NAME, next_step="Run the gate again.")
        return cls(**{name: data[name] for name in fields})


def check_digest(run_dir: Path, good: GoodCheckpoint) -> None:
    """Read every file of the good checkpoint and refuse it when one is not what was promoted: more, less or other bytes.

    Raises:
        CheckpointError: naming the file.
    """
    folder = run_dir / good.checkpoint
    recorded = read_json(folder / CHECKPOINT_RECORD)["files"]
    there = {path.relative_to(folder).as_posix(): sha256_file(path) for path in files_under(folder) if path.name != CHECKPOINT_RECORD}
    if sha256_plain(there) == good.sha256:
        return
    names = sorted(name for name in recorded.keys() | there.keys() if recorded.get(name, {}).get("sha256") != there.get(name))
    raise CheckpointError(
        "The checkpoint is not the one that was promoted.",
        where=folder,
        value=f"differs in {', '.join(names) or 'its record'}",
        rule=f"digest {good.sha256} ({GOOD_NAME})",
        next_step="Restore its files. Nothing but the promoted bytes is exported or trained on.",
    )


def carry_out(run_dir: Path, verdict: Verdict, *, checkpoint: str | None, init_sha256: str) -> None:
    """Promote or roll back as the recorded verdict says; do nothing when it is unknown. Safe to repeat.

    Args:
        verdict: must already be recorded in `gate/verdict.json`.
        checkpoint: the candidate's folder relative to the run folder, as it was when it was evaluated; None for a run that a hard
            limit ended before its first checkpoint.
        init_sha256: digest of the weights in `init/checkpoint`.

    Raises:
        DataError: the recorded verdict is another one, or the candidate's weights were never named.
    """
    recorded = Verdict.load(run_dir / "gate" / VERDICT_NAME)
    if recorded != verdict:
        raise DataError("The verdict to carry out is not the recorded one.", where=run_dir / "gate" / VERDICT_NAME)
    if verdict.decision == "promote" and checkpoint is not None:
        _promote(run_dir, verdict, checkpoint=checkpoint)
    elif verdict.decision == "rollback":
        _roll_back(run_dir, verdict, checkpoint=checkpoint, init_sha256=init_sha256)


def branch_id(verdict: Verdict) -> str:
    """Name the branch that a rollback leaves behind; the same verdict always names the same one."""
    return f"rolled-back-{verdict.fingerprint[:12]}"


def rollback_event_in(path: Path, branch: str) -> bool:
    """Say whether a record already holds the event of this rollback."""
    return any(
        line.get("kind") == "event" and line.get("event") == "rollback" and line.get("branch") == branch for line in read_lines(path)
    )


def _promote(run_dir: Path, verdict: Verdict, *, checkpoint: str) -> None:
    if verdict.candidate_weights_sha256 is None:
        raise DataError(
            "The evaluation does not name the weights that it scored.", where=run_dir / "eval", rule="weights_sha256 is recorded"
        )
    if not (run_dir / checkpoint).is_dir():
        raise DataError("The checkpoint to promote is missing.", where=run_dir / checkpoint)
    _point(run_dir, checkpoint=checkpoint, sha256=verdict.candidate_weights_sha256, verdict=verdict)


def _roll_back(run_dir: Path, verdict: Verdict, *, checkpoint: str | None, init_sha256: str) -> None:
    if _points_by(run_dir, verdict):
        return  # the pointer is the last thing written; checkpoints that came after it are not this verdict's to move
    branch = branch_id(verdict)
    folder = run_dir / BRANCHES / branch
    kept = _earlier_good(run_dir, candidate=checkpoint)
    event = {"kind": "event", "event": "rollback", "branch": branch, "checkpoint": checkpoint, "reasons": list(verdict.reasons)}
    if not (folder / BRANCH_NAME).exists():
        abandoned = sorted(path.name for path in _entries(run_dir) if kept is None or not _holds(path, run_dir / kept.checkpoint))
        write_json(folder / BRANCH_NAME, {**event, "verdict": to_plain(verdict), "abandoned": abandoned})
    _move_into(folder, run_dir, read_json(folder / BRANCH_NAME)["abandoned"])
    for record in (run_dir / LEDGER, run_dir / METRICS):
        if not rollback_event_in(record, branch):
            append_line(record, event)
    if kept is None:
        _point(run_dir, checkpoint=INIT_CHECKPOINT, sha256=init_sha256, verdict=verdict)
    else:
        _point(run_dir, checkpoint=kept.checkpoint, sha256=kept.sha256, verdict=verdict)


def _points_by(run_dir: Path, verdict: Verdict) -> bool:
    return (run_dir / GOOD_NAME).exists() and GoodCheckpoint.load(run_dir).verdict_sha256 == verdict.fingerprint


def _earlier_good(run_dir: Path, *, candidate: str | None) -> GoodCheckpoint | None:
    """Return the checkpoint that an earlier verdict promoted, unless it is the one now refused."""
    if not (run_dir / GOOD_NAME).exists():
        return None
    good = GoodCheckpoint.load(run_dir)
    return good if good.is_trained and good.checkpoint != candidate else None


def _entries(run_dir: Path) -> list[Path]:
    folder = run_dir / CHECKPOINTS
    return list(folder.iterdir()) if folder.is_dir() else []


def _holds(entry: Path, checkpoint: Path) -> bool:
    return checkpoint == entry or entry in checkpoint.parents


def _move_into(folder: Path, run_dir: Path, names: list[Any]) -> None:
    """Rename the abandoned entries into the branch; those that an earlier, killed attempt moved are already there."""
    for name in map(str, names):
        if Path(name).name != name:
            raise DataError("A branch record names a path outside the checkpoints.", where=folder / BRANCH_NAME, value=name)
        source = run_dir / CHECKPOINTS / name
        if source.exists():
            os.rename(source, folder / name)
    sync_folder(folder)
    if (run_dir / CHECKPOINTS).is_dir():
        sync_folder(run_dir / CHECKPOINTS)


def _point(run_dir: Path, *, checkpoint: str, sha256: str, verdict: Verdict) -> None:
    wanted = {"checkpoint": checkpoint, "sha256": sha256, "verdict": verdict.decision, "verdict_sha256": verdict.fingerprint}
    path = run_dir / GOOD_NAME
    if not path.exists() or read_json(path) != wanted:
        write_json(path, wanted)
