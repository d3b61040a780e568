"""The frozen folder of a submission: the code, the configuration and the environment that its jobs run, whatever changes meanwhile.

<run>/slurm/submission-1/  code/ (megatron_cpt, conf, commit.txt)  slurm/ (job bodies)  config.yaml  env.sh  jobs.json
"""

from __future__ import annotations

import itertools
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import megatron_cpt
from megatron_cpt.config.files import shipped_conf, shipped_slurm
from megatron_cpt.errors import ConfigError
from megatron_cpt.record.manifest import COMMIT_NAME, commit_in_use
from megatron_cpt.record.store import make_folder, write_text

CONFIG_NAME = "config.yaml"
PREFIX = "submission-"
_NOT_CODE = shutil.ignore_patterns("__pycache__", "*.pyc", "conf", "slurm")


def submissions_of(run_dir: Path) -> list[Path]:
    """Return the frozen folders of a run, oldest first."""
    found = [path for path in (run_dir / "slurm").glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(PREFIX)))


def environment_text(env_file: str | None) -> str:
    """Return what every job of a submission sources: the cluster's own file, or without one the Python that submits.

    Raises:
        ConfigError: the file is not there, or no text.
    """
    if env_file is None:
        own = shlex.quote(str(Path(sys.executable).parent))
        said = "cluster.env_file is not set: the Python that submitted, and what else the shell of the submission had"
        return f'# {said}\nPATH={own}:"$PATH"\n'
    try:
        return Path(env_file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise ConfigError(
            f"The environment file of the cluster {reason}.", where="cluster.env_file", value=str(Path(env_file).resolve())
        ) from None


def freeze(run_dir: Path, *, config_yaml: str, env_file: str | None) -> Path:
    """Make the next frozen folder of a run, which is nobody else's, and return it.

    Raises:
        ConfigError: the environment file cannot be read.
    """
    environment = environment_text(env_file)
    make_folder(run_dir / "slurm")
    taken = len(submissions_of(run_dir))
    for number in itertools.count(taken + 1):
        folder = run_dir / "slurm" / f"{PREFIX}{number}"
        try:
            folder.mkdir()  # exclusive: of two at the same moment one gets the next number
        except FileExistsError:
            continue
        break
    try:
        _fill(folder, config_yaml=config_yaml, environment=environment)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def _fill(folder: Path, *, config_yaml: str, environment: str) -> None:
    code = folder / "code"
    shutil.copytree(Path(megatron_cpt.__file__).parent, code / "megatron_cpt", ignore=_NOT_CODE)
    shutil.copytree(shipped_conf(), code / "conf", ignore=_NOT_CODE)
    shutil.copytree(shipped_slurm(), folder / "slurm", ignore=shutil.ignore_patterns("env"))
    write_text(code / COMMIT_NAME, commit_with_changes() + "\n")
    write_text(folder / CONFIG_NAME, config_yaml)
    write_text(folder / "env.sh", environment)


def commit_with_changes() -> str:
    """Return the commit of the code in use, marked where files differ from it."""
    commit = commit_in_use()
    package = Path(megatron_cpt.__file__).parent
    argv = ["git", "-C", str(package), "status", "--porcelain", "--", ".", str(shipped_conf()), str(shipped_slurm())]
    try:
        changed = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return commit
    return f"{commit} with changes" if changed else commit
