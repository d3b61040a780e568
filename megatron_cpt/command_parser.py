"""An argument parser whose errors name the nearest command or option, and the words that a shell may complete."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterable
from typing import NoReturn

from megatron_cpt.errors import printable


class Parser(argparse.ArgumentParser):
    """Says what was probably meant by a misspelt command, option or choice."""

    def error(self, message: str) -> NoReturn:
        choice = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        unknown = re.search(r"unrecognized arguments: (.*)", message)
        near: list[str] = []
        if choice:
            near = difflib.get_close_matches(choice[1], re.findall(r"[\w.-]+", choice[2]), n=1)
        elif unknown:
            known = [*self.options(), *(option for command in self.commands().values() for option in command.options())]
            near = difflib.get_close_matches(unknown[1].split()[0].partition("=")[0], known, n=1)
        super().error(printable(message) + (f"\nDid you mean {near[0]}?" if near else ""))

    def options(self) -> list[str]:
        return [option for action in self._actions for option in action.option_strings]

    def commands(self) -> dict[str, Parser]:
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                return dict(action.choices)
        return {}

    def choices_of(self, option: str) -> Iterable[str]:
        """Return the words that an option takes, none where it takes any."""
        return next((list(map(str, action.choices or ())) for action in self._actions if option in action.option_strings), [])
