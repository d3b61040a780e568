"""The pages that a newcomer follows in order, followed: each block of shell in one shell, in a folder that has nothing else."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.long, pytest.mark.real_model]

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HOUR = 3600


def walk(script: str, folder: Path) -> str:
    """Run a script as a reader's shell would, without this interpreter's environment, and return all that it printed."""
    own = str(Path(sys.prefix) / "bin")
    path = os.pathsep.join(part for part in os.environ["PATH"].split(os.pathsep) if part != own)
    environment = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")} | {"PATH": path}
    done = subprocess.run(
        ["bash", "-c", f"set -euo pipefail\n{script}"],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=HOUR, check=False,
    )  # fmt: skip
    (folder / "walk.log").write_text(done.stdout, encoding="utf-8")
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout


def checkout(folder: Path) -> Path:
    """Copy what git tracks, as it stands here, so that nothing that is ignored helps."""
    names = subprocess.run(["git", "-C", ROOT, "ls-files", "-co", "--exclude-standard"], capture_output=True, text=True, check=True)
    for name in names.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def test_the_tutorial_can_be_followed_from_its_first_command_to_its_last(tmp_path: Path) -> None:
    text = (ROOT / "docs/tutorial.md").read_text(encoding="utf-8")
    folder = checkout(tmp_path)
    found = BLOCK.findall(text)
    (experiment,) = (body for language, body in found if language == "yaml")
    assert "`conf/experiment/mine.yaml`" in text
    (folder / "conf/experiment/mine.yaml").write_text(experiment, encoding="utf-8")
    out = walk("\n".join(body for language, body in found if language == "bash"), folder)
    # what the page goes on to explain; its figures depend on the docstrings of the reader's Python
    for shown in (
        "Run 'mine' can start here.", "advice: do not extend", "PLAN        mine", "step 8/8", "mine: PROMOTED", "logits equal to",
        "The records of mine are complete, and its verdict was carried out.", "verdict: rollback", "Every promise held in 1 drill.",
    ):  # fmt: skip
        assert shown in out, shown
        assert shown in text, f"the page no longer shows {shown!r}"
    assert (folder / "runs/mine/export/hf/README.md").is_file()
    assert (folder / "runs/mine/report/report.html").is_file()


def test_an_installed_wheel_walks_the_tiny_line_in_an_empty_folder(tmp_path: Path) -> None:
    text = (ROOT / "docs/install.md").read_text(encoding="utf-8")
    *_, commands = (body for language, body in BLOCK.findall(text) if language == "bash")
    assert "run experiment=tiny" in commands
    source, empty = tmp_path / "source", tmp_path / "empty"
    checkout(source)
    empty.mkdir()
    install = [
        f"{sys.executable} -m venv ../venv",
        "source ../venv/bin/activate",
        "pip install -q torch==2.13.0",
        "pip install -q ../source",
    ]
    out = walk("\n".join([*install, "rm -r ../source", commands]), empty)
    assert "tiny: PROMOTED" in out
    assert (empty / "runs/tiny/report/report.html").is_file()
