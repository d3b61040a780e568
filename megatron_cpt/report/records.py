"""Collects what the stages of a run left on disk; a record that is absent is None, never a guess."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_cpt.errors import CptError
from megatron_cpt.gate.rounds import past_rounds, tried_rounds
from megatron_cpt.gate.verdict import VERDICT_NAME, Verdict
from megatron_cpt.meter.attempts import AttemptRecord, attempts_of
from megatron_cpt.meter.totals import StageTotals, totals_by_stage
from megatron_cpt.plan.run_plan import PLAN_NAME, RunPlan
from megatron_cpt.record.manifest import MANIFEST_NAME, Manifest
from megatron_cpt.record.store import read_json, read_lines
from megatron_cpt.report.steps import StepRecords
from megatron_cpt.stage_names import STAGES


@dataclass(frozen=True)
class Scores:
    """Bits per byte of one held-out text at the three points of a run; None where it was not scored."""

    text: str
    role: str
    base: float | None
    extended: float | None
    trained: float | None


@dataclass(frozen=True)
class TaskScores:
    """One metric of one benchmark at the three points of a run; None where it was not scored."""

    task: str
    metric: str
    group: str
    base: float | None
    extended: float | None
    trained: float | None


@dataclass(frozen=True)
class RunRecords:
    """Everything the report shows."""

    run_dir: Path
    manifests: dict[str, Manifest]
    plan: RunPlan | None
    verdict: Verdict | None
    scores: tuple[Scores, ...]
    training: StepRecords
    attempts: list[AttemptRecord]
    totals: list[StageTotals]
    tasks: tuple[TaskScores, ...] = ()
    rounds: tuple[str, ...] = ()
    """A line a round that has a verdict; empty when there was one round."""
    baseline: Any = None
    candidate: Any = None
    """The two `eval.json`, None where there is none."""

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The step records that led to the current weights."""
        return self.training.steps

    @classmethod
    def read(cls, run_dir: Path) -> RunRecords:
        attempts = attempts_of(run_dir)
        plan = _try(lambda: RunPlan.load(run_dir / "plan" / PLAN_NAME))
        baseline = _try(lambda: read_json(run_dir / "baseline" / "eval.json"))
        candidate = _try(lambda: read_json(run_dir / "eval" / "eval.json"))
        manifests = {stage.name: Manifest.load(run_dir / stage.name) for stage in STAGES if (run_dir / stage.name / MANIFEST_NAME).exists()}
        return cls(
            run_dir=run_dir,
            manifests=manifests,
            plan=plan,
            verdict=_try(lambda: Verdict.load(run_dir / "gate" / VERDICT_NAME)),
            scores=tuple(
                Scores(
                    text=text.name,
                    role=text.role,
                    base=_bits(baseline, "base", text.name),
                    extended=_bits(baseline, "init", text.name),
                    trained=_bits(candidate, "train", text.name),
                )
                for text in (plan.eval.texts if plan else ())
            ),
            training=StepRecords.of(read_lines(run_dir / "train" / "metrics.jsonl")),
            attempts=attempts,
            totals=totals_by_stage(attempts) if attempts else [],
            tasks=_task_scores(baseline, candidate),
            rounds=tuple(_try(lambda: tried_rounds(run_dir)) or ()) if past_rounds(run_dir) else (),
            baseline=baseline,
            candidate=candidate,
        )

    def facts(self, stage: str) -> dict[str, Any]:
        """Return a finished stage's facts, or an empty dict."""
        return self.manifests[stage].facts if stage in self.manifests else {}

    def total(self, stage: str) -> StageTotals | None:
        """Return the bill of one stage over all its attempts, or None when it has none."""
        return next((total for total in self.totals if total.stage == stage), None)


def _task_scores(baseline: Any, candidate: Any) -> tuple[TaskScores, ...]:
    """Return a row for each metric of each task that any of the reports holds."""
    points = [_tasks_of(baseline, "base"), _tasks_of(baseline, "init"), _tasks_of(candidate, "train")]
    rows: dict[tuple[str, str], str] = {}
    for tasks in points:
        for name, task in tasks.items():
            rows.update({(name, metric): str(task.get("group", "unknown")) for metric in task.get("metrics", {})})
    return tuple(
        TaskScores(name, metric, group, *(_metric(tasks.get(name), metric) for tasks in points)) for (name, metric), group in rows.items()
    )


def _tasks_of(report: Any, subject: str) -> dict[str, Any]:
    try:
        return dict(report["subjects"][subject]["tasks"])
    except (KeyError, TypeError, ValueError):
        return {}


def _metric(task: Any, metric: str) -> float | None:
    try:
        return float(task["metrics"][metric])
    except (KeyError, TypeError, ValueError):
        return None


def _try(read: Any) -> Any:
    try:
        return read()
    except CptError:
        return None


def _bits(report: Any, subject: str, text: str) -> float | None:
    try:
        return float(report["subjects"][subject]["texts"][text]["bits_per_byte"])
    except (KeyError, TypeError, ValueError):
        return None
