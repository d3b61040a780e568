"""What was submitted: `jobs.json` of a submission, with each job's id and what it waits for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from megatron_cpt.record.store import read_json, write_json
from megatron_cpt.record.typed import from_plain, to_plain
from megatron_cpt.submit.frozen import submissions_of
from megatron_cpt.submit.slurm import Job, job_name

JOBS_NAME = "jobs.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class SubmittedJob:
    """`after` holds the ids of the jobs that this one waits for, `condition` Slurm's word for how they must end.

    `elements` are the numbers of an array's elements, and `after_any` the ids of arrays whose end this one waits for, good or bad.
    """

    stage: str
    job_id: str
    after: tuple[str, ...]
    condition: str
    elements: tuple[int, ...] = ()
    after_any: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return job_name(self.stage, self.elements)


@dataclass(frozen=True)
class SubmittedLine:
    """The jobs of one submission in the order of the line. `time` is in seconds since the epoch, `commit` that of the frozen code."""

    schema_version: int
    jobs: tuple[SubmittedJob, ...]
    commit: str
    time: float = field(default_factory=time.time)


def write_submitted(frozen: Path, jobs: Sequence[Job], job_ids: dict[str, str], *, commit: str) -> None:
    def ids(names: Sequence[str]) -> tuple[str, ...]:
        return tuple(job_ids[name] for name in names)

    listed = tuple(
        SubmittedJob(job.stage, job_ids[job.name], ids(job.after), job.condition, job.elements, ids(job.after_any)) for job in jobs
    )
    write_json(frozen / JOBS_NAME, to_plain(SubmittedLine(SCHEMA_VERSION, listed, commit)))


def newest_submitted(run_dir: Path) -> tuple[Path, SubmittedLine] | None:
    """Return the newest submission of a run that has jobs, with its frozen folder; None where nothing was submitted."""
    for frozen in reversed(submissions_of(run_dir)):
        if (frozen / JOBS_NAME).is_file():
            return frozen, from_plain(SubmittedLine, read_json(frozen / JOBS_NAME), where=frozen / JOBS_NAME)
    return None
