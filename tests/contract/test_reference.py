"""The generated reference leaves nothing without words: keys, shipped options, commands, options of commands, exit codes."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from allowed_values import ALLOWED
from command_pages import tools
from configuration_pages import GROUP_OF_FOLDER, configuration_pages, keys_of, options_of, parts_of
from error_pages import exit_code_page
from nothing_from_the_network import loads_from_elsewhere
from tool_parsers import parser_of

from megatron_cpt import errors
from megatron_cpt.command_parser import parser
from megatron_cpt.config.compose import _all_keys
from megatron_cpt.config.files import shipped_conf
from megatron_cpt.config.schema import ExperimentConfig


def dataclasses_of(kind: type, prefix: str = "") -> Iterator[tuple[type, str]]:
    yield kind, prefix
    for name, part in parts_of(kind).items():
        yield from dataclasses_of(part, f"{prefix}{name}.")


KEYS = [key for kind, prefix in dataclasses_of(ExperimentConfig) for key in keys_of(kind, prefix)]


def test_every_key_of_the_schema_says_what_it_means() -> None:
    assert [key.name for key in KEYS if len(key.meaning) < 8] == []


def test_every_key_that_can_be_set_is_on_a_page() -> None:
    pages = "\n".join(text for _, text in configuration_pages())
    assert [key for key in _all_keys() if f"`{key}`" not in pages and f"`{key}[]" not in pages and f"`{key}.<name>" not in pages] == []


def test_the_table_of_allowed_values_names_keys_that_exist() -> None:
    names = {re.sub(r"\.<name>|\[\]", "", key.name) for key in KEYS}
    assert set(ALLOWED) <= names


def test_every_shipped_option_begins_with_a_comment_that_says_what_it_is() -> None:
    folders = [folder for folder in shipped_conf().iterdir() if folder.is_dir()]
    assert {folder.name for folder in folders} <= {*GROUP_OF_FOLDER, "experiment", *ExperimentConfig.__dataclass_fields__}
    assert [f"{folder.name}={name}" for folder in folders for name, comment in options_of(folder) if not comment] == []


def without_help(found: argparse.ArgumentParser, name: str) -> list[str]:
    missing = []
    for action in found._actions:
        if isinstance(action, argparse._SubParsersAction):
            missing += [word for inner, command in action.choices.items() for word in without_help(command, f"{name} {inner}")]
        elif not action.help and action.choices is None:
            missing.append(f"{name} {action.dest}")
    return missing


def test_every_option_of_every_command_says_what_it_does() -> None:
    assert without_help(parser(), "megatron-cpt") == ["megatron-cpt complete words"]  # which only the completion script calls


@pytest.mark.parametrize("path", tools(), ids=lambda path: path.name)
def test_every_option_of_every_tool_says_what_it_does(path: Path) -> None:
    assert without_help(parser_of(path), path.name) == []


def test_every_exit_code_of_the_package_is_on_the_page() -> None:
    page = exit_code_page()
    codes = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    assert all(f"| {code} | " in page for code in codes | {1, 2, 3, 4, 130})


def test_what_a_page_would_load_from_the_network_is_seen_and_links_are_not() -> None:
    page = (
        '<script src="https://cdn.example/a.js"></script><link rel="stylesheet" href="//cdn.example/b.css"><img src=http://cdn.example/c.png>'
        '<a href="https://example.org">a link</a><link rel="canonical" href="https://example.org/"><script src="_static/d.js"></script>'
    )
    assert loads_from_elsewhere(page, is_style=False) == ["https://cdn.example/a.js", "//cdn.example/b.css", "http://cdn.example/c.png"]
    assert loads_from_elsewhere("a { background: url(https://cdn.example/e.svg) } b { background: url(f.svg) }", is_style=True) == [
        "https://cdn.example/e.svg"
    ]
