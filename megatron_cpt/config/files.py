"""The shipped `conf/` and single files of it, read without Hydra: for tools that need a device or a tariff and no experiment."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TypeVar

import yaml

import megatron_cpt
from megatron_cpt.errors import ConfigError, printable
from megatron_cpt.record.typed import from_plain

T = TypeVar("T")


def shipped_conf() -> Path:
    """Return the folder of the shipped `conf/`: inside an installed package, or beside it in a checkout."""
    return _shipped("conf")


def shipped_slurm() -> Path:
    """Return the folder of the shipped job bodies, `slurm/`: inside an installed package, or beside it in a checkout."""
    return _shipped("slurm")


def shipped_launch() -> Path:
    """Return the folder of the shipped `launch/`: inside an installed package, or beside it in a checkout."""
    return _shipped("launch")


def _shipped(name: str) -> Path:
    package = Path(megatron_cpt.__file__).parent
    inside = package / name
    return inside if inside.is_dir() else package.parent / name


def read_option(kind: type[T], group: str, name: str, *, config_dir: Path | None = None) -> T:
    """Return one option of a group, such as gpu h100_sxm; a folder of the user's own comes before the shipped one.

    Raises:
        ConfigError: there is no such option, or its file does not have the group's form.
    """
    folders = [folder / group for folder in (config_dir, shipped_conf()) if folder is not None]
    names = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        raise ConfigError(
            f"There is no {group} of that name.",
            value=printable(name),
            rule=f"one of {', '.join(names)}",
            next_step=f"Did you mean {near[0]}?"
            if near
            else f"Write {group}/{printable(name)}.yaml in a folder of your own (--config-dir).",
        )
    path = next(folder / f"{name}.yaml" for folder in folders if (folder / f"{name}.yaml").is_file())
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError("The file is not readable YAML.", where=path, value=str(error)) from None
    return from_plain(kind, data, where=path)
