"""One virtual Slurm cluster for a test process, started for the first test that asks for it, and a workspace on its shared folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from virtual_cluster import NoCluster, VirtualCluster, install

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "integration"))

from line_workspace import make_workspace


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[VirtualCluster]:
    """A running cluster of four nodes. Its tests share it: each leaves every job ended and every node up."""
    try:
        install()
        cluster = VirtualCluster().__enter__()
    except NoCluster as reason:
        pytest.skip(str(reason))
    yield cluster
    cluster.__exit__()


@pytest.fixture(scope="session")
def cluster_workspace(slurm_cluster: VirtualCluster) -> Path:
    """Text, a tiny base model and the experiment `line`, where every user of the cluster may read them."""
    folder = make_workspace(slurm_cluster.shared / "work")
    experiment = folder / "conf" / "experiment" / "line.yaml"
    without_wandb = experiment.read_text()
    assert "wandb_mode: disabled" in without_wandb
    experiment.write_text(without_wandb.replace("wandb_mode: disabled", "wandb_mode: offline"))  # a requeued run stays one there
    for path in folder.rglob("*"):
        path.chmod(path.stat().st_mode | (0o055 if path.is_dir() else 0o044))
    runs = folder / "runs"  # of every user, with one bill
    runs.mkdir()
    runs.chmod(0o1777)
    (runs / "ledger.jsonl").touch()
    (runs / "ledger.jsonl").chmod(0o666)
    return folder
