"""A run that is longer than its time limit goes on in the same job, warned by Slurm itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from submitting import copy_prepared, logs, losses, submit
from virtual_cluster import VirtualCluster

from megatron_cpt.record.store import read_lines

pytestmark = pytest.mark.long
# 384 steps, 40 to 120 s of two cores. The warning comes 10 s, two saves and two steps before the end, and 20 s go to the start
LONG_RUN = ("blend.num_tokens=393216", "blend.max_epochs=200", "cluster.checkpoint_seconds=30", "--until", "train")


def test_a_run_longer_than_its_time_limit_chains_itself_and_has_the_losses_of_one_that_had_the_time(
    slurm_cluster: VirtualCluster, cluster_workspace: Path
) -> None:
    """Limits are in minutes and Slurm looks at them every half minute, so this takes minutes too."""
    free = submit(slurm_cluster, cluster_workspace, "free", *LONG_RUN)["train"]
    assert slurm_cluster.wait_for(free, seconds=400) == ["COMPLETED"], logs(cluster_workspace, "free")
    copy_prepared(cluster_workspace, "short", source="free")
    short = submit(slurm_cluster, cluster_workspace, "short", *LONG_RUN, 'cluster.time_limit="2"')["train"]
    ends = slurm_cluster.wait_for(short, "COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", seconds=900)
    assert (ends[-1], set(ends[:-1])) == ("COMPLETED", {"REQUEUED"}), logs(cluster_workspace, "short")
    assert "SIGUSR1 came" in logs(cluster_workspace, "short")
    assert losses(cluster_workspace, "short") == losses(cluster_workspace, "free")
    lines = read_lines(cluster_workspace / "runs" / "short" / "ledger.jsonl")
    starts = [line["slurm"] for line in lines if line["kind"] == "start" and line["stage"] == "train"]
    assert [(start["job_id"], start["restart"]) for start in starts] == [(short, number) for number in range(len(ends))]
