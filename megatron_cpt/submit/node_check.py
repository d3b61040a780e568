"""One node's part of the preflight: `python -m megatron_cpt.submit.node_check FOLDER TOKEN` writes what it is and sees to FOLDER.

No torch: it must answer in a second, and say more than an import error where the environment of a node is broken.
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from megatron_cpt.record.manifest import commit_in_use
from megatron_cpt.record.store import make_folder, write_json
from megatron_cpt.record.typed import to_plain

TOKEN_NAME = "token.txt"  # noqa: S105  # no secret: it tells one folder from another
SMI_SECONDS = 30


@dataclass(frozen=True)
class NodeAnswer:
    """What one node is and sees.

    Attributes:
        node: its name in Slurm.
        time: of its clock, in seconds since the epoch.
        sees_token: the shared folder holds, on this node, what the first node wrote there.
        free_bytes: on the file system of the shared folder.
        gpus: name and driver of each, as nvidia-smi prints them; empty where there is none.
        software: versions that must agree: Python and the commit of this package.
    """

    node: str
    time: float
    sees_token: bool
    free_bytes: int
    gpus: tuple[str, ...]
    software: str


def gpus_here() -> tuple[str, ...]:
    """Return `name, driver` of every GPU; empty where nvidia-smi is missing, fails or hangs, as it does over a lost GPU."""
    argv = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(argv, capture_output=True, text=True, timeout=SMI_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return tuple(line.strip() for line in answer.stdout.splitlines() if line.strip()) if answer.returncode == 0 else ()


def look(folder: Path, token: str) -> NodeAnswer:
    try:
        sees_token = (folder / TOKEN_NAME).read_text(encoding="utf-8") == token
    except OSError:
        sees_token = False
    return NodeAnswer(
        node=os.environ.get("SLURMD_NODENAME", socket.gethostname()),
        time=time.time(),
        sees_token=sees_token,
        free_bytes=shutil.disk_usage(folder).free if folder.is_dir() else 0,
        gpus=gpus_here(),
        software=f"Python {platform.python_version()}, megatron_cpt {commit_in_use()}",
    )


def main(arguments: list[str]) -> None:
    folder, answer = Path(arguments[0]), look(Path(arguments[0]), arguments[1])
    make_folder(folder)  # a node without the shared disk writes where nobody finds it, and counts as silent
    write_json(folder / f"{answer.node}.json", to_plain(answer))


if __name__ == "__main__":
    main(sys.argv[1:])
