"""The sbatch lines by recorded expectation, and a submission against a Slurm that answers, refuses or is absent."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from megatron_cpt.config.schema import ClusterConfig
from megatron_cpt.errors import ConfigError, CptError
from megatron_cpt.submit.slurm import STAGES, line_of_jobs
from megatron_cpt.submit.submit import call_slurm, submit_line

ROOT = Path(__file__).parents[3]
H100 = ClusterConfig(
    backend="cuda",
    num_nodes=4,
    ranks_per_node=8,
    threads_per_rank=8,
    partition="gpu",
    account="law",
    time_limit="24:00:00",
    env_file="env.sh",
)
ODD = ["tokenizer.document_separator=#end, 文", "model.path=/data/epoch=9-step=1.ckpt", "run_name=$(touch x);y"]


def jobs(run_dir: Path, *, cluster: ClusterConfig = H100, stages: Sequence[str] = STAGES, overrides: Sequence[str] = ODD) -> list:
    return line_of_jobs(cluster=cluster, run_name="r", run_dir=run_dir, slurm_dir=ROOT / "slurm", overrides=overrides, stages=stages)


def test_the_train_job_asks_for_one_launcher_a_node_all_gpus_and_a_warning_to_the_batch_shell() -> None:
    (job,) = jobs(Path("/runs/r"), stages=["train"])
    assert list(job.argv) == [
        "sbatch", "--parsable", "--job-name=r-train", "--nodes=4", "--ntasks-per-node=1", "--cpus-per-task=64",
        "--output=/runs/r/slurm/train-%j.out", "--open-mode=append", "--gpus-per-node=8", "--partition=gpu", "--account=law",
        "--time=24:00:00", "--requeue", "--signal=B:USR1@300", f"{ROOT}/slurm/train.sbatch", "env.sh", f"{ROOT}/slurm/ranks.sh",
        "/runs/r", *ODD,
    ]  # fmt: skip


def test_a_stage_without_devices_asks_for_one_core_group_and_no_gpu() -> None:
    (job,) = jobs(Path("/runs/r"), stages=["corpus"])
    assert not [part for part in job.argv if "gpus" in part]
    assert "--nodes=1" in job.argv
    assert list(job.argv[-6:]) == ["env.sh", f"{ROOT}/slurm/ranks.sh", "corpus", *ODD]


def test_a_cpu_cluster_without_partition_or_environment_names_none() -> None:
    (job,) = jobs(Path("/runs/r"), cluster=ClusterConfig(backend="cpu", num_nodes=2, ranks_per_node=2), stages=["train"], overrides=[])
    assert not [part for part in job.argv if part.startswith(("--gpus", "--partition", "--account", "--time"))]
    assert list(job.argv[-3:]) == ["-", f"{ROOT}/slurm/ranks.sh", "/runs/r"]


class Slurm:
    """Answers sbatch with rising ids, as `--parsable` does on a federated cluster, until it is told to refuse."""

    def __init__(self, *, refuse_at: int | None = None) -> None:
        self.calls: list[list[str]] = []
        self.refuse_at = refuse_at

    def __call__(self, argv: Sequence[str]) -> str:
        self.calls.append(list(argv))
        if argv[0] == "scancel":
            return ""
        if len(self.calls) == self.refuse_at:
            raise ConfigError("sbatch refused a job.", value="QOSMaxWallDurationPerJobLimit")
        return f"{100 + len(self.calls)};cluster\n"


def test_each_job_waits_for_the_one_before_it_and_the_report_for_the_end_good_or_bad(tmp_path: Path) -> None:
    slurm = Slurm()
    found = submit_line(jobs(tmp_path), dry_run=False, call=slurm)
    waits = [next((part for part in argv if part.startswith("--dependency")), None) for argv in slurm.calls]
    assert waits == [None, *(f"--dependency=afterok:{100 + number}" for number in range(1, 10)), "--dependency=afterany:110"]
    assert found.job_ids == {stage: str(101 + number) for number, stage in enumerate(STAGES)}
    assert all(argv[-3:] == ODD for argv in slurm.calls)  # untouched, one argument each
    assert (tmp_path / "slurm").is_dir()


def test_a_dry_run_shows_lines_that_a_shell_reads_back_and_calls_nothing(tmp_path: Path) -> None:
    slurm = Slurm()
    found = submit_line(jobs(tmp_path), dry_run=True, call=slurm)
    assert slurm.calls == []
    assert found.job_ids == {}
    assert list(tmp_path.iterdir()) == []
    assert shlex.split(found.lines[0])[-3:] == ODD
    assert "--dependency=afterok:<corpus>" in shlex.split(found.lines[1])
    assert sorted(Path(path).name for path in found.scripts) == ["stage.sbatch", "train.sbatch"]
    assert all(text.startswith("#!/bin/bash\n") for text in found.scripts.values())


def test_a_line_that_slurm_refuses_half_way_is_taken_back(tmp_path: Path) -> None:
    slurm = Slurm(refuse_at=4)
    with pytest.raises(ConfigError, match="QOSMaxWallDurationPerJobLimit"):
        submit_line(jobs(tmp_path), dry_run=False, call=slurm)
    assert slurm.calls[-1] == ["scancel", "101", "102", "103"]
    assert len(slurm.calls) == 5


def test_an_answer_without_an_id_takes_the_line_back(tmp_path: Path) -> None:
    calls = []

    def odd(argv: Sequence[str]) -> str:
        calls.append(list(argv))
        return "101" if len(calls) == 1 else "Submitted something"

    with pytest.raises(CptError, match="no job id"):
        submit_line(jobs(tmp_path), dry_run=False, call=odd)
    assert calls[-1] == ["scancel", "101"]


def test_a_machine_without_slurm_is_told_what_to_do() -> None:
    with pytest.raises(ConfigError, match="There is no sbatch-that-is-absent here") as caught:
        call_slurm(["sbatch-that-is-absent"])
    assert "--dry-run" in str(caught.value)


def test_slurms_own_reason_is_shown(tmp_path: Path) -> None:
    script = tmp_path / "sbatch"
    script.write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: gpu' >&2\nexit 1\n", encoding="utf-8")
    script.chmod(0o755)
    with pytest.raises(ConfigError, match="invalid partition specified: gpu"):
        call_slurm([str(script)])


def test_an_unknown_stage_is_refused() -> None:
    with pytest.raises(ConfigError, match="trian"):
        jobs(Path("/runs/r"), stages=["trian"])


@pytest.mark.parametrize(
    "path", sorted([*ROOT.glob("slurm/*.sbatch"), *ROOT.glob("slurm/**/*.sh"), *ROOT.glob("launch/*.sh")]), ids=lambda path: path.name
)
def test_every_shell_file_parses_and_stops_at_the_first_failure(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)
    if path.parent.name != "env":
        assert "set -euo pipefail" in path.read_text(encoding="utf-8")
