"""The cluster itself does what the tests of the line on it rely on."""

from __future__ import annotations

from pathlib import Path

import pytest
from cluster_files import WATTS_PER_NODE
from virtual_cluster import NODES, VirtualCluster


def test_every_node_runs_a_step_under_its_own_name(slurm_cluster: VirtualCluster) -> None:
    names = slurm_cluster.out("srun", "--nodes=4", "hostname").split()
    assert sorted(names) == sorted(NODES)
    assert slurm_cluster.out("scontrol", "show", "hostnames", "n[1-2],rack-7-b,spare").split() == list(NODES)


@pytest.mark.parametrize(
    ("nodes", "names"),
    [
        ("linux[1,2]", "linux1 linux2"),
        ("node[01-03]", "node01 node02 node03"),
        ("node[001,003]", "node001 node003"),
        ("rack[1-2]-node[8-9]", "rack1-node8 rack1-node9 rack2-node8 rack2-node9"),
        ("login,gpu-a-[09-10],x", "login gpu-a-09 gpu-a-10 x"),
    ],
)
def test_the_scheduler_expands_what_no_script_here_cuts_by_hand(nodes: str, names: str, slurm_cluster: VirtualCluster) -> None:
    assert slurm_cluster.out("scontrol", "show", "hostnames", nodes).split() == names.split()


def test_a_job_of_two_nodes_is_in_accounting_with_the_joules_of_their_emulated_meters(slurm_cluster: VirtualCluster) -> None:
    job = slurm_cluster.out("sbatch", "--parsable", "--nodes=2", "--output=%j.out", "--wrap", "srun sleep 10")
    assert slurm_cluster.wait_for(job) == ["COMPLETED"]
    elapsed, joules = slurm_cluster.out("sacct", "-nXP", "-j", job, "-o", "ElapsedRaw,ConsumedEnergyRaw").split("|")
    expected = 2 * WATTS_PER_NODE * float(elapsed)
    # whole seconds, and a reading each second at either end, later on a busy machine; one node's alone would be the half
    assert 0.6 * expected <= float(joules) <= 1.3 * expected


def test_a_user_without_root_gets_a_job_of_their_own(slurm_cluster: VirtualCluster) -> None:
    job = slurm_cluster.out("sbatch", "--parsable", "--output=%j.nobody", "--wrap", "id -un", user="nobody")
    assert slurm_cluster.wait_for(job) == ["COMPLETED"]
    written = slurm_cluster.shared / f"{job}.nobody"
    assert (written.read_text().strip(), written.owner()) == ("nobody", "nobody")


def test_a_killed_node_fails_its_job_which_runs_again_elsewhere(slurm_cluster: VirtualCluster, tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/bash\nhostname; [[ -n $SLURM_RESTART_COUNT ]] || exec sleep 100\n")
    lines = ("--requeue", "--open-mode=append", "--output=%j.out", "--nodelist=spare")
    job = slurm_cluster.out("sbatch", "--parsable", *lines, str(script))
    slurm_cluster.wait_for(job, "RUNNING")
    slurm_cluster.kill_node("spare")
    slurm_cluster.out("scontrol", "update", "nodename=spare", "state=down", "reason=test")  # at once, not after SlurmdTimeout
    slurm_cluster.out("scontrol", "update", f"jobid={job}", "nodelist=")
    assert slurm_cluster.wait_for(job, "COMPLETED") == ["NODE_FAIL", "COMPLETED"]
    ran_on = [line for line in (slurm_cluster.shared / f"{job}.out").read_text().splitlines() if line in NODES]
    assert ran_on[0] == "spare"
    assert ran_on[1:] != ["spare"]
    slurm_cluster.start_node("spare")
    slurm_cluster.out("scontrol", "update", "nodename=spare", "state=resume")
    assert slurm_cluster.out("srun", "--nodelist=spare", "hostname") == "spare"
