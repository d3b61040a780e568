"""`metrics.jsonl`: one record a step and one an evaluation. No step appears twice, whatever was killed when."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_cpt.record.hashing import canonical_json
from megatron_cpt.record.store import append_line, read_lines, write_text
from megatron_cpt.train.state import TrainState

METRICS_NAME = "metrics.jsonl"


def step_record(state: TrainState, *, sources: Sequence[str], elapsed_seconds: float) -> dict[str, Any]:
    """Return the record of the step that led to `state`.

    Args:
        elapsed_seconds: training time of the run up to here, earlier attempts included.
    """
    last = state.last
    assert last is not None
    return {
        "kind": "step",
        "step": state.step,
        "samples": state.samples_seen,
        "tokens": state.tokens_seen,
        "loss": last.loss,
        "lr": last.learning_rate,
        "grad_norm": last.grad_norm,
        "seconds": last.seconds,
        "tokens_per_second": sum(last.source_tokens) / last.seconds,
        "elapsed_seconds": elapsed_seconds,
        "source_samples": dict(zip(sources, state.source_samples, strict=True)),
        "source_tokens": dict(zip(sources, state.source_tokens, strict=True)),
    }


def elapsed_seconds(records: Sequence[dict[str, Any]]) -> float:
    """Return the training time that earlier attempts used, steps that were lost and redone included."""
    return max((float(record.get("elapsed_seconds", 0.0)) for record in records), default=0.0)


def rewind(path: Path, *, step: int) -> float:
    """Drop the records after `step`, which the resumed run will write anew, and return the training time used so far.

    The time of the dropped steps was really spent: a `resume` record keeps it for the budget.
    """
    records = read_lines(path)
    used = elapsed_seconds(records)
    if not records:
        return used
    kept = [record for record in records if record.get("step", 0) <= step]
    lost = sum(1 for record in records if record.get("kind") == "step") - sum(1 for record in kept if record.get("kind") == "step")
    write_text(path, "".join(canonical_json(record) + "\n" for record in kept))
    append_line(path, {"kind": "resume", "step": step, "lost_steps": lost, "elapsed_seconds": used})
    return used
