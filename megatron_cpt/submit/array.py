"""Arrays of jobs that do shares of a stage's work: in a submitted line before the stage's own job, or waited for by a stage that runs here.

An element does its share and leaves it in the run's folder. The stage's own job takes the shares up, and does what an element left undone.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from megatron_cpt.config.schema import ClusterConfig
from megatron_cpt.errors import ConfigError
from megatron_cpt.submit.slurm import Job, Place, job_name, site_options
from megatron_cpt.submit.submit import call_slurm, job_id_in

CORES_OF_A_SHARE = {"corpus": 1}  # one process without threads; others take a rank's share of the node
_RANGE = re.compile(r"(\d+)(?:-(\d+))?(?::(\d+))?")


@dataclass(frozen=True)
class Shares:
    """A stage's work in `num_shares` equal parts, of which `pending` are not done."""

    num_shares: int
    pending: tuple[int, ...]


def array_spec(numbers: Sequence[int]) -> str:
    """Return sorted numbers as sbatch takes them, runs as ranges: `0-2,5`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def numbers_in(spec: str) -> list[int]:
    """Return the numbers of what Slurm prints for elements that wait, such as `[0-2,5%4]` or `3`; what it cuts off with `...` is lost."""
    found: list[int] = []
    for part in spec.strip("[]").partition("%")[0].split(","):
        if (match := _RANGE.fullmatch(part)) is not None:
            first, last, step = match.groups()
            found += range(int(first), int(last or first) + 1, int(step or 1))
    return found


def array_argv(stage: str, *, cluster: ClusterConfig, run_name: str, place: Place, shares: Shares) -> tuple[str, ...]:
    """Return the sbatch line of the array of a stage, without its dependency. An element whose node fails starts again, it alone."""
    cores = CORES_OF_A_SHARE.get(stage, cluster.threads_per_rank)
    body = (place.frozen / "slurm" / "element.sbatch", place.frozen, stage, shares.num_shares)
    return (
        "sbatch",
        "--parsable",
        f"--job-name={run_name}-{job_name(stage, shares.pending)}",
        f"--chdir={place.work_dir}",
        f"--array={array_spec(shares.pending)}",
        "--nodes=1",
        "--ntasks=1",
        f"--cpus-per-task={cores}",
        f"--output={place.run_dir}/slurm/{job_name(stage, shares.pending)}-%A_%a.out",
        "--open-mode=append",
        "--requeue",
        *site_options(cluster),
        *map(str, body),
    )


def with_arrays(jobs: Sequence[Job], shares: Mapping[str, Shares], *, cluster: ClusterConfig, run_name: str, place: Place) -> list[Job]:
    """Return a line in which stages have an array before their own job, which waits for what the array waited for, and for its end.

    Args:
        shares: by stage; those that are not in it, or have nothing pending, stay as they are.
    """
    found: list[Job] = []
    for job in jobs:
        part = shares.get(job.stage)
        if part is None or not part.pending:
            found.append(job)
            continue
        argv = array_argv(job.stage, cluster=cluster, run_name=run_name, place=place, shares=part)
        array = Job(job.stage, argv, job.after, job.condition, elements=part.pending)
        found += [array, replace(job, after_any=(array.name,))]
    return found


def submit_and_wait(argv: Sequence[str], *, environment: Mapping[str, str], submitted: Callable[[str], None] = lambda job_id: None) -> None:
    """Submit an array and return when its elements have ended, well or not; when this process is stopped they are cancelled.

    Args:
        submitted: is told the job's id at once.

    Raises:
        ConfigError: there is no sbatch, or it refused the jobs; Slurm's own reason is shown.
    """
    # what describes the job that this process itself may run in must not describe the new ones
    passed_on = {key: value for key, value in environment.items() if not key.startswith("SLURM_") or key == "SLURM_CONF"}
    argv = [argv[0], "--wait", *argv[1:]]
    try:
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=passed_on)
    except FileNotFoundError:
        raise ConfigError(
            f"There is no {argv[0]} here.",
            rule="an engine of kind slurm needs a machine that can submit jobs",
            next_step="Use engine.kind=local of this stage.",
        ) from None
    assert process.stdout is not None
    answer = process.stdout.readline()
    job_id = ""
    try:
        if answer.strip():
            job_id = job_id_in(answer)
            submitted(job_id)
        _, said = process.communicate()
    except BaseException:
        process.kill()
        if job_id:
            call_slurm(["scancel", job_id])
        raise
    if not job_id:
        raise ConfigError("sbatch refused the array.", where=shlex.join(argv), value=said.strip() or f"exit {process.returncode}")
