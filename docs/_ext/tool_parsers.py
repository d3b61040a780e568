"""The parser of a script, and how the script itself reads a command line, without doing what it then would do."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock


class _Parsed(Exception):
    """Carries what a script's parser was about to return, or the parser itself."""

    def __init__(self, found: Any) -> None:
        super().__init__("parsed")
        self.found = found


def _main_of(script: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"script_{script.stem}", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses of a script look their module up
    with mock.patch.object(sys, "path", [str(script.parent), *sys.path]):
        spec.loader.exec_module(module)
    return module.main


def _until_parsed(script: Path, arguments: Sequence[str], stand_in: Any) -> Any:
    main = _main_of(script)
    with (
        mock.patch.object(argparse.ArgumentParser, "parse_args", stand_in),
        mock.patch.object(sys, "argv", [str(script), *arguments]),
        mock.patch.object(sys, "path", [str(script.parent), *sys.path]),
    ):
        try:
            main()
        except _Parsed as parsed:
            return parsed.found
    raise AssertionError(f"{script} ended without reading its command line")


def parser_of(script: Path) -> argparse.ArgumentParser:
    """Return the parser that a script's `main` makes."""

    def hand_over(self: argparse.ArgumentParser, *_: object, **__: object) -> NoReturn:
        raise _Parsed(self)

    found = _until_parsed(script, [], hand_over)
    assert isinstance(found, argparse.ArgumentParser)
    return found


def read_command_line(script: Path, arguments: Sequence[str]) -> argparse.Namespace:
    """Return what a script makes of a command line.

    Raises:
        SystemExit: the script refuses it, with its message on standard error.
    """
    really = argparse.ArgumentParser.parse_args

    def parse_and_stop(self: argparse.ArgumentParser, *_: object, **__: object) -> NoReturn:
        raise _Parsed(really(self, list(arguments)))

    found = _until_parsed(script, arguments, parse_and_stop)
    assert isinstance(found, argparse.Namespace)
    return found
