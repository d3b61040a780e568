"""Runs as the line leaves them, made by the package's own writers: plan, scores, verdict, manifests and bill."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_cpt.errors import DataError
from megatron_cpt.gate.decide import decide
from megatron_cpt.gate.verdict import VERDICT_NAME
from megatron_cpt.meter.ledger import attempt
from megatron_cpt.plan.derive import derive
from megatron_cpt.plan.run_plan import GatePlan, GateRule, RunPlan
from megatron_cpt.record.manifest import write_manifest
from megatron_cpt.record.store import append_line, write_json
from megatron_cpt.record.typed import to_plain
from megatron_cpt.record.unknown import Figure, Unavailable
from tests.unit.gate.gate_examples import record, spread
from tests.unit.plan import plan_examples

GATE = GatePlan(
    rules=(GateRule("law", "must_improve", 0.0, group="domain"), GateRule("web", "may_not_worsen", 0.02)),
    confidence=0.95,
    bootstrap_samples=500,
    seed=7,
)


@functools.cache
def plan() -> RunPlan:
    return dataclasses.replace(derive(plan_examples.experiment(), **plan_examples.facts()), gate=GATE)


def scores(**gains: float) -> dict[str, list[float]]:
    """Return bits per byte of a trained model: those of the base, less a constant for each text, so that every change is exact."""
    return {name: [value - gain for value in spread(1.8 if name == "law" else 1.2)] for name, gain in gains.items()}


def make_run(
    folder: Path,
    *,
    law: float = 0.1,
    web: float = 0.0,
    settings: Mapping[str, Any] | None = None,
    usd_per_hour: Figure = 3600.0,
    base: Mapping[str, Any] | None = None,
    trained: Mapping[str, Any] | None = None,
    gate: GatePlan = GATE,
    until: str = "gate",
) -> Path:
    """Make a run that gained so much on `law` and lost so much on `web`, in bits per byte, up to a stage."""
    mine = dataclasses.replace(plan(), gate=gate, run_name=folder.name)
    baseline = dict(base or record("base", {name: spread(1.8 if name == "law" else 1.2) for name in ("law", "web")}))
    candidate = dict(trained or record("train", scores(law=law, web=-web)))
    mine.save(folder / "plan")
    sources = {"law": {"settings": {"role": "domain"}, "files": {"law.jsonl": "5f3a"}}}
    for stage, inputs in (
        ("corpus", {"sources": sources}),
        ("vocab", {"corpus": "c", "tokenizer": {"num_new_pieces": 200}}),
        ("init", {"vocab": "v", "row_init": "mean", "base": {"model.safetensors": "27b4"}}),
        ("plan", {"init": "i", "seed": 1, "settings": {"schedule": {"kind": "cosine"}, **(settings or {})}}),
    ):
        (folder / stage).mkdir(exist_ok=True)
        write_manifest(folder / stage, stage, inputs, {})
    if until == "plan":
        return folder
    write_json(folder / "baseline" / "eval.json", baseline)
    if until == "baseline":
        return folder
    billed(folder, "train", usd_per_hour=usd_per_hour)
    step = {
        "kind": "step",
        "step": 10,
        "tokens": 1000,
        "loss": 2.0,
        "lr": 1e-3,
        "grad_norm": 1.0,
        "seconds": 0.5,
        "tokens_per_second": 2000.0,
    }
    append_line(folder / "train" / "metrics.jsonl", step)
    write_manifest(folder / "train", "train", {"plan": "p"}, {"step": 10, "tokens": 1000, "sources": {}})
    if until == "train":
        return folder
    write_json(folder / "eval" / "eval.json", candidate)
    write_json(folder / "gate" / VERDICT_NAME, to_plain(decide(baseline, candidate, gate)))
    return folder


NO_PRICE = Unavailable("no price is known")


def billed(folder: Path, stage: str, *, usd_per_hour: Figure = NO_PRICE, fails: bool = False) -> None:
    """Put an attempt of a moment on the run's bill."""
    with (
        contextlib.suppress(DataError),
        attempt(folder, stage, num_ranks=2, usd_per_device_hour=usd_per_hour, project_dir=folder.parent),
    ):
        if fails:
            raise DataError("a test")
