"""What an attempt of training consumed that was killed before it could say so, from the lines of `metrics.jsonl` that it left.

An attempt writes one line when it begins and one a step, synced, so that a kill takes the step under way off the bill and no more. The
next attempt drops the lines of steps that it does anew, so a ledger is settled before that.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_cpt.meter.ledger import LEDGER_NAME, STEP_RECORDS, is_alive
from megatron_cpt.record.store import append_line, read_lines

TRAIN = "train"


@dataclass(frozen=True)
class Consumption:
    """What the recorded steps of one attempt took.

    Attributes:
        start_tokens: tokens in the weights with which the attempt began.
        source_tokens: tokens that it read, by source; `licence_tokens` by licence.
        training_seconds: from its first step to the end of its last recorded one.
        began: wall time (seconds since the epoch) at which it was ready for its first step.
        joules: of the first rank's node over the recorded steps, None when a step's is not known.
    """

    start_tokens: int
    source_tokens: dict[str, int]
    licence_tokens: dict[str, int]
    training_seconds: float
    began: float
    joules: float | None

    @property
    def tokens(self) -> int:
        return sum(self.source_tokens.values())


def consumption_of(records: Sequence[dict[str, Any]], attempt_id: str) -> Consumption | None:
    """Return what an attempt's step records say that it took; None when it recorded no beginning.

    Args:
        records: of `metrics.jsonl`, in their order.
    """
    begun = [number for number, record in enumerate(records) if record.get("kind") == "attempt" and record.get("attempt_id") == attempt_id]
    if not begun:
        return None
    head, steps = records[begun[-1]], []
    for record in records[begun[-1] + 1 :]:
        if record.get("kind") == "attempt":
            break
        if record.get("kind") == "step":
            steps.append(record)
    last = steps[-1] if steps else head
    joules = [float(step["joules"]) for step in steps if step.get("joules") is not None]
    return Consumption(
        start_tokens=sum(head["source_tokens"].values()),
        source_tokens=_grown(head["source_tokens"], last["source_tokens"]),
        licence_tokens=_grown(head["licence_tokens"], last["licence_tokens"]),
        training_seconds=last["elapsed_seconds"] - head["elapsed_seconds"],
        began=head["time"],
        joules=math.fsum(joules) if steps and len(joules) == len(steps) else None,
    )


def _grown(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    return {name: count - before.get(name, 0) for name, count in after.items()}


def recovered_lines(ledger: Iterable[dict[str, Any]], records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a ledger line for every attempt of training that has no end, that no process works at any more, and that left records."""
    starts: dict[str, dict[str, Any]] = {}
    for line in ledger:
        if line.get("kind") == "start" and line.get("stage") == TRAIN and isinstance(line.get("attempt"), str):
            starts[line["attempt"]] = line
        elif line.get("kind") in ("end", "recovered"):
            starts.pop(str(line.get("attempt")), None)
    found = []
    for attempt_id, start in starts.items():
        taken = None if is_alive(start) else consumption_of(records, attempt_id)
        if taken is None:
            continue
        joules = {"unavailable": "killed before its energy was recorded"} if taken.joules is None else taken.joules
        found.append({
            "kind": "recovered", "attempt": attempt_id, "stage": TRAIN, "time": time.time(), "tokens": taken.tokens,
            "start_tokens": taken.start_tokens, "source_tokens": taken.source_tokens, "licence_tokens": taken.licence_tokens,
            "seconds": max(taken.began - start["time"], 0.0) + taken.training_seconds, "joules": joules, "read_from": STEP_RECORDS,
        })  # fmt: skip
    return found


def settle(run_dir: Path) -> None:
    """Put what killed attempts consumed on the ledger. Whoever calls it holds the run's lock, so that no attempt of it is alive."""
    for line in recovered_lines(read_lines(run_dir / LEDGER_NAME), read_lines(run_dir / STEP_RECORDS)):
        append_line(run_dir / LEDGER_NAME, line)
