"""`metrics.jsonl`: one record a step and one an evaluation. No step appears twice, whatever was killed when."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_cpt.meter.here import boot_id
from megatron_cpt.record.hashing import canonical_json
from megatron_cpt.record.store import append_line, read_lines, write_text
from megatron_cpt.train.state import TrainState

METRICS_NAME = "metrics.jsonl"
SHOWN = "shown"  # a record that says that the events before it are in wandb
NOTHING: Mapping[str, Any] = {}


def step_record(
    state: TrainState, *, sources: Sequence[str], licences: Sequence[str], elapsed_seconds: float, readings: Mapping[str, Any] = NOTHING
) -> dict[str, Any]:
    """Return the record of the step that led to `state`. Counts are those of the run so far; what is unknown is null.

    Args:
        sources: names of the blend's entries; `licences` are theirs, in the same order.
        elapsed_seconds: training time of the run up to here, earlier attempts included.
        readings: what instruments say of the step.
    """
    last = state.last
    assert last is not None
    by_source = zip(sources, last.source_nats, last.source_loss_tokens, strict=True) if last.source_nats else ()
    return {
        "kind": "step",
        "step": state.step,
        "samples": state.samples_seen,
        "tokens": state.tokens_seen,
        "loss": finite(last.loss),
        "lr": last.learning_rate,
        **({} if last.embedding_learning_rate is None else {"lr_embedding": last.embedding_learning_rate}),
        "grad_norm": finite(last.grad_norm),
        "seconds": last.seconds,
        "tokens_per_second": sum(last.source_tokens) / last.seconds,
        "elapsed_seconds": elapsed_seconds,
        "source_samples": dict(zip(sources, state.source_samples, strict=True)),
        "source_tokens": dict(zip(sources, state.source_tokens, strict=True)),
        "source_loss": {name: finite(nats / tokens) if tokens else None for name, nats, tokens in by_source},
        "licence_tokens": tokens_by_licence(licences, state.source_tokens),
        "is_skipped": last.is_skipped,
        "skipped_steps": state.skipped_steps,
        **readings,
    }


def attempt_record(
    state: TrainState, *, attempt_id: str | None, sources: Sequence[str], licences: Sequence[str], elapsed_seconds: float
) -> dict[str, Any]:
    """Return the head of the records of one attempt: from it and the attempt's last step follows what it consumed, even if it is killed.

    Args:
        attempt_id: the attempt's name on the ledger; None when nobody keeps one.
        elapsed_seconds: as in `step_record`, at the start of the attempt.
    """
    return {
        "kind": "attempt",
        "step": state.step,
        "attempt_id": attempt_id,
        "time": time.time(),
        "monotonic": time.monotonic(),
        "boot_id": boot_id(),
        "elapsed_seconds": elapsed_seconds,
        "source_tokens": dict(zip(sources, state.source_tokens, strict=True)),
        "licence_tokens": tokens_by_licence(licences, state.source_tokens),
    }


def finite(figure: float) -> float | None:
    """Return a figure, or None where JSON could not hold it."""
    return figure if math.isfinite(figure) else None


def tokens_by_licence(licences: Sequence[str], tokens: Sequence[int]) -> dict[str, int]:
    """Add up tokens of sources by the licences of the sources."""
    sums: dict[str, int] = {}
    for licence, count in zip(licences, tokens, strict=True):
        sums[licence] = sums.get(licence, 0) + count
    return sums


def elapsed_seconds(records: Sequence[dict[str, Any]]) -> float:
    """Return the training time that earlier attempts used, steps that were lost and redone included."""
    return max((float(record.get("elapsed_seconds", 0.0)) for record in records), default=0.0)


def of_round(record: dict[str, Any], round_number: int) -> dict[str, Any]:
    """Return a record with the number of the round that writes it; a record without one is of the first."""
    return record if round_number == 1 else {**record, "round": round_number}


def rewind(path: Path, *, step: int, round_number: int = 1) -> float:
    """Drop the records of this round after `step`, which the resumed run will write anew, and return the training time used so far.

    The time of the dropped steps was really spent: a `resume` record keeps it for the budget. Earlier rounds stay as they were.
    """
    records = read_lines(path)
    used = elapsed_seconds(records)
    if not records:
        return used
    kept = [record for record in records if record.get("step", 0) <= step or record.get("round", 1) != round_number]
    lost = sum(1 for record in records if record.get("kind") == "step") - sum(1 for record in kept if record.get("kind") == "step")
    write_text(path, "".join(canonical_json(record) + "\n" for record in kept))
    append_line(path, of_round({"kind": "resume", "step": step, "lost_steps": lost, "elapsed_seconds": used}, round_number))
    return used


def unseen_events(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the events, such as a rollback, that came after the last attempt began and that were not shown at once.

    Those with a step happened while it trained: it has shown them itself.
    """
    begun = max((number for number, record in enumerate(records) if record.get("kind") in ("attempt", SHOWN)), default=-1)
    return [record for record in records[begun + 1 :] if record.get("kind") == "event" and "step" not in record]
