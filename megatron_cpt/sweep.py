"""The jobs of a sweep (`-m`): a run for each combination of values, named by its values; one that fails does not stop the others."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_cpt.errors import EXIT_BUDGET, EXIT_FINISHED, EXIT_ROLLED_BACK, EXIT_STOPPED, DataError
from megatron_cpt.record.hashing import sha256_text
from megatron_cpt.report.comparison.command import FOLDER_NAME, is_run, write_comparison

if TYPE_CHECKING:
    from megatron_cpt.config.schema import ExperimentConfig

LONGEST_NAME = 100  # characters; file systems take 255 bytes, and Slurm's listings far fewer
EXIT_INTERRUPTED = 130
ENDS_A_SWEEP = (EXIT_STOPPED, EXIT_INTERRUPTED)  # someone asked for it to end, and not one job alone
WORDS = {
    EXIT_FINISHED: "finished",
    EXIT_ROLLED_BACK: "rolled back",
    EXIT_BUDGET: "stopped at its budget",
    EXIT_STOPPED: "stopped with a checkpoint",
    EXIT_INTERRUPTED: "interrupted",
}
UNKNOWN_OR_DATA = "data at fault, or a verdict that is unknown: exit code 3"
_MILDEST_LAST = (EXIT_INTERRUPTED, EXIT_STOPPED, EXIT_BUDGET, EXIT_ROLLED_BACK, EXIT_FINISHED)


@dataclass(frozen=True)
class Job:
    """One job: its overrides, those of them that the sweep varies, its configuration, and the folders of the sweep's other runs."""

    overrides: tuple[str, ...]
    varied: tuple[str, ...]
    config: ExperimentConfig
    siblings: tuple[Path, ...] = ()

    @property
    def folder(self) -> Path:
        return Path(self.config.runs_dir).resolve() / self.config.run_name


def jobs_of(overrides: Sequence[str], expanded: Sequence[Sequence[str]], compose: Callable[[Sequence[str]], ExperimentConfig]) -> list[Job]:
    """Compose every job before the first one runs, and give each run a name of its own.

    Args:
        overrides: as typed; `expanded` has those of each job, in the same places.

    Raises:
        ConfigError: of the first job whose configuration is not valid.
    """
    jobs = []
    for of_job in expanded:
        varied = tuple(now for typed, now in zip(overrides, of_job, strict=True) if now != typed)
        jobs.append(Job(tuple(of_job), varied, compose(of_job)))
    for job, name in zip(jobs, names([job.config.run_name for job in jobs], [job.varied for job in jobs]), strict=True):
        job.config.run_name = name
    folders = [job.folder for job in jobs]
    return [replace(job, siblings=tuple(folder for folder in folders if folder != job.folder)) for job in jobs]


def names(run_names: Sequence[str], varied: Sequence[Sequence[str]]) -> list[str]:
    """Return names for runs: the configured ones, with the values that the sweep varies where those do not tell them apart.

    A value keeps its name when other values join the sweep, so a larger sweep goes on from the runs of a smaller one. Only jobs that
    are equal in every value get one name, and are one run.
    """
    if len(set(run_names)) == len(run_names):
        return list(run_names)
    keys = {override.partition("=")[0].lstrip("+~") for of_job in varied for override in of_job} - {"run_name"}
    found: list[str] = []
    for name, of_job in zip(run_names, varied, strict=True):
        pairs = [override.partition("=")[::2] for override in of_job]
        parts = [f"{_short(key.lstrip('+~'), keys)}_{value}" for key, value in pairs if key.lstrip("+~") in keys]
        full = "-".join([name, *(re.sub(r"[^A-Za-z0-9._-]+", "_", part).strip("_") for part in parts)])
        if len(full) > LONGEST_NAME or full in found:
            full = f"{full[: LONGEST_NAME - 9]}-{sha256_text(' '.join(of_job))[:8]}"
        found.append(full)
    return found


def _short(key: str, keys: set[str]) -> str:
    """Return the last part of a key, or as many of its last parts as tell it from the others."""
    parts = key.split(".")
    for count in range(1, len(parts) + 1):
        short = ".".join(parts[-count:])
        if sum(other == short or other.endswith(f".{short}") for other in keys) == 1:
            return short
    return key


def run_jobs(
    jobs: Sequence[Job], do: Callable[[Job], int], *, say: Callable[[str], None], is_fail_fast: bool = False, sums_up: bool = True
) -> int:
    """Do every job and return the exit code of the sweep: that of its gravest end.

    A failure outweighs a stop, a stop a budget, a budget a rollback; of several failures the first one counts. Where someone stopped a job,
    the rest of the sweep is not begun. A rollback is a verdict and no failure.

    Args:
        do: does a job and returns its exit code, having said what went wrong.
        is_fail_fast: begin no further job after one that failed.
        sums_up: end with a line a job that says how it ended.
    """
    codes: list[int] = []
    for number, job in enumerate(jobs, 1):
        say(f"== job {number} of {len(jobs)}: {job.config.run_name} ({' '.join(job.varied)})")
        codes.append(do(job))
        if codes[-1] in ENDS_A_SWEEP or (is_fail_fast and codes[-1] not in WORDS):
            break
    if not sums_up:
        return gravest(codes)
    width = max(len(job.config.run_name) for job in jobs)
    say("")
    for job, code in zip(jobs, [*codes, *[None] * (len(jobs) - len(codes))], strict=True):
        ended = UNKNOWN_OR_DATA if code == DataError.exit_code else f"failed, exit code {code}"
        said = "not begun" if code is None else WORDS.get(code, ended)
        say(f"{job.config.run_name:<{width}}  {said}")
    return gravest(codes)


def gravest(codes: Sequence[int]) -> int:
    """Return the exit code that stands for several."""
    failed = [code for code in codes if code not in _MILDEST_LAST]
    return failed[0] if failed else min(codes, key=_MILDEST_LAST.index, default=EXIT_FINISHED)


def comparison_of(jobs: Sequence[Job], *, is_over: bool) -> str:
    """Return what to type to compare the runs of a sweep; where it is over, write the comparison first and show it."""
    folders = [job.folder for job in jobs if is_run(job.folder)]
    runs_dir, *others = dict.fromkeys(job.config.runs_dir for job in jobs)
    words = [str(job.folder) if others else job.config.run_name for job in jobs if not is_over or job.folder in folders]
    shared = os.path.commonprefix([job.config.run_name for job in jobs]).rstrip("-_.") or "sweep"
    out = Path(runs_dir) / f"{shared}-{FOLDER_NAME}"
    typed = shlex.join(["megatron-cpt", "compare", *words, "--runs-dir", runs_dir, "--out", str(out)])
    if not is_over:
        return f"When they are through: {typed}"
    return f"{write_comparison(folders, out)}again      {typed}" if folders else "No job came so far that there is something to compare."
