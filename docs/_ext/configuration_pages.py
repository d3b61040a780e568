"""Every group and key of the configuration, from the dataclasses of the schema, the `#:` words beside their fields, and conf/."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from allowed_values import ALLOWED
from markdown import code, page, table, words
from sphinx.pycode import ModuleAnalyzer

from megatron_cpt.config.files import shipped_conf
from megatron_cpt.config.schema import MISSING, ExperimentConfig

GROUP_OF_FOLDER = {"filter": "corpus.filters"}  # other folders of conf/ are keys of the root


class Key(NamedTuple):
    """One key: its full name, type and default in words, unit and meaning."""

    name: str
    kind: str
    default: str
    unit: str
    meaning: str


def attribute_words(kind: type) -> dict[str, str]:
    """Return the `#:` words of a dataclass's fields, as Sphinx reads them."""
    docs = ModuleAnalyzer.for_module(kind.__module__).find_attr_docs()
    return {name: " ".join(lines).strip() for (owner, name), lines in docs.items() if owner == kind.__name__}


def parts_of(kind: type) -> dict[str, type]:
    """Return the dataclasses below a dataclass, by the key (with <name> or [] for many) under which they stand."""
    found = {}
    for name, hint in typing.get_type_hints(kind).items():
        mark = {dict: ".<name>", list: "[]"}.get(typing.get_origin(hint), "")
        inner = typing.get_args(hint)[-1] if mark else hint
        if dataclasses.is_dataclass(inner):
            found[name + mark] = inner
    return found


def keys_of(kind: type, prefix: str) -> list[Key]:
    """Return the keys of one dataclass that are values, not parts with keys of their own."""
    said, hints, parts = attribute_words(kind), typing.get_type_hints(kind), {re.sub(r"\W.*", "", part) for part in parts_of(kind)}
    keys = []
    for field in dataclasses.fields(kind):
        if field.name in parts:
            continue
        unit, meaning = re.fullmatch(r"(?:\[([^\]]*)\] )?(.*)", said.get(field.name, "")).groups()
        keys.append(Key(prefix + field.name, _kind(hints[field.name]), _default(field), unit or "", meaning))
    return keys


def _kind(hint: Any) -> str:
    if isinstance(hint, types.UnionType):
        return " or ".join(_kind(part) for part in typing.get_args(hint))
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is list:
        return f"list of {_kind(inner[0])}"
    if origin is dict:
        return f"name to {_kind(inner[1])}"
    return {str: "text", int: "whole number", float: "number", bool: "true or false", types.NoneType: "null", Any: "text or list"}[hint]


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    if value is dataclasses.MISSING or value == MISSING:
        return "must be set"
    shown = {True: "true", False: "false", None: "null"}.get(value) if isinstance(value, bool | None) else None
    return code(shown or ('""' if value == "" else f'"{value}"' if isinstance(value, str) and value.strip() != value else value))


def _section(kind: type, prefix: str, level: int) -> Iterator[str]:
    """Yield the lines of a dataclass and of those below it."""
    doc = re.sub(r"^\w+\(.*", "", kind.__doc__ or "", flags=re.DOTALL)  # dataclasses make one that repeats the signature
    for paragraph in re.split(r"\n\s*\n", doc.strip()) if doc.strip() else []:
        yield from (words(paragraph), "")
    rows = []
    for key in keys_of(kind, prefix):
        allowed = ALLOWED.get(re.sub(r"\.<name>|\[\]", "", key.name))
        meaning = words(key.meaning) + (": " + ", ".join(code(value or '""') for value in allowed) if allowed else "")
        rows.append((code(key.name), key.kind, key.default, words(key.unit), meaning))
    if rows:
        yield from table(("key", "type", "default", "unit", "meaning"), rows)
    for name, part in parts_of(kind).items():
        yield from (f"{'#' * level} {code(prefix + name)}", "")
        said = attribute_words(kind).get(re.sub(r"\W.*", "", name), "")
        yield from (words(said[:1].upper() + said[1:]) + ".", "")
        yield from _section(part, f"{prefix}{name}.", min(level + 1, 6))


def options_of(folder: Path) -> list[tuple[str, str]]:
    """Return the options of a folder of conf/, each with the first comment of its file, however many lines it has."""
    found = []
    for path in sorted(folder.glob("*.yaml")):
        first = re.search(r"^(?:# (?!@package).*\n)+", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        found.append((path.stem, " ".join(re.findall(r"# (.*)", first[0])) if first else ""))
    return found


def _files(group: str) -> list[str]:
    if not (shipped_conf() / group).is_dir():
        return []
    rows = [(code(f"{group}={name}"), words(comment)) for name, comment in options_of(shipped_conf() / group)]
    return [
        "## Shipped options",
        "",
        f"Files of `conf/{group}/`; a folder of your own goes before them (`--config-dir`).",
        "",
        *table(("option", "its first comment"), rows),
    ]


def configuration_pages() -> Iterator[tuple[str, str]]:
    """Yield the page of the root and one page a group."""
    parts = parts_of(ExperimentConfig)
    said = attribute_words(ExperimentConfig)
    rows = []
    for part, kind in parts.items():
        name = re.sub(r"\W.*", "", part)
        rows.append((f"[{code(part)}](configuration-{name}.md)", words(said[name])))
        folder = next((folder for folder, key in GROUP_OF_FOLDER.items() if key.split(".")[0] == name), name)
        lines = [*_section(kind, f"{part}.", 2), *_files(folder)]
        yield f"configuration-{name}", page(f"{code(part)}: {said[name]}", *lines)
    yield (
        "configuration",
        page(
            "Every key of the configuration",
            "A key is set in an experiment file, or on the command line in Hydra's grammar, which goes before it: `schedule.peak_lr=2e-4`.",
            "What has no default decides a result or a bill and must be set.",
            "`megatron-cpt <stage> experiment=... --cfg job` prints the composed whole.",
            "",
            *table(
                ("key", "type", "default", "unit", "meaning"),
                [(code(k.name), k.kind, k.default, words(k.unit), words(k.meaning)) for k in keys_of(ExperimentConfig, "")],
            ),
            *table(("group", "what it decides"), rows),
            "## Shipped experiments",
            "",
            *table(
                ("option", "its first comment"),
                [(code(f"experiment={name}"), words(comment)) for name, comment in options_of(shipped_conf() / "experiment")],
            ),
            "```{toctree}",
            ":hidden:",
            "",
            *(f"configuration-{re.sub(r'[^a-z].*', '', part)}" for part in parts),
            "```",
        ),
    )
