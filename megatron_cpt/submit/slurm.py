"""Slurm job lines as argument lists, built by pure functions. Overrides are passed on as they are and never spliced into a string."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_cpt.config.schema import ClusterConfig
from megatron_cpt.errors import ConfigError

STAGES = ("corpus", "vocab", "index", "init", "plan", "baseline", "train", "eval", "gate", "export", "report")
STAGES_ON_RANKS = ("baseline", "train", "eval")  # on all nodes and devices, through slurm/ranks.sh
SIGNAL_LEAD_SECONDS = 300  # Slurm warns this long before the time limit: several steps and the save of a checkpoint
NO_ENV_FILE = "-"


@dataclass(frozen=True)
class Job:
    """One job of the line: `argv` lacks the dependency, which is known only when the earlier jobs have their ids.

    `after` names the stages that it waits for; `condition` is Slurm's word for how they must have ended.
    """

    stage: str
    argv: tuple[str, ...]
    after: tuple[str, ...]
    condition: str = "afterok"

    def submit_argv(self, ids: Sequence[str]) -> list[str]:
        """Return the whole sbatch line for the ids of the jobs that this one waits for."""
        if not ids:
            return list(self.argv)
        return [self.argv[0], f"--dependency={self.condition}:{':'.join(ids)}", "--kill-on-invalid-dep=yes", *self.argv[1:]]


def sbatch_argv(
    stage: str, *, cluster: ClusterConfig, run_name: str, run_dir: Path, slurm_dir: Path, overrides: Sequence[str]
) -> tuple[str, ...]:
    """Return the sbatch line of one stage, without its dependency.

    Args:
        run_dir: the run's absolute folder; job logs go to its `slurm/`.
        slurm_dir: the folder of the job bodies.
        overrides: what the user typed after `submit`; each one stays one argument.
    """
    on_ranks = stage in STAGES_ON_RANKS
    argv = [
        "sbatch",
        "--parsable",
        f"--job-name={run_name}-{stage}",
        f"--nodes={cluster.num_nodes if on_ranks else 1}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={cluster.threads_per_rank * (cluster.ranks_per_node if on_ranks else 1)}",
        f"--output={run_dir}/slurm/{stage}-%j.out",
        "--open-mode=append",
    ]
    if on_ranks and cluster.backend == "cuda":
        argv.append(f"--gpus-per-node={cluster.ranks_per_node}")
    for option, value in (("partition", cluster.partition), ("account", cluster.account), ("time", cluster.time_limit)):
        if value is not None:
            argv.append(f"--{option}={value}")
    common = (cluster.env_file or NO_ENV_FILE, str(slurm_dir / "ranks.sh"))
    if stage == "train":
        argv += ["--requeue", f"--signal=B:USR1@{SIGNAL_LEAD_SECONDS}"]
        return (*argv, str(slurm_dir / "train.sbatch"), *common, str(run_dir), *overrides)
    return (*argv, str(slurm_dir / "stage.sbatch"), *common, stage, *overrides)


def line_of_jobs(
    *, cluster: ClusterConfig, run_name: str, run_dir: Path, slurm_dir: Path, overrides: Sequence[str], stages: Sequence[str] = STAGES
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
        argv = sbatch_argv(stage, cluster=cluster, run_name=run_name, run_dir=run_dir, slurm_dir=slurm_dir, overrides=overrides)
        after = () if before is None else (before,)
        jobs.append(Job(stage=stage, argv=argv, after=after, condition="afterany" if stage == "report" else "afterok"))
    return jobs
