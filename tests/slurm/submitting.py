"""`megatron-cpt` on the virtual cluster: commands of the login node, and what the records of its runs say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from virtual_cluster import VirtualCluster

from megatron_cpt.record.store import read_json, read_lines

ROOT = Path(__file__).resolve().parents[2]
TWO_BY_TWO = (
    "cluster.num_nodes=2", "cluster.ranks_per_node=2", "cluster.has_emulated_meter=true", "cluster.checkpoint_seconds=5",
)  # fmt: skip


def cpt(
    cluster: VirtualCluster, workspace: Path, command: str, *arguments: str, user: str = "root", overrides: tuple[str, ...] = TWO_BY_TWO
) -> subprocess.CompletedProcess[str]:
    """Run a `megatron-cpt` command on the login node of the cluster."""
    line = (sys.executable, "-m", "megatron_cpt", command, *arguments, "experiment=line", *overrides, "--config-dir", f"{workspace}/conf")
    environment = dict(os.environ, PYTHONPATH=str(ROOT), WANDB_MODE="offline")
    return cluster.run(*line, user=user, cwd=workspace, env=environment)


def submit(cluster: VirtualCluster, workspace: Path, name: str, *overrides: str, user: str = "root") -> dict[str, str]:
    """Submit a run of the line and return its job ids by stage."""
    done = cpt(cluster, workspace, "submit", f"run_name={name}", *overrides, user=user)
    assert done.returncode == 0, done.stdout + done.stderr
    newest = max((workspace / "runs" / name / "slurm").glob("submission-*"), key=lambda path: int(path.name.split("-")[1]))
    return {job["stage"]: job["job_id"] for job in read_json(newest / "jobs.json")["jobs"]}


def logs(workspace: Path, name: str) -> str:
    """Return what the jobs of a run printed, for a test that failed."""
    paths = sorted((workspace / "runs" / name / "slurm").glob("*.out"), key=lambda path: path.stat().st_mtime)
    return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in paths)


def steps(workspace: Path, name: str) -> list[dict[str, Any]]:
    return [record for record in read_lines(workspace / "runs" / name / "train" / "metrics.jsonl") if record.get("kind") == "step"]
