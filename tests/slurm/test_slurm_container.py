"""Every step in an unprivileged container, by `wrap` of the environment file: Charliecloud's ch-run, which Debian has a package of."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from submitting import ROOT, logs, submit
from virtual_cluster import NoCluster, VirtualCluster, install

from megatron_cpt.record.store import read_json

pytestmark = pytest.mark.long  # two minutes, and a package more


def make_image(folder: Path, mounted: list[Path]) -> Path:
    """Make an image: a system of its own in `/etc`, empty places for what is mounted, and nothing else."""
    for name in ("etc", "dev", "proc", "sys", "tmp", "home", "usr", "var/tmp"):
        (folder / name).mkdir(parents=True)
    for name in ("bin", "lib", "lib64", "sbin"):
        (folder / name).symlink_to(f"usr/{name}")
    for path in mounted:
        (folder / path.relative_to("/")).mkdir(parents=True, exist_ok=True)
    (folder / "etc" / "os-release").write_text("NAME=inside\n")
    for name in ("passwd", "group", "hosts", "resolv.conf"):
        (folder / "etc" / name).touch()  # ch-run mounts the host's
    return folder


def test_the_ranks_of_two_nodes_train_in_a_container_and_are_started_from_outside_of_it(
    slurm_cluster: VirtualCluster, cluster_workspace: Path
) -> None:
    try:
        install(("charliecloud-runtime",), ("ch-run",))
    except NoCluster as reason:
        pytest.skip(str(reason))
    mounted = [Path("/usr"), Path(sys.base_prefix), Path(sys.prefix), ROOT, slurm_cluster.folder]
    image = make_image(slurm_cluster.shared / "image", mounted)
    env_file = cluster_workspace / "container.sh"
    binds = " ".join(f"--bind={path}:{path}" for path in mounted)
    no_scheduler = " ".join(f"--bind=/dev/null:/usr/bin/{tool}" for tool in ("srun", "scontrol", "sbatch"))
    inside = 'grep NAME /etc/os-release >&2; [[ ! -s /usr/bin/srun ]] || exit 9; exec "$@"'
    env_file.write_text(
        f"PATH={Path(sys.executable).parent}:$PATH\nexport USER=root\n"
        f"wrap=(ch-run {binds} {no_scheduler} {image} -- bash -euc '{inside}' step)\n"
    )
    site = ("cluster.preflight=true", f"cluster.env_file={env_file}", "--until", "train")
    job = submit(slurm_cluster, cluster_workspace, "contained", *site)["train"]
    assert slurm_cluster.wait_for(job, seconds=500) == ["COMPLETED"], logs(cluster_workspace, "contained")
    log = (cluster_workspace / "runs" / "contained" / "slurm" / f"train-{job}.out").read_text()
    assert log.count("NAME=inside") == 6  # node check, all-reduce and training, on two nodes
    assert "answer and agree; all-reduce" in log
    assert "4 ranks: n1 0-1" in log
    assert read_json(cluster_workspace / "runs" / "contained" / "train" / "outcome.json")["status"] == "finished"
