"""Checks a finished run: the verdict follows from the scores, it was carried out, and no record is missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_cpt.errors import CptError
from megatron_cpt.gate.act import (
    BRANCH_NAME,
    BRANCHES,
    CHECKPOINTS,
    GOOD_NAME,
    LEDGER,
    METRICS,
    GoodCheckpoint,
    branch_id,
    rollback_event_in,
)
from megatron_cpt.gate.decide import decide
from megatron_cpt.gate.limits import Breach, verdict_of_breach
from megatron_cpt.gate.rounds import is_move_unfinished, past_rounds
from megatron_cpt.gate.verdict import VERDICT_NAME, Verdict
from megatron_cpt.plan.run_plan import PLAN_NAME, RunPlan, grace_window_steps
from megatron_cpt.record.hashing import sha256_file
from megatron_cpt.record.manifest import MANIFEST_NAME, Manifest
from megatron_cpt.record.store import read_json, read_lines
from megatron_cpt.record.typed import from_plain

DECIDING_RECORDS = (("plan", PLAN_NAME), ("baseline", "eval.json"), ("eval", "eval.json"), ("gate", VERDICT_NAME))
STAGES_WITH_MANIFEST = ("corpus", "vocab", "index", "init", "plan", "baseline", "train", "eval", "gate")


def audit(run_dir: Path) -> list[str]:
    """Return every problem of a run's records; an empty list is a run whose decision can be relied on."""
    breach = breach_in(run_dir)
    wanted = [stage for stage in STAGES_WITH_MANIFEST if stage != "eval" or breach is None]
    problems = [f"{stage}/{MANIFEST_NAME} is missing" for stage in wanted if not (run_dir / stage / MANIFEST_NAME).exists()]
    problems += past_problems(run_dir)
    plan = _read(problems, lambda: RunPlan.load(run_dir / "plan" / PLAN_NAME))
    baseline = _read(problems, lambda: read_json(run_dir / "baseline" / "eval.json"))
    candidate = {} if breach else _read(problems, lambda: read_json(run_dir / "eval" / "eval.json"))
    verdict = _read(problems, lambda: Verdict.load(run_dir / "gate" / VERDICT_NAME))
    problems += changed_records(run_dir) + training_problems(run_dir)
    problems += [problem for stage in ("baseline", *(() if breach else ("eval",))) for problem in bill_problems(run_dir, stage)]
    step = _read(problems, lambda: _step_of(run_dir))
    if isinstance(plan, RunPlan) and isinstance(baseline, dict) and isinstance(candidate, dict):
        if breach is None:
            expected = decide(baseline, candidate, plan.gate, step=step, grace_steps=grace_window_steps(plan))
        else:
            weights = Manifest.load(run_dir / "train").facts["checkpoint_sha256"]
            expected = verdict_of_breach(baseline, plan.gate, breach, weights_sha256=weights)
        if isinstance(verdict, Verdict):
            problems += verdict_problems(run_dir, expected=expected, recorded=verdict)
        elif expected.decision == "rollback":
            problems.append("a rule failed and no rollback was triggered: " + "; ".join(expected.reasons))
    return problems


def breach_in(run_dir: Path) -> Breach | None:
    """Return the hard limit that ended training in the current round, None when none did or training has not ended."""
    path = run_dir / "train" / MANIFEST_NAME
    limit = Manifest.load(path.parent).facts.get("limit") if path.exists() else None
    return None if limit is None else from_plain(Breach, limit, where=path)


def past_problems(run_dir: Path) -> list[str]:
    """Say what of the rounds before the current one is missing: a verdict, and the branch and events of each rollback."""
    problems = []
    if is_move_unfinished(run_dir):
        problems.append("a new round was begun, and its beginning was not finished: run the line again")
    for folder in past_rounds(run_dir):
        name = folder.relative_to(run_dir).as_posix()
        verdict = _read(problems, lambda path=folder / "gate" / VERDICT_NAME: Verdict.load(path))  # type: ignore[misc]
        if isinstance(verdict, Verdict) and verdict.decision == "rollback":
            problems += [f"{name}: {problem}" for problem in branch_problems(run_dir, verdict)]
    return problems


def _step_of(run_dir: Path) -> int | None:
    if not (run_dir / "train" / MANIFEST_NAME).exists():
        return None  # said already
    return int(Manifest.load(run_dir / "train").facts["step"])


def changed_records(run_dir: Path) -> list[str]:
    """Say which records that a decision rests on are not what their stage wrote, by size and digest."""
    problems = []
    for stage, name in DECIDING_RECORDS:
        try:
            written = Manifest.load(run_dir / stage).outputs.get(name)
        except CptError:
            continue  # a missing manifest is said already, a damaged one where its facts are read
        path = run_dir / stage / name
        if written is None:
            problems.append(f"{stage}/{MANIFEST_NAME} does not name {name}")
        elif path.exists() and sha256_file(path) != written.sha256:
            problems.append(f"{stage}/{name} was changed after its stage wrote it")
    return problems


def _read(problems: list[str], load: Callable[[], Any]) -> Any:
    try:
        return load()
    except CptError as error:
        problems.append(" ".join(str(error).split()))
        return None


def verdict_problems(run_dir: Path, *, expected: Verdict, recorded: Verdict) -> list[str]:
    """Compare the recorded verdict with the one that follows from the scores, then with what was done about it."""
    if expected.decision != recorded.decision:
        return [f"gate/{VERDICT_NAME} says {recorded.decision}; the scores and the plan's rules give {expected.decision}"]
    problems = [] if expected == recorded else [f"gate/{VERDICT_NAME} does not hold the figures that the scores give"]
    if recorded.decision == "unknown":
        return [*problems, "the verdict is unknown: " + "; ".join(recorded.reasons)]
    if not (run_dir / GOOD_NAME).exists():
        return [*problems, f"the verdict {recorded.decision} was not carried out: {GOOD_NAME} is missing"]
    try:
        good = GoodCheckpoint.load(run_dir)
    except CptError as error:
        return [*problems, " ".join(str(error).split())]
    if good.verdict_sha256 != recorded.fingerprint or good.verdict != recorded.decision:
        problems.append(f"the verdict {recorded.decision} was not carried out: {GOOD_NAME} follows another verdict")
    if not (run_dir / good.checkpoint).is_dir():
        problems.append(f"{GOOD_NAME} points to {good.checkpoint}, which does not exist")
    if recorded.decision == "promote" and good.sha256 != recorded.candidate_weights_sha256:
        problems.append(f"{GOOD_NAME} points to other weights than those that were evaluated")
    if recorded.decision == "rollback":
        problems += rollback_problems(run_dir, recorded, good)
    return problems


def rollback_problems(run_dir: Path, verdict: Verdict, good: GoodCheckpoint) -> list[str]:
    """Say what of a rollback was not done."""
    branch = branch_id(verdict)
    problems = []
    if good.sha256 == verdict.candidate_weights_sha256:
        problems.append(f"the candidate was rolled back, but {GOOD_NAME} still points to its weights")
    record = run_dir / BRANCHES / branch / BRANCH_NAME
    if record.exists():
        abandoned = read_json(record).get("abandoned", [])
        left = [str(name) for name in abandoned if (run_dir / CHECKPOINTS / str(name)).exists()]
        if left:
            problems.append(f"the rollback was not carried out: {CHECKPOINTS} still holds {', '.join(left)}")
    return problems + branch_problems(run_dir, verdict)


def branch_problems(run_dir: Path, verdict: Verdict) -> list[str]:
    """Say what is missing of the branch and of the events that a rollback leaves."""
    branch = branch_id(verdict)
    if not (run_dir / BRANCHES / branch / BRANCH_NAME).exists():
        return [f"the rollback was not carried out: {BRANCHES}/{branch}/{BRANCH_NAME} is missing"]
    return [f"{name} has no rollback event" for name in (LEDGER, METRICS) if not rollback_event_in(run_dir / name, branch)]


def training_problems(run_dir: Path) -> list[str]:
    """Say which records of training are missing: steps, and a ledger entry with its cost and energy, known or with the reason why not."""
    problems: list[str] = []
    steps = [line for line in read_lines(run_dir / METRICS) if line.get("kind") != "event"]
    if not steps:
        problems.append(f"{METRICS} holds no training step")
    return problems + bill_problems(run_dir, "train")


def bill_problems(run_dir: Path, stage: str) -> list[str]:
    """Say what the ledger lacks of a stage's cost and energy."""
    ends = [line for line in read_lines(run_dir / LEDGER) if line.get("kind") == "end" and line.get("stage") == stage]
    if not ends:
        return [f"{LEDGER} holds no ended attempt of {stage}"]
    return [
        f"{LEDGER}: the {stage} attempt {line.get('attempt')} records no {figure}, nor why it is unknown"
        for figure in ("usd", "joules")
        for line in ends
        if not _is_figure(line.get(figure))
    ]


def _is_figure(value: object) -> bool:
    if isinstance(value, dict):
        return bool(value.get("unavailable"))
    return isinstance(value, int | float) and not isinstance(value, bool)
