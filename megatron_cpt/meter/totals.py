"""Totals over a ledger. A sum says of how many attempts it is; what was not measured stays visible beside it."""

from __future__ import annotations

import datetime
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_cpt.meter.energy import Kind, Part, joules_of, part_from
from megatron_cpt.meter.here import is_alive
from megatron_cpt.meter.killed import BILLED, TRAIN, recovered_lines
from megatron_cpt.meter.ledger import JOULES_PER_KWH, LEDGER_NAME, NOT_RECORDED, STEP_RECORDS
from megatron_cpt.record.store import read_lines
from megatron_cpt.record.unknown import Figure, Unavailable, combine

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
    run: str = ""
    user: str = "unknown"
    began: float | None = None
    """Wall time, in seconds since the epoch."""
    round: int = 1
    tariff: str = ""
    usd_per_device_hour: Figure = NOT_RECORDED
    pue: Figure = NOT_RECORDED
    grid_g_co2e_per_kwh: Figure = NOT_RECORDED
    device: Kind = "cpu"
    parts: tuple[Part, ...] = ()
    estimated_joules: float | None = None
    """Of the CPUs of a machine without a meter; never a part of `joules`."""
    estimate_method: str = ""
    clock_jump_seconds: float = 0.0
    job_id: str | None = None
    job_restart: int = 0

    @property
    def share_measured(self) -> float:
        """The share of the devices that do the work whose energy is in `joules`, from 0 to 1."""
        if isinstance(self.joules, Unavailable):
            return 0.0
        same = [part for part in self.parts if part.kind == self.device]
        devices = sum(part.of for part in same)
        return sum(part.measured for part in same) / devices if devices else 1.0

    @property
    def site_kwh(self) -> Figure:
        """Energy of the site in kWh: what the meters read, times PUE."""
        return combine(lambda joules, pue: joules / JOULES_PER_KWH * pue, self.joules, self.pue)

    @property
    def g_co2e(self) -> Figure:
        """Grams of CO2 equivalent, location-based."""
        return combine(lambda kwh, grams: kwh * grams, self.site_kwh, self.grid_g_co2e_per_kwh)


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
        text = pattern.format(self.value * scale)
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


def attempts_of(run_dir: Path) -> list[AttemptRecord]:
    """Return every attempt of a run in the order in which they began, what killed ones left in their step records included."""
    return attempts_in(lines_of(run_dir))


def lines_of(run_dir: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's ledger, and those that settling it would add."""
    lines = [{"run": run_dir.resolve().name, **line} for line in read_lines(run_dir / LEDGER_NAME)]
    return [*lines, *recovered_lines(lines, read_lines(run_dir / STEP_RECORDS), run_dir=run_dir)]


def attempts_of_project(runs_dir: Path) -> list[AttemptRecord]:
    """Return every attempt of all runs of a project, each once: of its own ledger, and of those of its runs that are still there."""
    lines = read_lines(runs_dir / LEDGER_NAME)
    for path in sorted(runs_dir.glob(f"*/{LEDGER_NAME}")):
        lines += lines_of(path.parent)
    return sorted(attempts_in(lines), key=lambda record: record.began or 0.0)


def attempts_in(lines: Iterable[dict[str, Any]]) -> list[AttemptRecord]:
    """Put the lines of ledgers together by attempt; a line that two ledgers hold counts once."""
    by_id: dict[str, dict[str, dict[str, Any]]] = {}
    for line in lines:
        kind = line.get("kind")
        if kind in BILLED and isinstance(line.get("attempt"), str):
            parts = by_id.setdefault(line["attempt"], {})
            if kind != "beat" or _seconds(line) >= _seconds(parts.get("beat", {})):  # of several heartbeats the last one counts
                parts[kind] = line
    return [_record(attempt_id, parts) for attempt_id, parts in by_id.items()]


def _seconds(line: dict[str, Any]) -> float:
    figure = _figure(line.get("seconds"))
    return 0.0 if isinstance(figure, Unavailable) else figure


def _record(attempt_id: str, parts: dict[str, dict[str, Any]]) -> AttemptRecord:
    start, end, imported = parts.get("start", {}), parts.get("end"), parts.get("imported", {})
    first = start or end or imported or next(iter(parts.values()))
    known = start or imported  # of a job that never wrote, the scheduler's word and the run's own rates
    job = known.get("slurm") or imported.get("slurm") or {}
    common: dict[str, Any] = {
        "attempt_id": attempt_id,
        "stage": str(first.get("stage", "unknown")),
        "run": str(first.get("run") or ""),
        "user": str(known.get("user", "unknown")),
        "began": _number(start.get("time", imported.get("began"))),
        "round": _count(first.get("round"), 1),
        "tariff": str(known.get("tariff") or ""),
        "usd_per_device_hour": _figure(known.get("usd_per_device_hour")),
        "pue": _figure(known.get("pue")),
        "grid_g_co2e_per_kwh": _figure(known.get("grid_g_co2e_per_kwh")),
        "device": "gpu" if known.get("device") == "gpu" else "cpu",
        "job_id": job.get("job_id"),
        "job_restart": _count(job.get("restart"), 0),
    }
    return _ended(end, imported, common) if end is not None else _unended(parts, common)


def _ended(end: dict[str, Any], imported: dict[str, Any], common: dict[str, Any]) -> AttemptRecord:
    joules, parts = _figure(end.get("joules")), _parts(end)
    if isinstance(joules, Unavailable) and not isinstance(_figure(imported.get("joules")), Unavailable):
        joules, parts = _figure(imported["joules"]), _parts(imported)  # the scheduler's meter, where the machine had none of ours
    return AttemptRecord(
        **common,
        status=str(end.get("status", "unknown")),
        exit_code=end.get("exit_code"),
        num_ranks=_count(end.get("num_ranks"), 0),
        seconds=_figure(end.get("seconds")),
        device_seconds=_figure(end.get("device_seconds")),
        tokens=_count(end.get("tokens"), 0),
        joules=joules,
        usd=_figure(end.get("usd")),
        planned=end.get("planned"),
        is_lower_bound=False,
        start_tokens=end.get("start_tokens"),
        parts=parts,
        estimated_joules=_number(end.get("estimated_joules")),
        estimate_method=str(end.get("estimate_method", "")),
        clock_jump_seconds=_number(end.get("clock_jump_seconds")) or 0.0,
    )


def _unended(parts: dict[str, dict[str, Any]], common: dict[str, Any]) -> AttemptRecord:
    start, beat = parts.get("start", {}), parts.get("beat", {})
    left, imported = parts.get("recovered", {}), parts.get("imported", {})
    num_ranks = _count((start or imported).get("num_ranks"), 0)
    proven = [figure for part in (beat, left) if part and not isinstance(figure := _figure(part.get("seconds")), Unavailable)]
    seconds: Figure = max(proven) if proven else Unavailable("killed before its first heartbeat")
    if imported:  # the scheduler knows when the job ended
        seconds = _figure(imported.get("seconds"))
    device_seconds: Figure = combine(lambda value: value * num_ranks, seconds)
    if not num_ranks:
        device_seconds = Unavailable("the scheduler names no GPU of this job")
    energy = _parts(left) or _parts(beat)
    joules = _figure(left["joules"]) if "joules" in left else joules_of(energy, kind=common["device"])
    if isinstance(joules, Unavailable) and not energy:
        joules = Unavailable("killed before its energy was recorded")
    if imported and not isinstance(_figure(imported.get("joules")), Unavailable):
        joules, energy = _figure(imported["joules"]), _parts(imported)
    elif imported and not start:
        joules = _figure(imported.get("joules"))
    status = "running" if start and not imported and is_alive(start) else "killed"
    return AttemptRecord(
        **common,
        status=str(imported.get("status", status)),
        exit_code=imported.get("exit_code"),
        num_ranks=num_ranks,
        seconds=seconds,
        device_seconds=device_seconds,
        tokens=max(_count(beat.get("tokens"), 0), _count(left.get("tokens"), 0)),
        joules=joules,
        usd=combine(lambda price, used: used / 3600 * price, common["usd_per_device_hour"], device_seconds),
        planned=None,
        is_lower_bound=not imported,
        start_tokens=left.get("start_tokens"),
        parts=energy,
    )


def _parts(line: dict[str, Any]) -> tuple[Part, ...]:
    return tuple(part for each in line.get("energy") or () if (part := part_from(each)) is not None)


def _count(value: object, otherwise: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else otherwise


def _number(value: object) -> float | None:
    figure = _figure(value)
    return None if isinstance(figure, Unavailable) else figure


def _figure(data: object) -> Figure:
    if isinstance(data, dict) and data.get("unavailable"):
        return Unavailable(str(data["unavailable"]))
    if isinstance(data, int | float) and not isinstance(data, bool) and math.isfinite(data):
        return float(data)
    return Unavailable("not recorded")


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
    return f"{measured_hours:,.4g} of {math.fsum(value for value, _ in hours):,.4g} device-hours", why


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
    return {key: combine(lambda *values: math.fsum(values), *(_figure(plan.get(key)) for plan in latest.values())) for key in keys}


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


def week_of(record: AttemptRecord) -> str:
    """Return the ISO week, by UTC, in which an attempt began, such as `2026-W48`; all of an attempt counts there."""
    if record.began is None:
        return "unknown"
    year, week, _ = datetime.datetime.fromtimestamp(record.began, tz=datetime.UTC).isocalendar()
    return f"{year}-W{week:02d}"


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
