"""An array of equal jobs that a stage submits and waits for: each does its share of the stage's tasks."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from megatron_cpt.config.schema import ClusterConfig
from megatron_cpt.errors import ConfigError
from megatron_cpt.submit.submit import call_slurm


def array_argv(name: str, *, cluster: ClusterConfig, body: Path, logs: Path, num_elements: int, command: Sequence[str]) -> list[str]:
    """Return the sbatch line of an array of `num_elements` jobs of one core, which returns when all have ended.

    Args:
        body: the job body; it gets the command, each word one argument.
        logs: an existing folder for what the elements print.
    """
    argv = [
        "sbatch",
        "--parsable",
        "--wait",
        f"--job-name={name}",
        f"--array=0-{num_elements - 1}",
        "--nodes=1",
        "--ntasks=1",
        "--cpus-per-task=1",
        "--export=ALL",  # the command names its interpreter; the libraries are where this process found them
        f"--output={logs}/element_%a.log",
        "--open-mode=append",
    ]
    for option, value in (("partition", cluster.partition), ("account", cluster.account), ("time", cluster.time_limit)):
        if value is not None:
            argv.append(f"--{option}={value}")
    return [*argv, str(body), *command]


def submit_and_wait(argv: Sequence[str], *, environment: Mapping[str, str]) -> None:
    """Submit jobs with `sbatch --wait` and return when they have ended, well or not; when this process is stopped they are cancelled.

    Raises:
        ConfigError: there is no sbatch, or it refused the jobs; Slurm's own reason is shown.
    """
    # what describes the job that this stage itself may run in must not describe the new ones
    passed_on = {key: value for key, value in environment.items() if not key.startswith("SLURM_") or key == "SLURM_CONF"}
    try:
        process = subprocess.Popen(list(argv), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=passed_on)
    except FileNotFoundError:
        raise ConfigError(
            f"There is no {argv[0]} here.",
            where="corpus.engine.kind",
            rule="slurm needs a machine that can submit jobs",
            next_step="Use corpus.engine.kind=local.",
        ) from None
    assert process.stdout is not None
    job_id = process.stdout.readline().strip().partition(";")[0]
    try:
        _, said = process.communicate()
    except BaseException:
        process.kill()
        if job_id:
            call_slurm(["scancel", job_id])
        raise
    if not job_id:
        raise ConfigError("sbatch refused the array.", where=shlex.join(argv), value=said.strip() or f"exit {process.returncode}")
