"""Rounds of a run: after a verdict the finished round's records move into `rounds/<n>/`, and the next one begins beside its checkpoints.

`round.json` in the run folder names the round that is under way; without it that is the first. `rounds/<n>/round.json` is
written before anything moves and says what the next round is, and `round.json` last: a move that was killed is finished by running
it again, and nothing of a round is ever removed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron_cpt.errors import CheckpointError, CptError, DataError
from megatron_cpt.gate.act import CHECKPOINT_RECORD, GOOD_NAME, INIT_CHECKPOINT, LEDGER, METRICS, GoodCheckpoint
from megatron_cpt.gate.verdict import VERDICT_NAME, Verdict
from megatron_cpt.plan.resume import Earlier
from megatron_cpt.plan.run_plan import PLAN_NAME, ResumePoint, Retry, RunPlan
from megatron_cpt.record.hashing import sha256_plain
from megatron_cpt.record.store import append_line, read_json, read_lines, sync_folder, write_json
from megatron_cpt.record.typed import from_plain, to_plain

ROUNDS = "rounds"
ROUND_NAME = "round.json"
NEW_ROUND = "new round"
KEPT_OF_TRAIN = ("manifest.json", "outcome.json")  # the rest of train/ goes on: metrics, checkpoints, branches, wandb's id


@dataclass(frozen=True)
class Round:
    """One round of a run.

    Attributes:
        why: what began it, for a person.
        first_stage: the first stage that is done anew; those before it are the run's.
        resumes_from: the checkpoint that training goes on from; None is the initial one.
        changes: what the retry policy changes in the configuration, oldest first.
        num_retries: how many of the policy's changes have been tried since the last round that a person asked for.
    """

    number: int
    why: str
    first_stage: str
    resumes_from: ResumePoint | None = None
    changes: tuple[Retry, ...] = ()
    num_retries: int = 0


FIRST = Round(1, "the first", "corpus")


def current_round(run_dir: Path) -> Round:
    """Return the round that is under way.

    Raises:
        CptError: its record is damaged.
    """
    path = run_dir / ROUND_NAME
    return from_plain(Round, read_json(path), where=path) if path.exists() else FIRST


def past_rounds(run_dir: Path) -> list[Path]:
    """Return the folders of the rounds before the current one, oldest first."""
    return [run_dir / ROUNDS / str(number) for number in range(1, current_round(run_dir).number)]


def begin_round(run_dir: Path, following: Round, *, stages: Sequence[str]) -> None:
    """Put the current round away and begin the following one. Safe to repeat after a kill, by `finish_move`.

    Args:
        stages: every stage of the line in order; those from `following.first_stage` on are put away.
    """
    now = current_round(run_dir)
    assert following.number == now.number + 1, f"round {following.number} does not follow round {now.number}"
    moved = list(stages[stages.index(following.first_stage) :])
    write_json(run_dir / ROUNDS / str(now.number) / ROUND_NAME, {"moved": moved, "following": to_plain(following)})
    finish_move(run_dir)


def tried_rounds(run_dir: Path) -> list[str]:
    """Return a line for each round of a run that has a verdict: what began it, how it ended and why."""
    folders = [*past_rounds(run_dir), run_dir]
    began = [FIRST, *(_following(folder) for folder in past_rounds(run_dir))]
    lines = []
    for each, folder in zip(began, folders, strict=True):
        path = folder / "gate" / VERDICT_NAME
        if path.exists():
            verdict = Verdict.load(path)
            lines.append(f"round {each.number} ({each.why}): {verdict.decision}: {'; '.join(verdict.reasons)}")
    return lines


def is_move_unfinished(run_dir: Path) -> bool:
    """Say whether a round was being put away when its process ended."""
    return (run_dir / ROUNDS / str(current_round(run_dir).number) / ROUND_NAME).exists()


def finish_move(run_dir: Path) -> None:
    """Finish putting a round away, if one is being put away.

    Raises:
        DataError: the record of the move names a stage that is none.
    """
    if not is_move_unfinished(run_dir):
        return
    folder = run_dir / ROUNDS / str(current_round(run_dir).number)
    record, following = read_json(folder / ROUND_NAME), _following(folder)
    for stage in map(str, record["moved"]):
        if Path(stage).name != stage:
            raise DataError("A round's record names a path outside the run.", where=folder / ROUND_NAME, value=stage)
        _put_away(run_dir, folder, stage)
    sync_folder(folder)
    sync_folder(run_dir)
    if "init" in record["moved"]:
        _repoint(run_dir, f"{folder.relative_to(run_dir).as_posix()}/{INIT_CHECKPOINT}")
    point = None if following.resumes_from is None else to_plain(following.resumes_from)
    event = {"kind": "event", "event": NEW_ROUND, "round": following.number, "reasons": [following.why], "resumes_from": point}
    for path in (run_dir / LEDGER, run_dir / METRICS):
        if not any(line.get("event") == NEW_ROUND and line.get("round") == following.number for line in read_lines(path)):
            append_line(path, event)
    write_json(run_dir / ROUND_NAME, to_plain(following))


def _following(folder: Path) -> Round:
    """Return the round that came after the one that was put away in a folder."""
    return from_plain(Round, read_json(folder / ROUND_NAME)["following"], where=folder / ROUND_NAME)


def _put_away(run_dir: Path, folder: Path, stage: str) -> None:
    if stage != "train":
        if (run_dir / stage).exists():
            os.rename(run_dir / stage, folder / stage)
        return
    (folder / stage).mkdir(exist_ok=True)
    for name in KEPT_OF_TRAIN:
        if (run_dir / stage / name).exists():
            os.rename(run_dir / stage / name, folder / stage / name)
    sync_folder(folder / stage)


def _repoint(run_dir: Path, moved_to: str) -> None:
    """Let the pointer follow the initial checkpoint that was put away with its vocabulary."""
    path = run_dir / GOOD_NAME
    if path.exists() and GoodCheckpoint.load(run_dir).checkpoint == INIT_CHECKPOINT:
        write_json(path, {**read_json(path), "checkpoint": moved_to})


def resume_point(run_dir: Path, checkpoint: str, sha256: str) -> ResumePoint:
    """Return a training checkpoint as the point that the next round goes on from, with the round that saved it.

    Raises:
        CheckpointError: it is gone, is another one by now, or no plan of the run is the one that it was saved under.
    """
    record = _record_of(run_dir, checkpoint)
    if sha256_plain({name: file["sha256"] for name, file in record["files"].items()}) != sha256:
        raise CheckpointError("The checkpoint is not the one that was judged.", where=run_dir / checkpoint, rule=f"digest {sha256}")
    number, _ = _plan_of(run_dir, checkpoint, str(record["plan_fingerprint"]))
    return ResumePoint(checkpoint, sha256, number)


def earlier_of(run_dir: Path, point: ResumePoint) -> Earlier:
    """Return what a new plan must know of the checkpoint that it goes on from.

    Raises:
        CheckpointError: as `resume_point`.
    """
    record = _record_of(run_dir, point.checkpoint)
    _, plan = _plan_of(run_dir, point.checkpoint, str(record["plan_fingerprint"]))
    samples = dict(zip(record["sources"], record["source_samples"], strict=True))
    return Earlier(point, int(record["step"]), samples, plan)


def _record_of(run_dir: Path, checkpoint: str) -> dict[str, Any]:
    path = run_dir / checkpoint / CHECKPOINT_RECORD
    try:
        record: dict[str, Any] = read_json(path)
    except CptError as error:
        raise CheckpointError("The checkpoint to go on from is missing or damaged.", where=path, value=str(error)) from None
    return record


def _plan_of(run_dir: Path, checkpoint: str, fingerprint: str) -> tuple[int, RunPlan]:
    now = current_round(run_dir).number
    folders = {now: run_dir, **{number: run_dir / ROUNDS / str(number) for number in range(now - 1, 0, -1)}}
    for number, folder in folders.items():
        path = folder / "plan" / PLAN_NAME
        if path.exists() and (plan := RunPlan.load(path)).fingerprint == fingerprint:
            return number, plan
    raise CheckpointError(
        "No round of this run has the plan that the checkpoint was saved under.", where=run_dir / checkpoint, value=fingerprint
    )


def next_retry(now: Round, plan: RunPlan) -> Round | None:
    """Return the round that the plan's policy begins after a rollback, still without its checkpoint; None when it has no more."""
    used = now.num_retries
    if used >= plan.gate.max_retries:
        return None
    change = plan.gate.retries[used]
    return Round(
        number=now.number + 1,
        why=f"retry {used + 1} of {plan.gate.max_retries}: {change}",
        first_stage="plan" if change.vocabulary is None else "vocab",
        changes=(*now.changes, change),
        num_retries=used + 1,
    )


def asked_round(now: Round) -> Round:
    """Return the round that a person asked for, still without its checkpoint: the configuration is theirs, without earlier changes."""
    return Round(number=now.number + 1, why="asked for", first_stage="plan")


def going_on_from(following: Round, point: ResumePoint | None) -> Round:
    return replace(following, resumes_from=point)
