"""Totals over a ledger. A sum says of how many attempts it is; what was not measured stays visible beside it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_cpt.meter.killed import recovered_lines
from megatron_cpt.meter.ledger import LEDGER_NAME, STEP_RECORDS, is_alive
from megatron_cpt.record.store import read_lines
from megatron_cpt.record.unknown import Figure, Unavailable

WHOLE = "all stages"  # the heading of the last line; tokens of unlike stages are added in it only for the CSV


@dataclass(frozen=True)
class AttemptRecord:
    """One attempt as the ledger has it.

    For one that was killed or still runs, the figures are the most that its last heartbeat and its recorded steps prove: bounds from below.
    `start_tokens` are in the weights with which an attempt of training began; None when it did not come so far.
    """

    attempt_id: str
    stage: str
    status: str
    exit_code: int | None
    num_ranks: int
    seconds: Figure
    device_seconds: Figure
    tokens: int
    joules: Figure
    usd: Figure
    planned: dict[str, Any] | None
    is_lower_bound: bool
    start_tokens: int | None = None


@dataclass(frozen=True)
class Total:
    """A sum over the attempts whose figure is known, and the reasons for the others."""

    value: float
    num_known: int
    num_attempts: int
    num_lower_bounds: int
    reasons: tuple[str, ...]

    def show(self, pattern: str, scale: float = 1.0) -> str:
        """Return the sum as text that says what is missing from it."""
        if self.num_known == 0:
            return f"unknown ({'; '.join(self.reasons) or 'no attempt'})"
        text = pattern.format(self.value * scale)
        if self.num_lower_bounds:
            text = f"at least {text}"
        if self.num_known < self.num_attempts:
            text += f" (measured {self.num_known} of {self.num_attempts} attempts; the rest unknown: {'; '.join(self.reasons)})"
        return text


@dataclass(frozen=True)
class StageTotals:
    """What one stage, or the whole run, took. `lost_tokens` of the `tokens` are in no weights: their steps were lost and done anew."""

    stage: str
    num_by_status: dict[str, int]
    tokens: int
    seconds: Total
    device_seconds: Total
    joules: Total
    usd: Total
    planned: dict[str, Figure] | None
    lost_tokens: int = 0


def attempts_of(run_dir: Path) -> list[AttemptRecord]:
    """Return every attempt of a run in the order in which they began, what killed ones left in their step records included."""
    lines = read_lines(run_dir / LEDGER_NAME)
    return attempts_in([*lines, *recovered_lines(lines, read_lines(run_dir / STEP_RECORDS))])


def attempts_in(lines: Iterable[dict[str, Any]]) -> list[AttemptRecord]:
    """Put the lines of a ledger together by attempt."""
    by_id: dict[str, dict[str, dict[str, Any]]] = {}
    for line in lines:
        if line.get("kind") in ("start", "beat", "recovered", "end") and isinstance(line.get("attempt"), str):
            by_id.setdefault(line["attempt"], {})[line["kind"]] = line  # of several heartbeats the last one counts
    return [_record(attempt_id, parts) for attempt_id, parts in by_id.items()]


def _record(attempt_id: str, parts: dict[str, dict[str, Any]]) -> AttemptRecord:
    start, beat, end = parts.get("start", {}), parts.get("beat", {}), parts.get("end")
    stage = str((end or start or beat).get("stage", "unknown"))
    if end is not None:
        return AttemptRecord(
            attempt_id=attempt_id,
            stage=stage,
            status=str(end.get("status", "unknown")),
            exit_code=end.get("exit_code"),
            num_ranks=int(end.get("num_ranks", 0)),
            seconds=_figure(end.get("seconds")),
            device_seconds=_figure(end.get("device_seconds")),
            tokens=int(end.get("tokens", 0)),
            joules=_figure(end.get("joules")),
            usd=_figure(end.get("usd")),
            planned=end.get("planned"),
            is_lower_bound=False,
            start_tokens=end.get("start_tokens"),
        )
    left = parts.get("recovered", {})
    num_ranks = int(start.get("num_ranks", 0))
    proven = [figure for part in (beat, left) if part and not isinstance(figure := _figure(part.get("seconds")), Unavailable)]
    seconds: Figure = max(proven) if proven else Unavailable("killed before its first heartbeat")
    price = _figure(start.get("usd_per_device_hour"))
    device_seconds: Figure = seconds if isinstance(seconds, Unavailable) else seconds * num_ranks
    usd = price if isinstance(price, Unavailable) else device_seconds
    return AttemptRecord(
        attempt_id=attempt_id,
        stage=stage,
        status="running" if is_alive(start) else "killed",
        exit_code=None,
        num_ranks=num_ranks,
        seconds=seconds,
        device_seconds=device_seconds,
        tokens=max(int(beat.get("tokens", 0)), int(left.get("tokens", 0))),
        joules=_figure(left["joules"]) if left else Unavailable("killed before its energy was recorded"),
        usd=usd if isinstance(usd, Unavailable) or isinstance(price, Unavailable) else usd / 3600 * price,
        planned=None,
        is_lower_bound=True,
        start_tokens=left.get("start_tokens"),
    )


def _figure(data: object) -> Figure:
    if isinstance(data, dict) and data.get("unavailable"):
        return Unavailable(str(data["unavailable"]))
    if isinstance(data, int | float) and not isinstance(data, bool) and math.isfinite(data):
        return float(data)
    return Unavailable("not recorded")


def total_of(name: str, records: Sequence[AttemptRecord]) -> Total:
    """Sum one figure over attempts."""
    figures: list[tuple[Figure, bool]] = [(getattr(record, name), record.is_lower_bound) for record in records]
    known = [(figure, is_bound) for figure, is_bound in figures if not isinstance(figure, Unavailable)]
    reasons = dict.fromkeys(figure.reason for figure, _ in figures if isinstance(figure, Unavailable))
    return Total(
        value=math.fsum(figure for figure, _ in known),
        num_known=len(known),
        num_attempts=len(records),
        num_lower_bounds=sum(is_bound for _, is_bound in known),
        reasons=tuple(reasons),
    )


def totals(records: Sequence[AttemptRecord], *, stage: str) -> StageTotals:
    """Add up attempts under one heading; `planned` is that of the latest attempt that carries one."""
    by_status: dict[str, int] = {}
    for record in records:
        by_status[record.status] = by_status.get(record.status, 0) + 1
    planned = [record.planned for record in records if record.planned]
    return StageTotals(
        stage=stage,
        num_by_status=by_status,
        tokens=sum(record.tokens for record in records),
        seconds=total_of("seconds", records),
        device_seconds=total_of("device_seconds", records),
        joules=total_of("joules", records),
        usd=total_of("usd", records),
        planned={key: _figure(value) for key, value in planned[-1].items()} if planned else None,
        lost_tokens=lost_tokens(records),
    )


def lost_tokens(records: Sequence[AttemptRecord]) -> int:
    """Return the tokens of steps that attempts of training did and that the next one did not find in its checkpoint.

    They were read and paid for, and are in no weights. Those of the latest attempt are not counted: nothing was done anew yet.
    """
    begun = [(record.start_tokens, record.tokens) for record in records if record.start_tokens is not None]
    return sum(max(start + tokens - then, 0) for (start, tokens), (then, _) in itertools.pairwise(begun))


def totals_by_stage(records: Sequence[AttemptRecord]) -> list[StageTotals]:
    """Return the totals of every stage in order of first attempt, then of the whole."""
    stages = dict.fromkeys(record.stage for record in records)
    parts = [totals([record for record in records if record.stage == stage], stage=stage) for stage in stages]
    return [*parts, totals(records, stage=WHOLE)]
