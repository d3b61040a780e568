"""What an attempt of training consumed that was killed before it could say so, from the lines of `metrics.jsonl` that it left.

An attempt writes one line when it begins and one a step, synced, so that a kill takes the step under way off the bill and no more. The
next attempt drops the lines of steps that it does anew, so a ledger is settled before that.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_cpt.meter.energy import Kind, Part, joules_of, merged, part_from
from megatron_cpt.meter.here import is_alive
from megatron_cpt.meter.ledger import LEDGER_NAME, STEP_RECORDS, append_to_bills
from megatron_cpt.meter.nodes import readings_of, remove_readings
from megatron_cpt.record.store import append_line, read_lines, read_lines_and_torn
from megatron_cpt.record.typed import to_plain
from megatron_cpt.record.unknown import Unavailable

logger = logging.getLogger(__name__)

TRAIN = "train"
BILLED = ("start", "beat", "recovered", "imported", "end")  # the lines of an attempt; the others are events


@dataclass(frozen=True)
class Consumption:
    """What the recorded steps of one attempt took.

    Attributes:
        start_tokens: tokens in the weights with which the attempt began.
        source_tokens: tokens that it read, by source; `licence_tokens` by licence.
        training_seconds: from its first step to the end of its last recorded one.
        began: when it was ready for its first step: wall `time` (seconds since the epoch), and `monotonic` seconds of `boot_id`.
        joules: of the first rank's node over the recorded steps, None when a step's is not known.
    """

    start_tokens: int
    source_tokens: dict[str, int]
    licence_tokens: dict[str, int]
    training_seconds: float
    began: dict[str, Any]
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
        began={key: head.get(key) for key in ("time", "monotonic", "boot_id")},
        joules=math.fsum(joules) if steps and len(joules) == len(steps) else None,
    )


def _grown(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    return {name: count - before.get(name, 0) for name, count in after.items()}


def seconds_between(start: Mapping[str, Any], later: Mapping[str, Any]) -> float:
    """Return the seconds between two records: by the clock that does not jump where both are of one boot, else by the wall clock.

    A wall clock that was set back between them gives 0, not less.
    """
    same_clock = start.get("boot_id") is not None and start.get("boot_id") == later.get("boot_id")
    if same_clock and isinstance(start.get("monotonic"), int | float) and isinstance(later.get("monotonic"), int | float):
        return max(float(later["monotonic"]) - float(start["monotonic"]), 0.0)
    return max(float(later["time"]) - float(start["time"]), 0.0)


def recovered_lines(
    ledger: Iterable[dict[str, Any]], records: Sequence[dict[str, Any]], *, run_dir: Path | None = None
) -> list[dict[str, Any]]:
    """Return a line for every attempt without an end, at which no process works any more, and of which more is known than its heartbeats.

    Args:
        records: of `metrics.jsonl`, in their order, for attempts of training.
        run_dir: where the other nodes of an attempt left their energy readings; None for no such place.
    """
    starts: dict[str, dict[str, Any]] = {}
    beats: dict[str, dict[str, Any]] = {}
    for line in ledger:
        kind, attempt_id = line.get("kind"), line.get("attempt")
        if not isinstance(attempt_id, str):
            continue
        if kind == "start":
            starts[attempt_id] = line
        elif kind == "beat":
            beats[attempt_id] = line
        elif kind in ("end", "recovered"):
            starts.pop(attempt_id, None)
    found = []
    for attempt_id, start in starts.items():
        if is_alive(start):
            continue
        others = [] if run_dir is None else readings_of(run_dir, attempt_id)
        taken = consumption_of(records, attempt_id) if start.get("stage") == TRAIN else None
        if taken is None and not others:
            continue
        parts = merged([*_parts_of(beats.get(attempt_id), taken, kind="gpu" if start.get("device") == "gpu" else "cpu"), *others])
        line = {
            "kind": "recovered", "attempt": attempt_id, "run": start.get("run"), "stage": start.get("stage"), "time": time.time(),
            "energy": to_plain(list(parts)), "joules": _joules(parts, start, taken),
        }  # fmt: skip
        if taken is not None:
            line |= {
                "tokens": taken.tokens, "start_tokens": taken.start_tokens, "source_tokens": taken.source_tokens,
                "licence_tokens": taken.licence_tokens, "seconds": seconds_between(start, taken.began) + taken.training_seconds,
                "training_seconds": taken.training_seconds, "read_from": STEP_RECORDS,
            }  # fmt: skip
        found.append(line)
    return found


def _parts_of(beat: dict[str, Any] | None, taken: Consumption | None, *, kind: Kind) -> list[Part]:
    """Return what the node of the command had drawn by the last heartbeat, or by the last recorded step where that came later."""
    read = [part for each in (beat or {}).get("energy", ()) if (part := part_from(each)) is not None]
    by_steps = None if taken is None else taken.joules
    if by_steps is None or (joules := joules_of(read, kind=kind) if read else 0.0) == by_steps:
        return read
    if not isinstance(joules, Unavailable) and joules > by_steps:
        return read
    device = next((part for part in read if part.kind == kind), None)
    count = device.of if device is not None else 1
    return [Part(kind, by_steps, count, count, "the meter of the first rank's node, step by step")]


def _joules(parts: Sequence[Part], start: Mapping[str, Any], taken: Consumption | None) -> Any:
    if not parts and taken is not None and taken.joules is not None:
        return taken.joules
    joules = joules_of(parts, kind="gpu" if start.get("device") == "gpu" else "cpu")
    return {"unavailable": "killed before its energy was recorded"} if isinstance(joules, Unavailable) else joules


def settle(run_dir: Path, *, project_dir: Path | None = None) -> None:
    """Put what killed attempts consumed on the ledger, and on the project's what a kill or a full disk kept off it.

    Whoever calls it holds the run's lock, so that no attempt of it is alive. A torn line is warned of; it was never complete.
    """
    ledger, torn = read_lines_and_torn(run_dir / LEDGER_NAME)
    if torn:
        listed = ", ".join(map(str, torn))
        logger.warning(
            "%s: line %s was torn by a kill or a full disk and holds no record; all others stand.", run_dir / LEDGER_NAME, listed
        )
    for line in recovered_lines(ledger, read_lines(run_dir / STEP_RECORDS), run_dir=run_dir):
        append_to_bills(run_dir, line, project_dir=project_dir)
        remove_readings(run_dir, line["attempt"])
    if project_dir is not None:
        there = {(line.get("attempt"), line.get("kind")) for line in read_lines(project_dir / LEDGER_NAME)}
        for line in ledger:
            if line.get("kind") in BILLED and line["kind"] != "beat" and (line.get("attempt"), line["kind"]) not in there:
                append_line(project_dir / LEDGER_NAME, {"run": run_dir.name, **line})
