"""The bill: `ledger.jsonl`, one line when an attempt starts, lines while it lives, one when it ends. Lines are only added.

A run has one in its folder, and the folder of the runs has one of all of them, which outlives a run's folder. A failed attempt stays on
the bill. One that was killed has a start and no end: its last heartbeat says what it took at least, and of training the recorded steps
say what it read (killed.py). `docs/reference/ledger.md` says what each field means.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from megatron_cpt.errors import EXIT_BUDGET, EXIT_ROLLED_BACK, EXIT_STOPPED, CptError
from megatron_cpt.meter.cpu_estimate import METHOD, cpu_seconds, estimated_joules, num_threads
from megatron_cpt.meter.energy import Kind, Meter, NoMeter, Part, expecting, joules_of, merged
from megatron_cpt.meter.here import boot_id, process_start, slurm_job, user_name
from megatron_cpt.meter.nodes import readings_of, remove_readings
from megatron_cpt.record.store import append_line
from megatron_cpt.record.typed import to_plain
from megatron_cpt.record.unknown import Figure, Unavailable, combine

LEDGER_NAME = "ledger.jsonl"
STEP_RECORDS = "train/metrics.jsonl"  # relative to the run folder
BEAT_SECONDS = 30.0  # well below the time in which a RAPL counter can wrap, and the most that a kill can take off the bill
CLOCK_JUMP_SECONDS = 2.0  # wall clock against monotonic clock; a time server slews by less in an attempt, and steps by more
JOULES_PER_KWH = 3.6e6
NOT_RECORDED = Unavailable("not recorded")
NO_PUE = Unavailable("no PUE was given")
NO_GRID = Unavailable("no grid intensity was given")

Status = Literal["finished", "failed", "stopped", "rolled_back"]


@dataclass(frozen=True)
class Planned:
    """What the plan expected of a stage; written beside the actual figures."""

    seconds: Figure
    tokens: int
    usd: Figure
    kwh: Figure
    """Of the site, as `site_kwh` of the actual figures: with what cooling and power supply take."""
    g_co2e: Figure = NOT_RECORDED


@dataclass(frozen=True)
class Site:
    """What turns a meter's joules into energy and carbon of the site: PUE (a ratio, 1 or more) and g CO2e per kWh, location-based."""

    tariff: str = ""
    pue: Figure = NO_PUE
    grid_g_co2e_per_kwh: Figure = NO_GRID


@dataclass
class Attempt:
    """One attempt of a stage. Set `tokens` as work goes on; `exit_code` and `status` follow from how the block ends, or are set here."""

    path: Path
    stage: str
    num_ranks: int
    usd_per_device_hour: Figure
    meter: Meter
    planned: Planned | None
    project_dir: Path | None = None
    """The folder of the runs, whose ledger gets every line too; None for a run that is in no project."""
    num_nodes: int = 1
    device: Kind = "cpu"
    """The devices that do the work, whose number is `num_ranks` for GPUs and `num_nodes` for CPUs."""
    site: Site = field(default_factory=Site)
    attempt_id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    tokens: int = 0
    exit_code: int = 0
    status: Status | None = None
    source_tokens: dict[str, int] | None = None
    """Tokens that this attempt read, by source and by licence; None where the stage reads no sources of its own."""
    licence_tokens: dict[str, int] | None = None
    training_seconds: float | None = None
    """Of training: from the first step to the end of the last, evaluations and saves between them included."""
    start_tokens: int | None = None
    """Tokens in the weights with which this attempt began; None where nothing is trained."""
    round: int = 1
    """The round of the run; lines of the first do not say it."""
    _begin: float = field(default_factory=time.monotonic)
    _begin_wall: float = field(default_factory=time.time)
    _begin_cpu: float = field(default_factory=cpu_seconds)

    @property
    def seconds(self) -> float:
        """Seconds since the start by a clock that does not jump."""
        return time.monotonic() - self._begin

    @property
    def clock_jump_seconds(self) -> float:
        """Seconds by which the wall clock moved more than the monotonic one since the start: it was set, or the machine slept."""
        return time.time() - self._begin_wall - self.seconds

    def start(self) -> None:
        job = slurm_job()
        self._append(
            "start",
            user=user_name(),
            num_ranks=self.num_ranks,
            num_nodes=self.num_nodes,
            device=self.device,
            pid=os.getpid(),
            host=socket.gethostname(),
            process_start=process_start(os.getpid()),
            boot_id=boot_id(),
            monotonic=self._begin,
            usd_per_device_hour=_plain(self.usd_per_device_hour),
            tariff=self.site.tariff,
            pue=_plain(self.site.pue),
            grid_g_co2e_per_kwh=_plain(self.site.grid_g_co2e_per_kwh),
            **({} if job is None else {"slurm": job}),
        )

    def beat(self) -> None:
        """Write that the attempt is alive, with its seconds, tokens and energy so far; reading keeps the counters from wrapping unseen."""
        energy = to_plain(list(self.meter.parts()))
        self._append("beat", seconds=self.seconds, tokens=self.tokens, energy=energy)

    def end(self, status: Status) -> None:
        seconds, busy = self.seconds, cpu_seconds() - self._begin_cpu
        parts = self._parts()
        joules = joules_of(parts, kind=self.device)
        usd = combine(lambda price: price * seconds * self.num_ranks / 3600, self.usd_per_device_hour)
        kwh = combine(lambda value: value / JOULES_PER_KWH, joules)
        site_kwh = combine(lambda value, pue: value * pue, kwh, self.site.pue)
        self._append(
            "end",
            status=status,
            exit_code=self.exit_code,
            num_ranks=self.num_ranks,
            seconds=seconds,
            device_seconds=seconds * self.num_ranks,
            tokens=self.tokens,
            joules=_plain(joules),
            kwh=_plain(kwh),
            site_kwh=_plain(site_kwh),
            g_co2e=_plain(combine(lambda value, grams: value * grams, site_kwh, self.site.grid_g_co2e_per_kwh)),
            energy=to_plain(list(parts)),
            energy_scope=self.meter.scope,
            usd=_plain(usd),
            planned=None if self.planned is None else to_plain(self.planned),
            **self._estimate(joules, seconds=seconds, busy_seconds=busy),
            **({} if abs(self.clock_jump_seconds) < CLOCK_JUMP_SECONDS else {"clock_jump_seconds": self.clock_jump_seconds}),
            **({} if self.training_seconds is None else {"training_seconds": self.training_seconds}),
            **({} if self.start_tokens is None else {"start_tokens": self.start_tokens}),
            **({} if self.source_tokens is None else {"source_tokens": self.source_tokens, "licence_tokens": self.licence_tokens}),
        )
        remove_readings(self.path.parent, self.attempt_id)

    def _parts(self) -> tuple[Part, ...]:
        """Return the energy of this node and what the other nodes wrote, with the silent ones counted."""
        parts = merged([*self.meter.parts(), *readings_of(self.path.parent, self.attempt_id)])
        return expecting(parts, kind=self.device, num_devices=self.num_ranks if self.device == "gpu" else self.num_nodes)

    def _estimate(self, joules: Figure, *, seconds: float, busy_seconds: float) -> dict[str, Any]:
        """Return the estimate of CPU energy on one node without a meter; nothing where there is a measurement, or there are GPUs."""
        if not isinstance(joules, Unavailable) or self.device != "cpu" or self.num_nodes != 1:
            return {}
        value = estimated_joules(seconds=seconds, busy_seconds=busy_seconds, threads=num_threads())
        return {"estimated_joules": value, "estimate_method": METHOD}

    def _append(self, kind: str, **fields: Any) -> None:
        of_round = {} if self.round == 1 else {"round": self.round}
        line = {"kind": kind, "attempt": self.attempt_id, "run": self.path.parent.name, "stage": self.stage, "time": time.time()}
        append_to_bills(self.path.parent, {**line, **of_round, **fields}, project_dir=self.project_dir)


def append_to_bills(run_dir: Path, line: dict[str, Any], *, project_dir: Path | None) -> None:
    """Append a line to the ledger of a run, and then to that of its project. A kill between them is mended when both are read."""
    append_line(run_dir / LEDGER_NAME, line)
    if project_dir is not None:
        append_line(project_dir / LEDGER_NAME, line)


@contextlib.contextmanager
def attempt(
    run_dir: Path,
    stage: str,
    *,
    num_ranks: int,
    usd_per_device_hour: Figure,
    meter: Meter | None = None,
    planned: Planned | None = None,
    beat_seconds: float | None = BEAT_SECONDS,
    round_number: int = 1,
    project_dir: Path | None = None,
    num_nodes: int = 1,
    device: Kind = "cpu",
    site: Site | None = None,
) -> Iterator[Attempt]:
    """Put an attempt of a stage on the bill: a line before the work, one after it however it ends, and a heartbeat between.

    The status follows from the exception that ends the block: none is `finished`, `Stopped` and `BudgetReached` are `stopped`,
    `RolledBack` is `rolled_back`, everything else is `failed`. The exception goes on.
    """
    entry = Attempt(
        path=run_dir / LEDGER_NAME,
        stage=stage,
        num_ranks=num_ranks,
        usd_per_device_hour=usd_per_device_hour,
        meter=meter or NoMeter("no meter was opened for this stage", kind=device),
        planned=planned,
        project_dir=project_dir,
        num_nodes=num_nodes,
        device=device,
        site=site or Site(),
        round=round_number,
    )
    entry.start()
    done = threading.Event()
    heart = None
    if beat_seconds is not None:
        heart = threading.Thread(target=_beat_until, args=(entry, done, beat_seconds), name="ledger-heartbeat", daemon=True)
        heart.start()
    status: Status = "failed"
    try:
        yield entry
        status = entry.status or "finished"
    except BaseException as error:
        entry.exit_code, status = _ending(error)
        raise
    finally:
        done.set()
        if heart is not None:
            heart.join()
        entry.end(status)


def _beat_until(entry: Attempt, done: threading.Event, every_seconds: float) -> None:
    while not done.wait(every_seconds):
        try:
            entry.beat()
        except OSError:
            return  # a full disk must not end the work; the end line will raise it where the user sees it


def _ending(error: BaseException) -> tuple[int, Status]:
    if isinstance(error, CptError):
        code = error.exit_code
    elif isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    else:
        code = 130 if isinstance(error, KeyboardInterrupt) else 1
    by_code: dict[int, Status] = {0: "finished", EXIT_STOPPED: "stopped", EXIT_BUDGET: "stopped", EXIT_ROLLED_BACK: "rolled_back"}
    return code, by_code.get(code, "failed")


def _plain(figure: Figure) -> Any:
    return {"unavailable": figure.reason} if isinstance(figure, Unavailable) else figure
