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
from megatron_cpt.gate.verdict import VERDICT_NAME, Verdict
from megatron_cpt.plan.run_plan import PLAN_NAME, RunPlan
from megatron_cpt.record.manifest import MANIFEST_NAME
from megatron_cpt.record.store import read_json, read_lines

STAGES_WITH_MANIFEST = ("corpus", "vocab", "index", "init", "plan", "baseline", "train", "eval", "gate")


def audit(run_dir: Path) -> list[str]:
    """Return every problem of a run's records; an empty list is a run whose decision can be relied on."""
    problems = [f"{stage}/{MANIFEST_NAME} is missing" for stage in STAGES_WITH_MANIFEST if not (run_dir / stage / MANIFEST_NAME).exists()]
    plan = _read(problems, lambda: RunPlan.load(run_dir / "plan" / PLAN_NAME))
    baseline = _read(problems, lambda: read_json(run_dir / "baseline" / "eval.json"))
    candidate = _read(problems, lambda: read_json(run_dir / "eval" / "eval.json"))
    verdict = _read(problems, lambda: Verdict.load(run_dir / "gate" / VERDICT_NAME))
    problems += training_problems(run_dir)
    if isinstance(plan, RunPlan) and isinstance(baseline, dict) and isinstance(candidate, dict):
        expected = decide(baseline, candidate, plan.gate)
        if isinstance(verdict, Verdict):
            problems += verdict_problems(run_dir, expected=expected, recorded=verdict)
        elif expected.decision == "rollback":
            problems.append("a rule failed and no rollback was triggered: " + "; ".join(expected.reasons))
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
    if not record.exists():
        return [*problems, f"the rollback was not carried out: {BRANCHES}/{branch}/{BRANCH_NAME} is missing"]
    abandoned = read_json(record).get("abandoned", [])
    left = [str(name) for name in abandoned if (run_dir / CHECKPOINTS / str(name)).exists()]
    if left:
        problems.append(f"the rollback was not carried out: {CHECKPOINTS} still holds {', '.join(left)}")
    problems += [f"{name} has no rollback event" for name in (LEDGER, METRICS) if not rollback_event_in(run_dir / name, branch)]
    return problems


def training_problems(run_dir: Path) -> list[str]:
    """Say which records of training are missing: steps, and a ledger entry with its cost and energy, known or with the reason why not."""
    problems = []
    steps = [line for line in read_lines(run_dir / METRICS) if line.get("kind") != "event"]
    if not steps:
        problems.append(f"{METRICS} holds no training step")
    ends = [line for line in read_lines(run_dir / LEDGER) if line.get("kind") == "end" and line.get("stage") == "train"]
    if not ends:
        return [*problems, f"{LEDGER} holds no ended attempt of train"]
    for figure in ("usd", "joules"):
        problems += [
            f"{LEDGER}: the train attempt {line.get('attempt')} records no {figure}, nor why it is unknown"
            for line in ends
            if not _is_figure(line.get(figure))
        ]
    return problems


def _is_figure(value: object) -> bool:
    if isinstance(value, dict):
        return bool(value.get("unavailable"))
    return isinstance(value, int | float) and not isinstance(value, bool)
