"""Totals over a ledger. A sum says of how many attempts it is; what was not measured stays visible beside it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from megatron_cpt.meter.attempts import AttemptRecord, figure_in, week_of
from megatron_cpt.meter.killed import TRAIN
from megatron_cpt.record.unknown import Amount, Figure, Unavailable, combine

WHOLE = "all stages"  # the heading of the last line; tokens of unlike stages are added in it only for the CSV


@dataclass(frozen=True)
class Total:
    """A sum over the attempts whose figure is known, and the reasons for the others."""

    value: float
    num_known: int
    num_attempts: int
    num_lower_bounds: int
    reasons: tuple[str, ...]
    share_measured: str = ""
    """Of energy: of how many devices the known part is, where it is not all, such as `14 of 16 GPUs`."""

    def show(self, pattern: str, scale: float = 1.0) -> str:
        """Return the sum as text that says what is missing from it."""
        if self.num_known == 0:
            return f"unknown ({'; '.join(self.reasons) or 'no attempt'})"
        text = pattern.format(Amount(self.value * scale))
        if self.num_lower_bounds:
            text = f"at least {text}"
        if self.share_measured:
            text += f" of {self.share_measured}"
        if self.num_known < self.num_attempts:
            text += f" (measured {self.num_known} of {self.num_attempts} attempts; the rest unknown: {'; '.join(self.reasons)})"
        elif self.share_measured:
            text += f" (the rest unknown: {'; '.join(self.reasons)})"
        return text


NO_TOTAL = Total(0.0, 0, 0, 0, ())


@dataclass(frozen=True)
class StageTotals:
    """What one stage, or the whole run, took. `lost_tokens` of the `tokens` are in no weights: their steps were lost and done anew.

    `stage` is the heading: a stage, or whatever else attempts were put together by. `joules` are those at the meters; `site_kwh` and
    `g_co2e` follow from them by the PUE and the grid intensity of each attempt's tariff.
    """

    stage: str
    num_by_status: dict[str, int]
    tokens: int
    seconds: Total
    device_seconds: Total
    joules: Total
    usd: Total
    planned: dict[str, Figure] | None
    lost_tokens: int = 0
    trained_tokens: int = 0
    """Of the stage train alone, where `tokens` are of all stages."""
    site_kwh: Total = NO_TOTAL
    g_co2e: Total = NO_TOTAL
    estimated_joules: float = 0.0
    """Of the CPUs in attempts without a meter: an estimate, in no sum of measured joules."""
    estimate_methods: tuple[str, ...] = ()
    num_estimated: int = 0
    clock_jumps: tuple[float, ...] = ()


def total_of(name: str, records: Sequence[AttemptRecord]) -> Total:
    """Sum one figure over attempts."""
    figures: list[tuple[Figure, AttemptRecord]] = [(getattr(record, name), record) for record in records]
    known = [(figure, record) for figure, record in figures if not isinstance(figure, Unavailable)]
    reasons = dict.fromkeys(figure.reason for figure, _ in figures if isinstance(figure, Unavailable))
    share, why = _share([record for _, record in known]) if name in ("joules", "site_kwh", "g_co2e") else ("", [])
    return Total(
        value=math.fsum(figure for figure, _ in known),
        num_known=len(known),
        num_attempts=len(records),
        num_lower_bounds=sum(record.is_lower_bound for _, record in known),
        reasons=tuple(dict.fromkeys([*reasons, *why])),
        share_measured=share,
    )


def _share(records: Sequence[AttemptRecord]) -> tuple[str, list[str]]:
    """Return of how many devices the measured energy of attempts is, and why the others have none; empty when it is of all."""
    partial = [record for record in records if record.share_measured < 1]
    if not partial:
        return "", []
    counts = {(part.measured, part.of) for record in records for part in record.parts if part.kind == record.device}
    why = [reason for record in partial for part in record.parts if part.kind == record.device for reason in part.reasons]
    unit = "GPUs" if records[0].device == "gpu" else "nodes"
    if len(counts) == 1:
        measured, devices = next(iter(counts))
        return f"{measured} of {devices} {unit}", why
    timed = [record for record in records if not isinstance(record.device_seconds, Unavailable)]
    hours = [
        (record.device_seconds / 3600, record.share_measured) for record in timed if not isinstance(record.device_seconds, Unavailable)
    ]
    measured_hours = math.fsum(value * share for value, share in hours)
    return f"{Amount(measured_hours):.4g} of {Amount(math.fsum(value for value, _ in hours)):.4g} device-hours", why


def totals(records: Sequence[AttemptRecord], *, stage: str) -> StageTotals:
    """Add up attempts under one heading; `planned` adds up the latest plan of each run and round."""
    by_status: dict[str, int] = {}
    for record in records:
        by_status[record.status] = by_status.get(record.status, 0) + 1
    estimated = [record for record in records if record.estimated_joules is not None]
    return StageTotals(
        stage=stage,
        num_by_status=by_status,
        tokens=sum(record.tokens for record in records),
        seconds=total_of("seconds", records),
        device_seconds=total_of("device_seconds", records),
        joules=total_of("joules", records),
        usd=total_of("usd", records),
        planned=planned_of(records),
        lost_tokens=sum(lost_tokens(list(same)) for same in _by_run(records)),
        trained_tokens=sum(record.tokens for record in records if record.stage == TRAIN),
        site_kwh=total_of("site_kwh", records),
        g_co2e=total_of("g_co2e", records),
        estimated_joules=math.fsum(record.estimated_joules or 0.0 for record in estimated),
        estimate_methods=tuple(dict.fromkeys(record.estimate_method for record in estimated)),
        num_estimated=len(estimated),
        clock_jumps=tuple(record.clock_jump_seconds for record in records if record.clock_jump_seconds),
    )


def _by_run(records: Sequence[AttemptRecord]) -> list[list[AttemptRecord]]:
    return [[record for record in records if record.run == run] for run in dict.fromkeys(record.run for record in records)]


def planned_of(records: Sequence[AttemptRecord]) -> dict[str, Figure] | None:
    """Return what the plans expected: of each run, stage and round the latest, added up; None when no attempt carries one."""
    latest = {(record.run, record.stage, record.round): record.planned for record in records if record.planned}
    if not latest:
        return None
    keys = dict.fromkeys(key for plan in latest.values() for key in plan)
    return {key: combine(lambda *values: math.fsum(values), *(figure_in(plan.get(key)) for plan in latest.values())) for key in keys}


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


GROUPS: dict[str, Callable[[AttemptRecord], str]] = {
    "run": lambda record: record.run or "unknown",
    "stage": lambda record: record.stage,
    "user": lambda record: record.user,
    "week": week_of,
    "tariff": lambda record: record.tariff or "unknown",
}


def totals_by(records: Sequence[AttemptRecord], keys: Sequence[str]) -> list[tuple[tuple[str, ...], StageTotals]]:
    """Return the totals of every group that has attempts, in order of first attempt; its name has a value for each key of `GROUPS`."""
    names = dict.fromkeys(tuple(GROUPS[key](record) for key in keys) for record in records)
    return [
        (name, totals([record for record in records if tuple(GROUPS[key](record) for key in keys) == name], stage=" ".join(name)))
        for name in names
    ]
