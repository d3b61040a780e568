"""What task files of lm-evaluation-harness may say unless the user lets them run code: data, templates and settings, no Python."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from megatron_cpt.errors import ConfigError, printable, raise_all

DATA_FORMATS = ("json", "csv", "parquet", "text")  # what the data library parses; its other formats may unpickle, or run a script


class _Tagged:
    """The value of a tag that plain YAML does not know, such as `!function`."""


class _PlainLoader(yaml.SafeLoader):
    """YAML in which unknown tags are marked."""


_PlainLoader.add_constructor(None, lambda *_: _Tagged())


def refuse_code(folder: Path) -> None:
    """Raise for every task file that would run Python, or reach files outside the folder's own.

    Raises:
        ConfigError: listing files and reasons.
    """
    problems = []
    for path in sorted(folder.rglob("*.yaml")):
        try:
            content = yaml.load(path.read_text(encoding="utf-8"), Loader=_PlainLoader)  # noqa: S506  -- a safe loader
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            reasons = [f"is not readable YAML: {error}"]
        else:
            reasons = list(_reasons(content, path, folder))
        problems += [f"{path.relative_to(folder)} {printable(reason)}" for reason in reasons]
    raise_all(
        ConfigError,
        problems,
        where=folder,
        next_step="Read those files, then set eval.harness_runs_code=true if you would run them as yourself, or take them out.",
    )


def _reasons(content: Any, path: Path, folder: Path) -> Iterator[str]:
    if isinstance(content, _Tagged):
        yield "names Python by a tag (!function)"
    elif isinstance(content, list):
        for value in content:
            yield from _reasons(value, path, folder)
    elif isinstance(content, dict):
        for key, value in content.items():
            yield from _reasons_of_key(str(key), value, path, folder)
            yield from _reasons(value, path, folder)


def _reasons_of_key(key: str, value: Any, path: Path, folder: Path) -> Iterator[str]:
    if key == "class":
        yield f"names a Python class ({value})"
    elif key == "hf_evaluate" and value is not False:
        yield "asks for a metric that is a script (hf_evaluate)"
    elif key == "metric" and not re.fullmatch(r"\w+", str(value)):
        yield f"names a metric that may be a script ({value})"
    elif key == "dataset_path" and value not in DATA_FORMATS:
        yield f"takes data by {value}, where {', '.join(DATA_FORMATS)} are parsed"
    elif key == "include":
        for name in value if isinstance(value, list) else [value]:
            included = (path.parent / str(name)).resolve()
            if included.suffix != ".yaml" or not included.is_relative_to(folder.resolve()):
                yield f"includes {name}, which is no .yaml file of the folder"
