"""The lines of ledgers put together by attempt, whatever became of each: its end, its last sign of life, or the scheduler's word."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_cpt.meter.energy import Kind, Part, joules_of, part_from
from megatron_cpt.meter.here import is_alive, works_elsewhere
from megatron_cpt.meter.killed import BILLED, recovered_lines
from megatron_cpt.meter.ledger import BEAT_SECONDS, JOULES_PER_KWH, LEDGER_NAME, NOT_RECORDED, STEP_RECORDS
from megatron_cpt.record.store import read_lines
from megatron_cpt.record.unknown import Figure, Unavailable, combine


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
    training_seconds: float | None = None
    """Of training, where it is known: from the first step to the end of the last."""
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
    figure = figure_in(line.get("seconds"))
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
        "usd_per_device_hour": figure_in(known.get("usd_per_device_hour")),
        "pue": figure_in(known.get("pue")),
        "grid_g_co2e_per_kwh": figure_in(known.get("grid_g_co2e_per_kwh")),
        "device": "gpu" if known.get("device") == "gpu" else "cpu",
        "job_id": job.get("job_id"),
        "job_restart": _count(job.get("restart"), 0),
    }
    return _ended(end, imported, common) if end is not None else _unended(parts, common)


def _ended(end: dict[str, Any], imported: dict[str, Any], common: dict[str, Any]) -> AttemptRecord:
    joules, parts = figure_in(end.get("joules")), _parts(end)
    if isinstance(joules, Unavailable) and not isinstance(figure_in(imported.get("joules")), Unavailable):
        joules, parts = figure_in(imported["joules"]), _parts(imported)  # the scheduler's meter, where the machine had none of ours
    return AttemptRecord(
        **common,
        status=str(end.get("status", "unknown")),
        exit_code=end.get("exit_code"),
        num_ranks=_count(end.get("num_ranks"), 0),
        seconds=figure_in(end.get("seconds")),
        device_seconds=figure_in(end.get("device_seconds")),
        tokens=_count(end.get("tokens"), 0),
        joules=joules,
        usd=figure_in(end.get("usd")),
        planned=end.get("planned"),
        is_lower_bound=False,
        start_tokens=end.get("start_tokens"),
        parts=parts,
        estimated_joules=_number(end.get("estimated_joules")),
        estimate_method=str(end.get("estimate_method", "")),
        training_seconds=_number(end.get("training_seconds")),
        clock_jump_seconds=_number(end.get("clock_jump_seconds")) or 0.0,
    )


def _unended(parts: dict[str, dict[str, Any]], common: dict[str, Any]) -> AttemptRecord:
    start, beat = parts.get("start", {}), parts.get("beat", {})
    left, imported = parts.get("recovered", {}), parts.get("imported", {})
    works = is_alive(start) or works_elsewhere(start, beat, beat_seconds=BEAT_SECONDS)
    status = "running" if start and not imported and works else "killed"
    num_ranks = _count((start or imported).get("num_ranks"), 0)
    proven = [figure for part in (beat, left) if part and not isinstance(figure := figure_in(part.get("seconds")), Unavailable)]
    seconds: Figure = (
        max(proven)
        if proven
        else Unavailable("still running, and before its first heartbeat" if status == "running" else "killed before its first heartbeat")
    )
    if imported:  # the scheduler knows when the job ended
        seconds = figure_in(imported.get("seconds"))
    device_seconds: Figure = combine(lambda value: value * num_ranks, seconds)
    if not num_ranks:
        device_seconds = Unavailable("the scheduler names no GPU of this job")
    energy = _parts(left) or _parts(beat)
    joules = figure_in(left["joules"]) if "joules" in left else joules_of(energy, kind=common["device"])
    if isinstance(joules, Unavailable) and not energy:
        joules = Unavailable("still running, and not read yet" if status == "running" else "killed before its energy was recorded")
    if imported and not isinstance(figure_in(imported.get("joules")), Unavailable):
        joules, energy = figure_in(imported["joules"]), _parts(imported)
    elif imported and not start:
        joules = figure_in(imported.get("joules"))
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
        training_seconds=_number(left.get("training_seconds")),
        parts=energy,
    )


def _parts(line: dict[str, Any]) -> tuple[Part, ...]:
    return tuple(part for each in line.get("energy") or () if (part := part_from(each)) is not None)


def _count(value: object, otherwise: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else otherwise


def _number(value: object) -> float | None:
    figure = figure_in(value)
    return None if isinstance(figure, Unavailable) else figure


def figure_in(data: object) -> Figure:
    """Read a figure of a ledger line; what is no finite number is unknown."""
    if isinstance(data, dict) and data.get("unavailable"):
        return Unavailable(str(data["unavailable"]))
    if isinstance(data, int | float) and not isinstance(data, bool) and math.isfinite(data):
        return float(data)
    return Unavailable("not recorded")


def week_of(record: AttemptRecord) -> str:
    """Return the ISO week, by UTC, in which an attempt began, such as `2026-W48`; all of an attempt counts there."""
    if record.began is None:
        return "unknown"
    year, week, _ = datetime.datetime.fromtimestamp(record.began, tz=datetime.UTC).isocalendar()
    return f"{year}-W{week:02d}"
