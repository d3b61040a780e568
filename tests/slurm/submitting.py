"""`megatron-cpt` on the virtual cluster: commands of the login node, and what the records of its runs say."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from virtual_cluster import VirtualCluster

from megatron_cpt.record.store import read_json, read_lines

ROOT = Path(__file__).resolve().parents[2]
BEFORE_TRAINING = ("corpus", "vocab", "index", "init", "plan", "baseline")
TWO_BY_TWO = (
    "blend.num_tokens=32768", "cluster.num_nodes=2", "cluster.ranks_per_node=2", "cluster.has_emulated_meter=true",
    "cluster.checkpoint_seconds=5", "cluster.preflight=false",
)  # fmt: skip


def cpt(
    cluster: VirtualCluster, workspace: Path, command: str, *arguments: str, user: str = "root", overrides: tuple[str, ...] = TWO_BY_TWO
) -> subprocess.CompletedProcess[str]:
    """Run a `megatron-cpt` command on the login node of the cluster."""
    line = (sys.executable, "-m", "megatron_cpt", command, "experiment=line", *overrides, *arguments, "--config-dir", f"{workspace}/conf")
    environment = dict(os.environ, PYTHONPATH=str(ROOT), WANDB_MODE="offline")
    return cluster.run(*line, user=user, cwd=workspace, env=environment)


def submit(cluster: VirtualCluster, workspace: Path, name: str, *arguments: str, user: str = "root") -> dict[str, str]:
    """Submit a run of the line and return its job ids by stage."""
    done = cpt(cluster, workspace, "submit", f"run_name={name}", *arguments, user=user)
    assert done.returncode == 0, done.stdout + done.stderr
    newest = max((workspace / "runs" / name / "slurm").glob("submission-*"), key=lambda path: int(path.name.split("-")[1]))
    return {job["stage"]: job["job_id"] for job in read_json(newest / "jobs.json")["jobs"]}


def logs(workspace: Path, name: str) -> str:
    """Return what the jobs of a run printed, for a test that failed."""
    paths = sorted((workspace / "runs" / name / "slurm").glob("*.out"), key=lambda path: path.stat().st_mtime)
    return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in paths)


def losses(workspace: Path, name: str) -> list[tuple[int, float]]:
    """Return step and loss of every step that stands in a run's records."""
    records = read_lines(workspace / "runs" / name / "train" / "metrics.jsonl")
    return [(record["step"], record["loss"]) for record in records if record.get("kind") == "step"]


def wait_for_step(workspace: Path, name: str, step: int, *, seconds: float = 150) -> None:
    """Wait until a run has recorded a step."""
    last_look = time.monotonic() + seconds
    while not any(done >= step for done, _ in losses(workspace, name)):
        assert time.monotonic() < last_look, f"no step {step} of {name} after {seconds:.0f} s\n{logs(workspace, name)}"
        time.sleep(0.1)


def copy_prepared(
    workspace: Path, name: str, *, source: str = "whole", owner: str | None = None, stages: Sequence[str] = BEFORE_TRAINING
) -> None:
    """Give a new run what the run `source` had before it trained."""
    run_dir = workspace / "runs" / name
    for stage in stages:
        shutil.copytree(workspace / "runs" / source / stage, run_dir / stage)
    if owner is not None:
        for path in (run_dir, *run_dir.rglob("*")):
            shutil.chown(path, owner)
