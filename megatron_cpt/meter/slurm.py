"""What Slurm's accounting knows of a run's jobs: the end and energy of attempts that died before they could write it.

Reads `sacct --duplicates --parsable2`. A job's row is the whole of the job; rows of its steps are inside it and never added again.
Energy is that of whole nodes, so it is a job's own only where the job has its nodes alone.
"""

from __future__ import annotations

import datetime
import math
import os
import re
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_cpt.errors import DataError
from megatron_cpt.meter.here import is_alive
from megatron_cpt.meter.ledger import LEDGER_NAME, append_to_bills
from megatron_cpt.record.store import read_lines
from megatron_cpt.record.unknown import Figure, Unavailable

FIELDS = ("JobIDRaw", "JobID", "User", "State", "ExitCode", "Start", "ElapsedRaw", "NNodes", "AllocTRES", "ConsumedEnergyRaw")
NEEDED = ("JobIDRaw", "State", "ElapsedRaw")
NO_VALUES = (0xFFFFFFFE, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFE, 0xFFFFFFFFFFFFFFFF)  # slurm.h: NO_VAL, INFINITE and their 64-bit forms
STATUS = {"COMPLETED": "finished", "RUNNING": "running", "CANCELLED": "stopped", "REQUEUED": "stopped", "PREEMPTED": "stopped"}
PUT_BACK = ("REQUEUED", "PREEMPTED", "NODE_FAIL")
NOT_BEGUN = ("PENDING", "REQUEUE_HOLD", "RESIZING")
TIMEOUT_SECONDS = 120
RATES = ("usd_per_device_hour", "tariff", "pue", "grid_g_co2e_per_kwh")
MAX_WATTS_PER_NODE = 100_000.0  # far above any node; a counter that was reset or wrapped comes out as up to 2^64 microjoules more
METHOD = "Slurm ConsumedEnergyRaw of the job's whole nodes"
NOT_OF_ELEMENTS = "elements of an array share nodes, whose whole energy Slurm counts for each of them"
EMULATED = f"{METHOD}, from an emulated meter: no measurement"


@dataclass(frozen=True)
class Job:
    """One run of a Slurm job; a requeued job has several with one id, told apart by `restart`.

    `began` is in seconds since the epoch; None where Slurm does not say. `joules` are those of the job's nodes. `array_id` is the id of
    the array that it is an element of, None where it is a job of its own.
    """

    job_id: str
    restart: int
    user: str
    state: str
    exit_code: int | None
    began: float | None
    seconds: float
    num_nodes: int
    num_gpus: int
    joules: Figure
    array_id: str | None = None


def note_jobs(run_dir: Path, job_ids: Mapping[str, str]) -> None:
    """Put the ids of submitted jobs on a run's ledger, by stage: a job that dies before its command begins is known by them."""
    for stage, job_id in job_ids.items():
        line = {"kind": "submitted", "run": run_dir.name, "stage": stage, "time": time.time(), "slurm": {"job_id": job_id.split(";")[0]}}
        append_to_bills(run_dir, line, project_dir=None)


def ask_sacct(job_ids: Sequence[str], *, command: str = "sacct") -> str:
    """Return what `sacct` says of jobs.

    Raises:
        DataError: there is no sacct on this machine, or it failed.
    """
    argv = [command, "--duplicates", "--parsable2", f"--format={','.join(FIELDS)}", f"--jobs={','.join(job_ids)}"]
    try:
        answer = subprocess.run(
            argv, capture_output=True, text=True, check=False, timeout=TIMEOUT_SECONDS, env={**os.environ, "SLURM_TIME_FORMAT": "%s"}
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DataError(
            "sacct cannot be asked.",
            where=command,
            value=str(error),
            next_step="Run it on a cluster node, and pass its output with --sacct FILE.",
        ) from None
    if answer.returncode != 0:
        raise DataError("sacct failed.", where=" ".join(argv[:1]), value=answer.stderr.strip()[:500] or f"exit {answer.returncode}")
    return answer.stdout


def parse_sacct(text: str, *, where: object) -> list[Job]:
    """Return the jobs in the output of `sacct --parsable2`, steps left out.

    Args:
        text: with its line of names, the columns in any order; `Restarts` is used where it is there. Times without a zone are local.

    Raises:
        DataError: it is not such output, or a needed column is missing.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    names = lines[0].split("|") if lines else []
    missing = [name for name in NEEDED if name not in names]
    if missing:
        raise DataError(
            f"This is not the output of sacct that is needed: no column {', '.join(missing)}.",
            where=where,
            value=lines[0][:200] if lines else "empty",
            next_step=f"Make it with: sacct --duplicates --parsable2 --format={','.join(FIELDS)} --jobs=ID,...",
        )
    rows = []
    for number, line in enumerate(lines[1:], 2):
        cells = line.split("|")
        if len(cells) != len(names):
            raise DataError(
                "A line of sacct has another number of fields than its head.", where=f"{where}, line {number}", value=line[:200]
            )
        rows.append(dict(zip(names, cells, strict=True)))
    steps: dict[str, list[dict[str, str]]] = {}
    jobs: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        job_id, dot, step = row["JobIDRaw"].partition(".")
        if not dot:
            jobs.setdefault(job_id, []).append(row)
        elif step.isdigit():  # `batch` and `extern` are on the nodes of the numbered steps, and their energy is in those
            steps.setdefault(job_id, []).append(row)
    found = []
    for job_id, same in jobs.items():
        begun = [row for row in same if _has_begun(row)]
        begun.sort(key=lambda row: _time(row.get("Start", "")) or math.inf)
        for number, row in enumerate(begun):
            if not _seconds(row):
                continue
            restart = row.get("Restarts", "")
            of_steps = steps.get(job_id, []) if len(begun) == 1 else []  # nobody can tell which run of a requeued job a step is of
            found.append(_job(job_id, int(restart) if restart.isdigit() else number, row, of_steps))
    return found


def _has_begun(row: Mapping[str, str]) -> bool:
    """Say whether a row is a run of its job. One that was put back within its first second is; one cancelled in the queue is not."""
    state = (row["State"].split() or [""])[0]
    return state not in ("", *NOT_BEGUN) and (_seconds(row) > 0 or state in PUT_BACK)


def _job(job_id: str, restart: int, row: Mapping[str, str], steps: Sequence[Mapping[str, str]]) -> Job:
    joules = _joules(row.get("ConsumedEnergyRaw", ""))
    if isinstance(joules, Unavailable):
        of_steps = [_joules(step.get("ConsumedEnergyRaw", "")) for step in steps]
        known = [each for each in of_steps if not isinstance(each, Unavailable)]
        joules = math.fsum(known) if known and len(known) == len(of_steps) else joules
    array_id, _, element = row.get("JobID", "").partition("_")
    if element:
        joules = Unavailable(NOT_OF_ELEMENTS)
    num_nodes = int(row["NNodes"]) if row.get("NNodes", "").isdigit() else 1
    if not isinstance(joules, Unavailable) and joules > MAX_WATTS_PER_NODE * num_nodes * (_seconds(row) + 1):
        joules = Unavailable(f"Slurm says {joules:.4g} J, more than nodes can draw: its meter was reset or wrapped")
    code = row.get("ExitCode", "").partition(":")[0]
    return Job(
        job_id=job_id,
        restart=restart,
        user=row.get("User") or "unknown",
        state=row["State"].split()[0],  # "CANCELLED by 1000"
        exit_code=int(code) if code.isdigit() else None,
        began=_time(row.get("Start", "")),
        seconds=_seconds(row),
        num_nodes=num_nodes,
        num_gpus=_num_gpus(row.get("AllocTRES", "")),
        joules=joules,
        array_id=array_id if element else None,
    )


def _seconds(row: Mapping[str, str]) -> float:
    return float(row["ElapsedRaw"]) if row["ElapsedRaw"].isdigit() and int(row["ElapsedRaw"]) not in NO_VALUES else 0.0


def _joules(text: str) -> Figure:
    if not text.strip().isdigit():
        return Unavailable("Slurm gathers no energy here")
    value = int(text)
    if value in NO_VALUES:
        return Unavailable("Slurm has no value of this job's energy")
    return float(value) if value else Unavailable("Slurm says 0 J: its meter did not count this job")


def _num_gpus(text: str) -> int:
    """Return the GPUs in `billing=4,cpu=4,gres/gpu=4,...`; those by type (`gres/gpu:h100=4`) are the same ones again."""
    plain = re.search(r"(?:^|,)gres/gpu=(\d+)", text)
    return int(plain.group(1)) if plain else sum(map(int, re.findall(r"(?:^|,)gres/gpu:[^=,]+=(\d+)", text)))


def _time(text: str) -> float | None:
    if text.isdigit():
        return float(text)
    try:
        return datetime.datetime.fromisoformat(text).timestamp()
    except ValueError:  # "Unknown", "None"
        return None


def jobs_of(lines: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return the stage of every Slurm job that a ledger names, by job id."""
    return {
        str(line["slurm"]["job_id"]): str(line.get("stage", "unknown"))
        for line in lines
        if isinstance(line.get("slurm"), dict) and line["slurm"].get("job_id")
    }


def import_jobs(run_dir: Path, jobs: Sequence[Job], *, project_dir: Path | None, is_emulated: bool = False) -> int:
    """Put on a run's bill what Slurm knows of its jobs and the bill does not, and return how many lines that were.

    An element of an array is a job of the array's stage. A run of a job in which no attempt began is an attempt of its own, of all the
    job's time. An attempt that was killed in one gets the time up to the job's end. One that ended itself keeps its own figures, and gets
    the job's energy where it has none and was alone in the job. A second import adds nothing. Jobs still running, and jobs that the ledger
    does not name, are left alone.

    Args:
        is_emulated: Slurm's meter is a made-up one, of a test cluster: its joules are marked and count as estimates.
    """
    lines = read_lines(run_dir / LEDGER_NAME)
    stages = jobs_of(lines)
    starts = [line for line in lines if line.get("kind") == "start"]
    ended = {line.get("attempt"): line for line in lines if line.get("kind") == "end"}
    done = {line.get("attempt") for line in lines if line.get("kind") == "imported"}
    added = 0
    for job in jobs:
        stage = stages.get(job.job_id) or stages.get(job.array_id or "")
        if stage is None or job.state == "RUNNING":
            continue
        inside = [start for start in starts if _is_of(start, job)]
        rates = {key: starts[-1][key] for key in RATES if starts and key in starts[-1]}  # the run's own, for a job that wrote none
        for line in _lines_for(job, stage, inside, ended, is_emulated=is_emulated):
            if line["attempt"] not in done:
                append_to_bills(run_dir, {"kind": "imported", "run": run_dir.resolve().name, **rates, **line}, project_dir=project_dir)
                added += 1
    return added


def _is_of(start: Mapping[str, Any], job: Job) -> bool:
    of_job = start.get("slurm")
    return isinstance(of_job, dict) and of_job.get("job_id") == job.job_id and of_job.get("restart", 0) == job.restart


def _lines_for(
    job: Job, stage: str, inside: Sequence[Mapping[str, Any]], ended: Mapping[Any, Mapping[str, Any]], *, is_emulated: bool
) -> list[dict[str, Any]]:
    """Return the lines that one run of a job adds: for itself when no attempt began `inside` it, else for those that lack a figure."""
    of_job = {"job_id": job.job_id, "restart": job.restart}
    known: dict[str, Any] = {"stage": stage, "time": time.time(), "slurm": of_job, "state": job.state, "read_from": "sacct"}
    energy = _energy(job, is_emulated=is_emulated)
    if not inside:
        whole = {
            "attempt": f"slurm-{job.job_id}-{job.restart}", "user": job.user, "began": job.began, "seconds": job.seconds,
            "status": STATUS.get(job.state, "failed"), "exit_code": job.exit_code, "num_ranks": job.num_gpus, "num_nodes": job.num_nodes,
            "device": "gpu" if job.num_gpus else "cpu",
        }  # fmt: skip
        return [{**known, **energy, **whole}]
    found = []
    alone = energy if len(inside) == 1 else {}
    last = max(inside, key=lambda start: float(start.get("time", 0.0)))
    for start in inside:
        end = ended.get(start["attempt"])
        if end is None and start is last and not is_alive(start):
            before = 0.0 if job.began is None else max(float(start["time"]) - job.began, 0.0)
            status = STATUS.get(job.state, "failed")
            status = "killed" if status == "finished" else status  # the job's script went on after the command was killed
            taken = {"seconds": max(job.seconds - before, 0.0), "status": status, "exit_code": job.exit_code}
            found.append({**known, **alone, "attempt": start["attempt"], **taken})
        elif end is not None and isinstance(end.get("joules"), dict) and "energy" in alone:
            found.append({**known, **alone, "attempt": start["attempt"]})
    return found


def _energy(job: Job, *, is_emulated: bool) -> dict[str, Any]:
    if isinstance(job.joules, Unavailable):
        return {"joules": {"unavailable": job.joules.reason}}
    device, count = ("gpu", job.num_gpus) if job.num_gpus else ("cpu", job.num_nodes)
    part = {
        "kind": device, "joules": job.joules, "measured": count, "of": count, "method": EMULATED if is_emulated else METHOD,
        "is_estimate": is_emulated, "reasons": [],
    }  # fmt: skip
    return {"joules": job.joules, "energy": [part]}
