"""The whole line as jobs of a real Slurm, two nodes of two ranks each on CPUs, with its records, its bill and its table."""

from __future__ import annotations

from pathlib import Path

import pytest
from submitting import cpt, logs, submit
from virtual_cluster import WATTS_PER_NODE, VirtualCluster

from megatron_cpt.record.store import read_json, read_lines
from megatron_cpt.submit.slurm import STAGES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def walked(slurm_cluster: VirtualCluster, cluster_workspace: Path) -> dict[str, str]:
    ids = submit(slurm_cluster, cluster_workspace, "whole")
    slurm_cluster.wait_for(ids["report"], seconds=400)
    return ids


def test_every_job_completes_and_the_line_ends_with_an_export(
    walked: dict[str, str], slurm_cluster: VirtualCluster, cluster_workspace: Path
) -> None:
    states = {stage: slurm_cluster.states(job_id) for stage, job_id in walked.items()}
    assert states == {stage: ["COMPLETED"] for stage in STAGES}, logs(cluster_workspace, "whole")
    assert (cluster_workspace / "runs" / "whole" / "export" / "hf" / "model.safetensors").is_file()
    outcome = read_json(cluster_workspace / "runs" / "whole" / "train" / "outcome.json")
    assert outcome["status"] == "finished"


def test_the_status_is_a_table_of_finished_stages_with_step_loss_and_spend(
    walked: dict[str, str], slurm_cluster: VirtualCluster, cluster_workspace: Path
) -> None:
    done = cpt(slurm_cluster, cluster_workspace, "status", "run_name=whole")
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.split()[:1] and line.split()[0] in STAGES]
    assert [(row[0], row[1], row[2], row[-1]) for row in rows] == [(stage, walked[stage], "COMPLETED", "finished") for stage in STAGES]
    assert "step 10 of 10" in done.stdout
    assert "emulated meter" in done.stdout


def test_the_emulated_joules_of_a_job_are_on_the_bill_marked_as_emulated(
    walked: dict[str, str], slurm_cluster: VirtualCluster, cluster_workspace: Path
) -> None:
    assert cpt(slurm_cluster, cluster_workspace, "status", "run_name=whole").returncode == 0  # settles what ended after the report
    lines = read_lines(cluster_workspace / "runs" / "whole" / "ledger.jsonl")
    (train,) = [line for line in lines if line["kind"] == "imported" and line["stage"] == "train"]
    seconds = float(slurm_cluster.out("sacct", "-nXP", "-j", walked["train"], "-o", "ElapsedRaw"))
    assert train["joules"] == pytest.approx(2 * WATTS_PER_NODE * seconds, abs=2 * WATTS_PER_NODE * 5)
    assert [(part["is_estimate"], "emulated" in part["method"]) for part in train["energy"]] == [(True, True)]
    assert (train["slurm"]["job_id"], train["state"]) == (walked["train"], "COMPLETED")


def test_a_second_submission_finds_only_the_report_to_do(
    walked: dict[str, str], slurm_cluster: VirtualCluster, cluster_workspace: Path
) -> None:
    ids = submit(slurm_cluster, cluster_workspace, "whole")
    assert list(ids) == ["report"]
    assert slurm_cluster.wait_for(ids["report"]) == ["COMPLETED"]
