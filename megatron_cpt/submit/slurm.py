"""Slurm job lines as argument lists, built by pure functions. Nothing that a user typed is in them but plain names and paths."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_cpt.config.schema import ClusterConfig
from megatron_cpt.errors import ConfigError
from megatron_cpt.record.unknown import Figure, Unavailable
from megatron_cpt.submit.memory import Memory, memory_options

STAGES = ("corpus", "vocab", "index", "init", "plan", "baseline", "train", "eval", "gate", "export", "report")
STAGES_ON_RANKS = ("baseline", "train", "eval")  # on all nodes and devices, through slurm/ranks.sh
LEAD_WITHOUT_ESTIMATE_SECONDS = 300
LEAD_SLACK_SECONDS = 10  # for the batch shell, the stop file on a shared disk and the end of the ranks
MAX_LEAD_SECONDS = 65535  # sbatch(1), --signal
TIME_LIMIT = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


@dataclass(frozen=True)
class Job:
    """One job of the line: `argv` lacks the dependency, which is known only when the earlier jobs have their ids.

    Attributes:
        after: names of the jobs that it waits for; `condition` is Slurm's word for how they must have ended.
        elements: of an array that does shares of its stage's work, the numbers of its elements; empty for a stage's own job.
        after_any: names of jobs whose end it waits for, good or bad: what an array leaves, the stage's own job does.
    """

    stage: str
    argv: tuple[str, ...]
    after: tuple[str, ...]
    condition: str = "afterok"
    elements: tuple[int, ...] = ()
    after_any: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return job_name(self.stage, self.elements)

    def submit_argv(self, ids: Mapping[str, str]) -> list[str]:
        """Return the whole sbatch line for the ids of earlier jobs by name."""
        waits = ((self.condition, self.after), ("afterany", self.after_any))
        dependency = ",".join(":".join((condition, *(ids[name] for name in names))) for condition, names in waits if names)
        if not dependency:
            return list(self.argv)
        return [self.argv[0], f"--dependency={dependency}", "--kill-on-invalid-dep=yes", *self.argv[1:]]


def job_name(stage: str, elements: Sequence[int]) -> str:
    """Return what tells a job of a line from the others: its stage, or that of whose tasks it is an array."""
    return f"{stage}-tasks" if elements else stage


@dataclass(frozen=True)
class Place:
    """Where a line runs: the run's folder, the frozen folder of its submission, and the folder that relative paths start from."""

    run_dir: Path
    frozen: Path
    work_dir: Path


def signal_lead_seconds(cluster: ClusterConfig, step_seconds: Figure) -> int:
    """Return how long before the time limit Slurm is to warn: two steps and two saves, so that the warned step and its save fit.

    Raises:
        ConfigError: the time limit leaves no time to train before the warning.
    """
    lead = LEAD_WITHOUT_ESTIMATE_SECONDS
    if not isinstance(step_seconds, Unavailable):
        lead = min(LEAD_SLACK_SECONDS + math.ceil(2 * step_seconds + 2 * cluster.checkpoint_seconds), MAX_LEAD_SECONDS)
    limit = None if cluster.time_limit is None else time_limit_seconds(cluster.time_limit)
    if limit is not None and lead >= limit:
        raise ConfigError(
            "A training job would be warned of its end before it begins.",
            where="cluster.time_limit",
            value=f"{cluster.time_limit}, and the warning comes {lead} s before it",
            rule="the limit is longer than two steps and two saves (cluster.checkpoint_seconds)",
            next_step="Ask for more time; a run longer than the limit goes on in the same job, requeued.",
        )
    return lead


def requeue_problem(cluster: ClusterConfig, *, elapsed_seconds: Figure, device_mtbf_hours: float | None) -> str | None:
    """Say that a job will be allowed fewer starts than its time limit and failures at the stated rate ask for; None where it is not so.

    Slurm counts every start of a job, also those after a node's failure. Where time or rate is not known nothing can be said.
    """
    if isinstance(elapsed_seconds, Unavailable):
        return None
    limit = None if cluster.time_limit is None else time_limit_seconds(cluster.time_limit)
    failures = 0.0 if device_mtbf_hours is None else elapsed_seconds / 3600 * cluster.num_nodes * cluster.ranks_per_node / device_mtbf_hours
    starts = math.ceil(failures + (0.0 if limit is None else elapsed_seconds / limit))
    if starts <= cluster.max_requeues:
        return None
    return (
        f"training is expected to start {starts:,} times (time limit and failures), and cluster.max_requeues={cluster.max_requeues} allows"
        f" fewer: cluster.max_requeues={2 * starts} leaves room"
    )


def time_limit_seconds(text: str) -> int | None:
    """Return the seconds of a Slurm time limit: `minutes`, `minutes:seconds`, `h:m:s`, `days-h[:m[:s]]`; None for no limit.

    Raises:
        ConfigError: it is none of these.
    """
    if text.upper() in ("UNLIMITED", "INFINITE"):
        return None
    found = TIME_LIMIT.fullmatch(text)
    if found is None:
        raise ConfigError("Not a time limit.", where="cluster.time_limit", value=text, rule="minutes, m:s, h:m:s, d-h, d-h:m or d-h:m:s")
    days, *parts = (None if part is None else int(part) for part in found.groups())
    numbers = [part for part in parts if part is not None]
    if days is not None:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if len(numbers) == 3:
        return (numbers[0] * 60 + numbers[1]) * 60 + numbers[2]
    return numbers[0] * 60 + (numbers[1] if len(numbers) == 2 else 0)


def num_cpus_of(cluster: ClusterConfig) -> int:
    """Return the cores that each job asks for on a node."""
    return cluster.threads_per_rank * cluster.ranks_per_node


def sbatch_argv(
    stage: str, *, cluster: ClusterConfig, run_name: str, place: Place, lead_seconds: int, memory: Memory | None = None
) -> tuple[str, ...]:
    """Return the sbatch line of one stage, without its dependency. Every job may start again: a stage is whole or not there."""
    on_ranks = stage in STAGES_ON_RANKS
    argv = [
        "sbatch",
        "--parsable",
        f"--job-name={run_name}-{stage}",
        f"--chdir={place.work_dir}",
        f"--nodes={cluster.num_nodes if on_ranks else 1}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={num_cpus_of(cluster)}",
        f"--output={place.run_dir}/slurm/{stage}-%j.out",
        "--open-mode=append",
        "--requeue",
    ]
    if on_ranks and cluster.backend == "cuda":
        argv.append(f"--gpus-per-node={cluster.ranks_per_node}")
    argv += memory_options(cluster, on_ranks=on_ranks, memory=memory)
    argv += site_options(cluster)
    bodies = place.frozen / "slurm"
    if stage == "train":
        body = (bodies / "train.sbatch", place.frozen, place.run_dir, cluster.max_requeues)
        return (*argv, f"--signal=B:USR1@{lead_seconds}", *map(str, body))
    return (*argv, *map(str, (bodies / ("ranks.sbatch" if on_ranks else "stage.sbatch"), place.frozen, stage)))


def site_options(cluster: ClusterConfig) -> list[str]:
    """Return what every job of a line asks of its site."""
    options = (("partition", cluster.partition), ("account", cluster.account), ("qos", cluster.qos), ("time", cluster.time_limit))
    return [f"--{option}={value}" for option, value in options if value is not None]


def line_of_jobs(
    *, cluster: ClusterConfig, run_name: str, place: Place, lead_seconds: int, stages: Sequence[str] = STAGES, memory: Memory | None = None
) -> list[Job]:
    """Return the jobs of the line in order. Each waits for the one before it to succeed; the report waits for the end, good or bad.

    Raises:
        ConfigError: a stage is not one of the line.
    """
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown:
        raise ConfigError(f"{', '.join(unknown)}: no such stage.", rule=f"stages are {', '.join(STAGES)}")
    jobs = []
    for before, stage in zip((None, *stages), stages, strict=False):
        argv = sbatch_argv(stage, cluster=cluster, run_name=run_name, place=place, lead_seconds=lead_seconds, memory=memory)
        after = () if before is None else (before,)
        jobs.append(Job(stage=stage, argv=argv, after=after, condition="afterany" if stage == "report" else "afterok"))
    return jobs
