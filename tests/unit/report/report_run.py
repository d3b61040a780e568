"""A run with an adventurous life as the line leaves it, made by the package's own writers: a round that was rolled back, an attempt that
was killed and one that was stopped, evaluations while training, and names and texts that would be code if a page let them."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_cpt.errors import RolledBack, Stopped
from megatron_cpt.gate.decide import decide
from megatron_cpt.gate.verdict import VERDICT_NAME
from megatron_cpt.meter.energy import NoMeter
from megatron_cpt.meter.ledger import Attempt, Planned, Site, attempt
from megatron_cpt.plan.derive import derive
from megatron_cpt.plan.run_plan import GatePlan, GateRule, RunPlan
from megatron_cpt.record.manifest import write_manifest
from megatron_cpt.record.store import append_line, write_json
from megatron_cpt.record.typed import to_plain
from megatron_cpt.train.forgetting import forgetting_record
from megatron_cpt.train.metrics import attempt_record, of_round, rewind, step_record
from megatron_cpt.train.state import StepResult, TrainState
from tests.unit.gate.gate_examples import record, spread
from tests.unit.plan import plan_examples

HOSTILE = "</script><script>window.broken=1</script><img src=http://127.0.0.1:9/x onerror=window.broken=1>\u2028&amp;<b>"
SOURCES, LICENCES = (HOSTILE, "web"), ("CC0-1.0", "CC0-1.0")
GATE = GatePlan(
    rules=(GateRule("law", "must_improve", 0.0, group="domain"), GateRule("news", "may_not_worsen", 0.02)),
    confidence=0.95, bootstrap_samples=200, seed=7,
)  # fmt: skip
EVALUATED = {2: (0.03, -0.01), 4: (0.06, 0.004), 6: (0.08, 0.01)}
"""By step of the second round: gain on law, and loss on news, in bits per byte; every document's, so that they hold exactly."""


def plan() -> RunPlan:
    found = derive(plan_examples.experiment(), **plan_examples.facts())
    blend = tuple(dataclasses.replace(entry, source=name) for entry, name in zip(found.blend, SOURCES, strict=True))
    return dataclasses.replace(found, gate=GATE, blend=blend, eval_every_steps=2)


def scores(gain: float, loss: float, subject: str = "train") -> dict[str, Any]:
    texts = {"law": [value - gain for value in spread(1.8)], "news": [value + loss for value in spread(1.2)]}
    return record(subject, texts)


def make_run(folder: Path) -> Path:
    """Write the run's records."""
    mine = plan()
    mine.save(folder / "plan")
    baseline = scores(0.0, 0.0, "base")
    baseline["subjects"] |= scores(-0.5, 0.001, "init")["subjects"]
    write_json(folder / "baseline" / "eval.json", baseline)
    write_manifests(folder)
    for stage in ("corpus", "vocab"):
        with attempt(folder, stage, num_ranks=8, usd_per_device_hour=3.0):
            pass
    train(folder, mine, baseline, steps=range(1, 4), round_number=1, loss=9.0, ends=RolledBack("it forgot"))
    append_line(folder / "train" / "metrics.jsonl", {"kind": "event", "event": "rollback", "reasons": ["it forgot"], "checkpoint": "init"})
    train(folder, mine, baseline, steps=range(1, 6), round_number=2, loss=3.0, ends=Stopped("a signal"))
    with_a_killed_attempt(folder)
    train(folder, mine, baseline, steps=range(5, 11), round_number=2, loss=3.0, ends=None)
    candidate = scores(0.1, 0.012)
    write_json(folder / "eval" / "eval.json", candidate)
    verdict = decide(baseline, candidate, GATE, step=10)
    assert verdict.decision == "promote"
    write_json(folder / "gate" / VERDICT_NAME, to_plain(verdict))
    return folder


def train(
    folder: Path, mine: RunPlan, baseline: dict[str, Any], *, steps: Sequence[int], round_number: int, loss: float, ends: Exception | None
) -> None:
    """Write an attempt of training: its lines on the bill, and in `metrics.jsonl` one a step and two an evaluation."""
    path = folder / "train" / "metrics.jsonl"
    path.parent.mkdir(exist_ok=True)
    planned = Planned(seconds=1e-3, tokens=10 * 2**20, usd=2e-6, kwh=1e-6, g_co2e=4e-4)
    with (
        contextlib.suppress(RolledBack, Stopped),
        attempt(
            folder, "train", num_ranks=8, usd_per_device_hour=3.0, planned=planned, round_number=round_number, device="gpu",
            site=Site("t", 1.2, 400.0),
        ) as entry,
    ):  # fmt: skip
        state = TrainState.start(mine)
        for step in range(1, steps[0]):
            state = state.after(result(step, loss))
        entry.start_tokens = state.tokens_seen
        rewind(path, step=state.step, round_number=round_number)
        head = attempt_record(state, attempt_id=entry.attempt_id, sources=SOURCES, licences=LICENCES, elapsed_seconds=0.0)
        append_line(path, of_round({**head, "mfu_convention": "<i>FLOPs</i>", "mfu_peak_tflops_per_device": 989.0}, round_number))
        for step in steps:
            state = state.after(result(step, loss))
            entry.tokens += 2**20
            readings = {"mfu": 0.4 + 0.001 * step, "device_peak_bytes": 40_000_000_000 + step}
            line = step_record(state, sources=SOURCES, licences=LICENCES, elapsed_seconds=float(step), readings=readings)
            append_line(path, of_round(line, round_number))
            if round_number == 2 and step in EVALUATED:
                evaluated = scores(*EVALUATED[step])["subjects"]["train"]["texts"]
                append_line(path, of_round({"kind": "eval", "step": step, "bits_per_byte": {}}, round_number))
                append_line(path, of_round(forgetting_record(mine, baseline, evaluated, step=step), round_number))
        if ends is not None:
            raise ends


def result(step: int, loss: float) -> StepResult:
    return StepResult(
        loss=loss + 1 / step, grad_norm=math.inf if step == 3 else 1.0 / step, learning_rate=1e-5 * step, seconds=2.0 + step / 100,
        source_samples=(96, 32), source_tokens=(96 * 8192, 32 * 8192), source_nats=(loss * 10, (loss + 1) * 10),
        source_loss_tokens=(10, 10), is_skipped=step == 3,
    )  # fmt: skip


def with_a_killed_attempt(folder: Path) -> None:
    """Leave the start of an attempt whose process is gone."""
    child = os.fork()
    if child == 0:
        Attempt(
            folder / "ledger.jsonl", "train", num_ranks=8, usd_per_device_hour=3.0, meter=NoMeter("a test", kind="gpu"), planned=None,
            device="gpu", round=2,
        ).start()  # fmt: skip
        os._exit(0)
    os.waitpid(child, 0)


def write_manifests(folder: Path) -> None:
    """Write the manifests of stages, with the facts that the report shows."""
    fit = {"bytes_per_token": 1.6, "tokens_per_char": 1.8, "fertility": 1.9, "byte_fragment_rate": 0.8, "ids_used": 295, "new_ids_used": 0}
    better = {**fit, "bytes_per_token": 2.4, "fertility": 1.2}
    vocab = {
        "layout": {"num_base_ids": 1000, "num_ids": 1256}, "num_new_pieces": 256, "domain_token_saving": 0.25,
        "domain": {"base": fit, "extended": better}, "general": {"base": fit, "extended": fit},
    }  # fmt: skip
    done: dict[str, str] = {}
    consumed = {name: {"samples": count * 10, "tokens": count * 10 * 8192} for name, count in zip(SOURCES, (96, 32), strict=True)}
    completions = [{"prompt": "Article 1\nThe", "base": HOSTILE, "continued": "law"}]
    for stage, inputs, facts in (
        ("corpus", {"sources": {HOSTILE: {"files": {"law.jsonl": "ab" * 32}}}}, {}),
        ("vocab", {"corpus": "corpus"}, vocab),
        ("init", {"vocab": "vocab", "base": {"model.safetensors": "cd" * 32}}, {}),
        ("train", {"init": "init"}, {"step": 10, "tokens": 10 * 2**20, "sources": consumed, "checkpoint_sha256": "ef" * 32}),
        ("export", {"train": "train"}, {"completions": completions}),
    ):  # fmt: skip
        (folder / stage).mkdir(exist_ok=True)
        named = {key: done.get(value, value) if isinstance(value, str) else value for key, value in inputs.items()}
        done[stage] = write_manifest(folder / stage, stage, named, facts, only=()).fingerprint
