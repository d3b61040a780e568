"""The index as an array of a submitted line, on a real Slurm: a killed and a requeued element are done again, they alone."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from submitting import cpt, logs
from virtual_cluster import NODES, VirtualCluster

from megatron_cpt.meter.attempts import attempts_of
from megatron_cpt.record.manifest import Manifest
from megatron_cpt.record.store import read_json, read_lines

pytestmark = pytest.mark.slow
# Sourced by every job: at the first start of element 0 it is put back into the queue, and at that of element 1 its shell is killed.
STRUCK = """\
PATH={python}:$PATH
if [[ ${{SLURM_ARRAY_TASK_ID:-}} && $SLURM_JOB_NAME == *-index-tasks && ! -e {marks}/$SLURM_ARRAY_TASK_ID ]]; then
  touch {marks}/$SLURM_ARRAY_TASK_ID
  sleep 1.5 # Slurm counts whole seconds
  if [[ $SLURM_ARRAY_TASK_ID == 0 ]]; then scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_0" && sleep 60; fi
  kill -KILL $$
fi
"""


def outputs(workspace: Path, name: str) -> dict[str, str]:
    return {path: file.sha256 for path, file in Manifest.load(workspace / "runs" / name / "index").outputs.items()}


def ran(cluster: VirtualCluster, workspace: Path, *arguments: str) -> str:
    done = cpt(cluster, workspace, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def undivided(slurm_cluster: VirtualCluster, cluster_workspace: Path) -> dict[str, str]:
    """The digests of the files that the stage writes by itself, in the run `undivided`."""
    ran(slurm_cluster, cluster_workspace, "run", "run_name=undivided", "--until", "index")
    return outputs(cluster_workspace, "undivided")


def copy_until_vocab(workspace: Path, name: str) -> None:
    for stage in ("corpus", "vocab"):
        shutil.copytree(workspace / "runs" / "undivided" / stage, workspace / "runs" / name / stage)


def test_a_killed_and_a_requeued_element_are_done_again_alone_and_the_bytes_are_those_of_the_undivided_index(
    undivided: dict[str, str], slurm_cluster: VirtualCluster, cluster_workspace: Path
) -> None:
    runs, marks = cluster_workspace / "runs", cluster_workspace / "marks"
    marks.mkdir()
    env_file = cluster_workspace / "struck.sh"
    env_file.write_text(STRUCK.format(python=Path(sys.executable).parent, marks=marks))
    copy_until_vocab(cluster_workspace, "divided")
    struck = ("run_name=divided", f"cluster.env_file={env_file}")
    shown = ran(slurm_cluster, cluster_workspace, "submit", *struck, "--until", "index", "--dry-run")
    assert "--array=0-1" in shown
    assert "element.sbatch FROZEN STAGE NUM_SHARES" in shown
    ran(slurm_cluster, cluster_workspace, "submit", *struck, "--until", "index")
    array, own = read_json(runs / "divided" / "slurm" / "submission-1" / "jobs.json")["jobs"]
    assert slurm_cluster.wait_for(own["job_id"], seconds=120) == ["COMPLETED"], logs(cluster_workspace, "divided")
    rows = slurm_cluster.out("sacct", "--duplicates", "-nXP", f"--jobs={array['job_id']}", "-o", "JobID,State").splitlines()
    first, second = f"{array['job_id']}_0", f"{array['job_id']}_1"
    assert sorted(rows) == [f"{first}|COMPLETED", f"{first}|REQUEUED", f"{second}|FAILED"]
    log = (runs / "divided" / "slurm" / f"index-{own['job_id']}.out").read_text().splitlines()
    said = {line.split(":")[0].strip(): "finished before" in line for line in log if " documents, " in line}
    assert said == {"code": True, "replay": False}  # the stage's own job has done the killed element's source, and no other
    assert outputs(cluster_workspace, "divided") == undivided
    for _ in range(2):  # the second look adds nothing to the bill
        shown = ran(slurm_cluster, cluster_workspace, "status", *struck)
        assert "1 of 2 elements done; killed by signal 9: 1" in shown
        billed = [record for record in attempts_of(runs / "divided") if record.stage == "index"]
        assert sorted(record.status for record in billed) == ["failed", "finished", "finished", "stopped"]
    tokens = Manifest.load(runs / "divided" / "index").facts["sources"]
    assert sum(record.tokens for record in billed) == sum(facts["tokens"] for facts in tokens.values())
    elements = [
        line
        for line in read_lines(runs / "divided" / "ledger.jsonl")
        if line["kind"] == "imported" and line["slurm"]["job_id"] != own["job_id"]
    ]
    assert sorted(line["state"] for line in elements) == ["FAILED", "REQUEUED"]


def test_cancel_takes_an_array_out_of_the_queue_and_another_submission_has_the_elements_that_are_left(
    undivided: dict[str, str], slurm_cluster: VirtualCluster, cluster_workspace: Path
) -> None:
    copy_until_vocab(cluster_workspace, "left")
    until = ("run_name=left", "--until", "index")
    ran(slurm_cluster, cluster_workspace, "run", "--only", "index", "--share", "1/2", "run_name=left")
    nodes = f"NodeName={','.join(NODES)}"
    slurm_cluster.out("scontrol", "update", nodes, "State=DRAIN", "Reason=held")  # so that the element waits
    try:
        ran(slurm_cluster, cluster_workspace, "submit", *until)
        assert "cancelled: index-tasks, index" in ran(slurm_cluster, cluster_workspace, "cancel", "run_name=left")
        assert slurm_cluster.out("squeue", "--noheader", "--format=%j") == ""
    finally:
        slurm_cluster.out("scontrol", "update", nodes, "State=RESUME")
    ran(slurm_cluster, cluster_workspace, "submit", *until)
    array, own = read_json(cluster_workspace / "runs" / "left" / "slurm" / "submission-2" / "jobs.json")["jobs"]
    assert array["elements"] == [0]
    assert slurm_cluster.wait_for(own["job_id"], seconds=120) == ["COMPLETED"], logs(cluster_workspace, "left")
    assert slurm_cluster.states(array["job_id"]) == ["COMPLETED"]
    assert outputs(cluster_workspace, "left") == undivided
