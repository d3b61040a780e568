"""A run that is longer than its time limit goes on in the same job, warned by Slurm itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from submitting import logs, losses, submit
from virtual_cluster import VirtualCluster

pytestmark = pytest.mark.long


def test_a_run_longer_than_its_time_limit_chains_itself_and_has_the_losses_of_one_that_had_the_time(
    slurm_cluster: VirtualCluster, cluster_workspace: Path
) -> None:
    """Limits are in minutes and Slurm looks at them every half minute, so this takes minutes too."""
    longer = ("blend.num_tokens=524288", "blend.max_epochs=200")  # 512 steps
    short = submit(slurm_cluster, cluster_workspace, "short", *longer, 'cluster.time_limit="2"', "--until", "train")["train"]
    ends = slurm_cluster.wait_for(short, "COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", seconds=900)
    assert set(ends[:-1]) == {"REQUEUED"}, logs(cluster_workspace, "short")
    assert ends[-1] == "COMPLETED"
    assert "SIGUSR1 came" in logs(cluster_workspace, "short")
    free = submit(slurm_cluster, cluster_workspace, "free", *longer, "--until", "train")["train"]
    assert slurm_cluster.wait_for(free, seconds=600) == ["COMPLETED"]
    assert losses(cluster_workspace, "short") == losses(cluster_workspace, "free")
