"""The corpus stage as an array of a real Slurm: the same bytes as on one machine, and a rerun after an element was killed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from submitting import logs, submit
from virtual_cluster import NODES, VirtualCluster

from megatron_cpt.record.manifest import Manifest
from megatron_cpt.record.store import read_json

ROOT = Path(__file__).resolve().parents[2]
ON_SLURM = ("corpus.engine.kind=slurm", "corpus.engine.workers=3", "corpus.engine.task_mb=0.2")
pytestmark = pytest.mark.slow


def run_corpus(cluster: VirtualCluster, workspace: Path, name: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    line = (sys.executable, "-m", "megatron_cpt", "run", "--only", "corpus", "experiment=line", f"run_name={name}", *overrides)
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    return cluster.run(*line, "--config-dir", f"{workspace}/conf", cwd=workspace, env=environment, timeout_s=400)


def outputs(workspace: Path, name: str) -> dict[str, str]:
    return {path: file.sha256 for path, file in Manifest.load(workspace / "runs" / name / "corpus").outputs.items()}


def test_an_array_before_the_stages_job_gives_the_same_bytes_as_one_machine(slurm_cluster: VirtualCluster, cluster_workspace: Path) -> None:
    done = run_corpus(slurm_cluster, cluster_workspace, "corpus-here")
    assert done.returncode == 0, done.stdout + done.stderr
    submit(slurm_cluster, cluster_workspace, "corpus-array", *ON_SLURM, "--until", "corpus")
    run_dir = cluster_workspace / "runs" / "corpus-array"
    array, own = read_json(run_dir / "slurm" / "submission-1" / "jobs.json")["jobs"]
    assert (array["elements"], own["after_any"]) == ([0, 1, 2], [array["job_id"]])
    assert slurm_cluster.wait_for(own["job_id"], seconds=120) == ["COMPLETED"], logs(cluster_workspace, "corpus-array")
    assert slurm_cluster.states(array["job_id"]) == ["COMPLETED"] * 3
    said = (run_dir / "slurm" / f"corpus-{own['job_id']}.out").read_text()
    assert re.search(r" (\d+) of \1 tasks were done before", said), said
    assert outputs(cluster_workspace, "corpus-array") == outputs(cluster_workspace, "corpus-here")
    assert not (run_dir / ".corpus.scratch").exists()


def test_a_cancelled_element_is_named_by_its_file_and_a_rerun_gives_the_same_bytes(
    slurm_cluster: VirtualCluster, cluster_workspace: Path
) -> None:
    """The nodes are drained first, so that the elements wait and one can be cancelled for certain."""
    text = cluster_workspace / "text" / "wide.jsonl"
    rows = ({"text": hashlib.sha256(b"%d" % number).hexdigest() * 20} for number in range(4000))
    text.write_text("".join(json.dumps(row) + "\n" for row in rows))
    held = ("source.replay.path=text/wide.jsonl", *ON_SLURM)
    nodes = f"NodeName={','.join(NODES)}"
    slurm_cluster.out("scontrol", "update", nodes, "State=DRAIN", "Reason=held")
    with ThreadPoolExecutor() as pool:
        running = pool.submit(run_corpus, slurm_cluster, cluster_workspace, "corpus-killed", *held)
        try:
            last = time.monotonic() + 60
            while not (waiting := slurm_cluster.out("squeue", "-h", "-n", "corpus-killed-corpus-tasks", "-o", "%A").split()):
                assert time.monotonic() < last, running.result(timeout=5)
                time.sleep(0.5)
            slurm_cluster.out("scancel", f"{waiting[0]}_1")
        finally:
            slurm_cluster.out("scontrol", "update", nodes, "State=RESUME")
        done = running.result()
    assert done.returncode == 1, done.stdout + done.stderr
    assert "An element of the array ended before task" in done.stderr
    assert ".jsonl" in done.stderr
    for name, overrides in (("corpus-killed", held), ("corpus-whole", held[:1])):
        done = run_corpus(slurm_cluster, cluster_workspace, name, *overrides)
        assert done.returncode == 0, done.stdout + done.stderr
    assert outputs(cluster_workspace, "corpus-killed") == outputs(cluster_workspace, "corpus-whole")
