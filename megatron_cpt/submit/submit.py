"""Submits a line of jobs. The only module that calls Slurm, by argument lists; a submission that fails half-way is taken back."""

from __future__ import annotations

import contextlib
import re
import shlex
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_cpt.errors import ConfigError, CptError
from megatron_cpt.submit.slurm import Job

TIMEOUT_SECONDS = 120
Call = Callable[[Sequence[str]], str]


@dataclass(frozen=True)
class Submission:
    """What was, or in a dry run would be, sent to Slurm.

    Attributes:
        lines: each sbatch line, quoted for a shell; in a dry run the ids of earlier jobs read `<name>`.
        job_ids: by name, which is the stage, or `<stage>-tasks` of an array; empty in a dry run.
    """

    lines: tuple[str, ...]
    job_ids: dict[str, str]


def call_slurm(argv: Sequence[str]) -> str:
    """Run one Slurm command and return what it printed.

    Raises:
        CptError: the command is missing, refused the request or did not answer; Slurm's own reason is shown.
    """
    try:
        answer = subprocess.run(list(argv), capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    except FileNotFoundError:
        raise ConfigError(
            f"There is no {argv[0]} here.",
            rule="submit, status and cancel run on a Slurm login node",
            next_step="Use --dry-run to see the lines, or `megatron-cpt run` for one machine.",
        ) from None
    except subprocess.TimeoutExpired:
        raise CptError(f"{argv[0]} did not answer in {TIMEOUT_SECONDS} s.", value=shlex.join(argv)) from None
    if answer.returncode != 0:
        refused = "refused a job" if argv[0] == "sbatch" else "failed"
        raise ConfigError(f"{argv[0]} {refused}.", where=shlex.join(argv), value=answer.stderr.strip() or f"exit {answer.returncode}")
    return answer.stdout


def submit_line(jobs: Sequence[Job], *, dry_run: bool, call: Call = call_slurm) -> Submission:
    """Submit jobs in order, each with its dependency on earlier ones.

    The first is held until all are in: what refuses a later one must not find an earlier one at work.

    Raises:
        CptError: Slurm refused a job. Those already submitted are cancelled first, so that nothing is left behind.
    """
    ids: dict[str, str] = {}
    lines = []
    try:
        for job in jobs:
            argv = job.submit_argv({name: f"<{name}>" for name in (*job.after, *job.after_any)} if dry_run else ids)
            if not ids and not dry_run:
                argv.insert(1, "--hold")
            lines.append(shlex.join(argv))
            if not dry_run:
                Path(_log_folder(argv)).mkdir(parents=True, exist_ok=True)  # Slurm fails a job whose log it cannot open, without a word
                ids[job.name] = job_id_in(call(argv))
        if ids:
            call(["scontrol", "release", ids[jobs[0].name]])
    except BaseException:
        _take_back([*ids.values()], jobs, call=call)
        raise
    return Submission(lines=tuple(lines), job_ids=ids)


def _take_back(job_ids: Sequence[str], jobs: Sequence[Job], *, call: Call) -> None:
    """Cancel jobs, and those whose sbatch was interrupted before it named them: their script is the submission's own.

    Raises:
        CptError: Slurm does not cancel them; their ids are named.
    """
    scripts = {part for job in jobs for part in job.argv if part.endswith(".sbatch")}
    unnamed = []
    with contextlib.suppress(CptError):
        lines = [line.strip().partition("|") for line in call(["squeue", "--noheader", "--format=%i|%o"]).splitlines()]
        # the script, then its arguments
        ours = [job_id for job_id, _, command in lines if any(f"{command} ".startswith(f"{script} ") for script in scripts)]
        unnamed = [job_id for job_id in ours if job_id not in job_ids]
    taken = [*job_ids, *unnamed]
    if not taken:
        return
    try:
        call(["scancel", *taken])
    except CptError as error:
        raise CptError(
            "A line that was not submitted as a whole could not be taken back.",
            where=shlex.join(["scancel", *taken]),
            value=str(error).splitlines()[0],
            next_step="Run that scancel when Slurm answers again.",
        ) from error


def job_id_in(answer: str) -> str:
    """Read the id from `sbatch --parsable`, which prints `id` or `id;cluster`."""
    found = re.fullmatch(r"(\d+)(;\S+)?", answer.strip())
    if found is None:
        raise CptError("sbatch printed no job id.", value=answer.strip(), rule="sbatch --parsable prints `id` or `id;cluster`")
    return found[1]


def _log_folder(argv: Sequence[str]) -> str:
    (output,) = [part.partition("=")[2] for part in argv if part.startswith("--output=")]
    return str(Path(output).parent)
