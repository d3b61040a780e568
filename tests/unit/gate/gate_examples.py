"""Evaluation records as the eval stage writes them, and a run folder as the line leaves it before the gate acts."""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_cpt.gate.audit import STAGES_WITH_MANIFEST
from megatron_cpt.gate.decide import decide
from megatron_cpt.gate.verdict import VERDICT_NAME, Verdict
from megatron_cpt.plan.run_plan import GatePlan, GateRule, RunPlan, grace_window_steps
from megatron_cpt.record.manifest import write_manifest
from megatron_cpt.record.store import append_line, write_json
from megatron_cpt.record.typed import to_plain

RULES = GatePlan(
    rules=(GateRule("law", "must_improve", 0.0, group="domain"), GateRule("web", "may_not_worsen", 0.02)),
    confidence=0.95,
    bootstrap_samples=2000,
    seed=7,
)
SIZES = [1000 + 37 * index for index in range(40)]


def record(subject: str, texts: dict[str, list[float]], *, weights: str = "") -> dict[str, Any]:
    """Return an eval record in which document i of a text has the given bits per byte and SIZES[i] bytes."""
    return {
        "subjects": {
            subject: {
                "weights_sha256": weights or subject,
                "tokenizer_sha256": "t",
                "texts": {
                    name: {
                        "role": "domain" if name == "law" else "general",
                        "bits_per_byte": 0.0,
                        "documents": [
                            {"id": f"{name}-{index}", "bytes": size, "nats": value * size * math.log(2), "tokens": size // 4}
                            for index, (value, size) in enumerate(zip(values, SIZES, strict=False))
                        ],
                    }
                    for name, values in texts.items()
                },
            }
        }
    }


def with_task(
    evaluation: dict[str, Any],
    name: str,
    scores: dict[str, list[float]],
    *,
    subgroups: list[str | None] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """Return an eval record with a task added, item i of which has the given score for each metric."""
    changed = copy.deepcopy(evaluation)
    (subject,) = changed["subjects"].values()
    num = len(next(iter(scores.values())))
    subject.setdefault("tasks", {})[name] = {
        "kind": "choice", "group": "domain", "licence": "CC0-1.0", "source": "a test", "file_sha256": "f", "rule": "the likeliest choice",
        "metrics": {metric: sum(values) / num for metric, values in scores.items()},
        "joined_boundaries": 0,
        "items": [
            {"id": f"{name}-{i}", "subgroup": (subgroups or [None] * num)[i], "metrics": {key: each[i] for key, each in scores.items()}}
            for i in range(num)
        ],
        **changes,
    }  # fmt: skip
    return changed


def spread(center: float, *, phase: int = 0) -> list[float]:
    """Return 40 figures around a center, from -0.3 to +0.3."""
    return [center + 0.3 * math.sin(1.7 * index + phase) for index in range(40)]


BASELINE = record("base", {"law": spread(1.8), "web": spread(1.2)})
BETTER = record("train", {"law": [value - 0.1 for value in spread(1.8)], "web": [value + 0.005 for value in spread(1.2)]})
FORGETFUL = record("train", {"law": [value - 0.3 for value in spread(1.8)], "web": [value + 0.2 for value in spread(1.2)]})


def run_folder(folder: Path, verdict: Verdict) -> Path:
    """Make the files on which the gate acts: two checkpoints, the start, metrics, a ledger and the recorded verdict."""
    for step in (500, 2500):
        (folder / f"train/checkpoints/step_{step:08d}").mkdir(parents=True)
        (folder / f"train/checkpoints/step_{step:08d}/weights").write_text(str(step), encoding="utf-8")
    (folder / "init/checkpoint").mkdir(parents=True)
    append_line(folder / "train/metrics.jsonl", {"kind": "step", "step": 2500, "loss": 2.0})
    end = {"kind": "end", "attempt": "a", "stage": "train", "status": "finished", "joules": {"unavailable": "no counter"}, "usd": 1.5}
    append_line(folder / "ledger.jsonl", end)
    write_json(folder / "gate" / VERDICT_NAME, to_plain(verdict))
    return folder


def audited_run(folder: Path, baseline: dict[str, Any], candidate: dict[str, Any], plan: RunPlan) -> Path:
    """Make a finished run with every record of an honest line, up to a verdict that was recorded and is not carried out yet."""
    verdict = decide(baseline, candidate, plan.gate, step=2500, grace_steps=grace_window_steps(plan))
    run_folder(folder, verdict)
    plan.save(folder / "plan")
    write_json(folder / "baseline/eval.json", baseline)
    write_json(folder / "eval/eval.json", candidate)
    for stage in ("baseline", "eval"):
        end = {"kind": "end", "attempt": stage, "stage": stage, "status": "finished", "joules": 3.0, "usd": {"unavailable": "no price"}}
        append_line(folder / "ledger.jsonl", end)
    for stage in STAGES_WITH_MANIFEST:
        (folder / stage).mkdir(exist_ok=True)
        write_manifest(folder / stage, stage, {}, {"step": 2500} if stage == "train" else {})
    return folder


def snapshot(folder: Path) -> dict[str, str]:
    """Return the content of every file, to compare two folders."""
    return {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*")) if path.is_file()}


def good_of(folder: Path) -> dict[str, str]:
    data: dict[str, str] = json.loads((folder / "good.json").read_text(encoding="utf-8"))
    return data


class Killed(BaseException):
    """A process that ends in the middle of its work: nothing of ours catches it."""


def killed_at(patch: pytest.MonkeyPatch, module: Any, moment: int) -> None:
    """Let a module do `moment` writes and renames of files, and be killed at the next one."""
    left = moment

    def killing(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            return function(*args, **kwargs)

        return wrapped

    for name in ("write_json", "append_line"):
        patch.setattr(module, name, killing(getattr(module, name)))
    patch.setattr(os, "rename", killing(os.rename))
