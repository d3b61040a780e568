"""The wheel and the source distribution: what they hold, what they say of themselves, and that an installed package needs no checkout."""

from __future__ import annotations

import email
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from pathlib import Path

import pytest

import megatron_cpt

ROOT = Path(__file__).resolve().parents[2]
PROMISED_EXTRAS = {"gpu", "data", "eval", "wandb", "dev"}


def call(*argv: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, argv)], cwd=cwd, text=True, capture_output=True, check=False, env={**os.environ, **environment}
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the source distribution of what git tracks, and the wheel that was built from it: nothing comes from this checkout."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    names = subprocess.run(["git", "-C", ROOT, "ls-files", "-co", "--exclude-standard"], capture_output=True, text=True, check=False)
    if names.returncode:
        pytest.skip("not a git checkout")
    for name in names.stdout.split("\n")[:-1]:
        if (ROOT / name).is_file() and not name.startswith(("tests/", "docs/", "data/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
            (source / name).chmod((ROOT / name).stat().st_mode)
    hook = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"
    made = call("-c", hook, "build_sdist", out, cwd=source, PYTHONPATH="")
    assert made.returncode == 0, made.stderr[-3000:]
    (sdist,) = out.glob("*.tar.gz")
    unpacked = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(unpacked, filter="data")
    made = call("-c", hook, "build_wheel", out, cwd=next(unpacked.iterdir()), PYTHONPATH="")
    assert made.returncode == 0, made.stderr[-3000:]
    (wheel,) = out.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def installed(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the wheel's content as pip lays it out; its dependencies are those of this interpreter."""
    folder = tmp_path_factory.mktemp("installed")
    done = call("-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, built[1], cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(archive.read(name))


def shipped(folder: str, *patterns: str) -> set[str]:
    found = (path.relative_to(ROOT).as_posix() for pattern in patterns for path in (ROOT / folder).rglob(pattern))
    return {f"megatron_cpt/{name}" for name in found}


def test_the_wheel_holds_the_package_its_groups_job_bodies_and_launchers_and_nothing_else(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    code = {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "megatron_cpt").rglob("*") if path.suffix in (".py", ".css", ".csv", ".js")
    }
    data = shipped("conf", "*.yaml", "*.jsonl") | shipped("launch", "*.sh") | shipped("slurm", "*.sh", "*.sbatch")
    assert {name for name in code | data | {"megatron_cpt/py.typed"} if name not in names} == set()
    tools = {name for name in names if name.startswith("megatron_cpt/tools/")}
    assert tools <= shipped("tools", "*.py")
    assert "megatron_cpt/tools/convert_checkpoint.py" in tools
    unexpected = names - code - data - tools - {"megatron_cpt/py.typed"}
    assert {name for name in unexpected if not (ROOT / name).is_file()} == set()  # a package's further data files lie in the package


def test_metadata_has_the_version_of_the_package_and_the_promised_extras(built: tuple[Path, Path]) -> None:
    found = metadata(built[1])
    assert found["Version"] == megatron_cpt.__version__
    assert f"megatron_cpt-{megatron_cpt.__version__}." in built[1].name.replace("-py3", ".-py3")
    assert set(found.get_all("Provides-Extra", [])) >= PROMISED_EXTRAS
    core = [line for line in found.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert [line for line in core if line.startswith("wandb")] == []
    assert [line for line in found.get_all("Requires-Dist", []) if "<" not in line] == []  # every bound is closed above


def test_every_message_and_page_names_extras_that_exist(built: tuple[Path, Path]) -> None:
    extras = set(metadata(built[1]).get_all("Provides-Extra", []))
    paths = [*(ROOT / "megatron_cpt").rglob("*.py"), *(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "Makefile"]
    named = {
        (path.name, extra)
        for path in paths
        for names in re.findall(r"(?:megatron-cpt|'\.|\"\.)\[([a-z, ]+)\]", path.read_text(encoding="utf-8"))
        for extra in re.split(r",\s*", names)
    }
    assert {extra for _, extra in named} >= {"gpu", "eval", "wandb"}
    assert {each for each in named if each[1] not in extras} == set()
    assert [path.name for path in paths if "megatron_cpt[" in path.read_text(encoding="utf-8")] == []


def test_the_page_on_installing_lists_every_extra(built: tuple[Path, Path]) -> None:
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([a-z]+)` \|", page, flags=re.MULTILINE)) >= set(metadata(built[1]).get_all("Provides-Extra", [])) - {
        "docs"
    }


def test_the_metadata_is_what_an_index_takes(built: tuple[Path, Path]) -> None:
    pytest.importorskip("twine", reason="twine, of the extra `dev`")
    checked = call("-m", "twine", "check", "--strict", *built, cwd=built[0].parent)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_an_installed_package_composes_and_plans_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    found = call("-c", "import megatron_cpt; print(megatron_cpt.__file__)", cwd=tmp_path, PYTHONPATH=str(installed))
    assert Path(found.stdout.strip()).is_relative_to(installed), found.stderr
    composed = call("-m", "megatron_cpt", "run", "experiment=tiny", "--cfg", "job", cwd=tmp_path, PYTHONPATH=str(installed))
    assert composed.returncode == 0, composed.stderr
    assert "run_name: tiny" in composed.stdout
    begun = call("-m", "megatron_cpt", "run", "experiment=tiny", cwd=tmp_path, PYTHONPATH=str(installed))
    assert begun.returncode == 3, begun.stdout + begun.stderr  # the sample texts are not there, and what fetches them is named
    assert "megatron_cpt.tools.fetch_samples" in begun.stderr
    launcher = installed / "megatron_cpt" / "launch" / "multi_node.sh"
    assert os.access(launcher, os.X_OK)
    tool = call("-m", "megatron_cpt.tools.fetch_samples", "--help", cwd=tmp_path, PYTHONPATH=str(installed))
    assert tool.returncode == 0, tool.stderr
    assert "tiny" in tool.stdout
