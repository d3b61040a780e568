"""Every command of `megatron-cpt` and every tool, from their own parsers and the table of stages."""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from markdown import code, page, table, words
from tool_parsers import parser_of

from megatron_cpt.command_parser import Parser, parser
from megatron_cpt.stage_names import STAGES

ROOT = Path(__file__).resolve().parents[2]
HEAD = "exit codes:"  # of the epilogs; the codes have a page of their own


def _options(actions: Iterable[argparse.Action]) -> list[str]:
    """Return a table of options and arguments; empty where there is none but --help."""
    rows = []
    for action in actions:
        if isinstance(action, argparse._HelpAction | argparse._SubParsersAction) or action.help == argparse.SUPPRESS:
            continue
        takes = action.metavar or (action.dest.upper() if action.nargs != 0 else "")
        takes = " ".join(takes) if isinstance(takes, tuple) else str(takes)
        name = ", ".join(map(code, action.option_strings)) if action.option_strings else code(takes)
        choices = ", ".join(code(choice) for choice in action.choices) if action.choices else ""
        shown = words(str(action.help or "") % {**vars(action), "prog": "", "choices": ", ".join(map(str, action.choices or ()))})
        is_said = action.nargs == 0 or action.default in (None, argparse.SUPPRESS, []) or "default" in shown
        default = "" if is_said else code(action.default)
        rows.append((name, code(takes) if takes and action.option_strings else "", shown, choices, default))
    return table(("option", "takes", "does", "one of", "default"), rows) if rows else []


def _examples(text: str) -> list[str]:
    """Return the examples of an epilog as a block of commands."""
    lines = [line.strip() for line in text.partition(HEAD)[0].splitlines() if re.match(r"\s+\S", line)]
    return ["Examples:", "", "```bash", *lines, "```", ""] if lines else []


def command_page() -> str:
    """Return the page of the command line."""
    root = parser()
    commands = root.commands()
    stages = {stage.name: stage for stage in STAGES}
    shared = set(commands["status"].options())  # a command that has the options of all commands and no others
    common = [action for action in commands["status"]._actions if set(action.option_strings) <= shared]
    lines = ["`megatron-cpt COMMAND [options] [overrides]`. What is not an option is a setting in Hydra's grammar; see the"]
    lines += [
        "[configuration](configuration.md) and the [exit codes](exit-codes.md).",
        "",
        "## Options of most commands",
        "",
        *_options(common),
    ]
    helps = {action.dest: str(action.help or "") for action in _choices(root)}
    for name, command in commands.items():
        lines += [f"## {name}", ""]
        if name in stages:
            stage = stages[name]
            lines += [words(stage.does[:1].upper() + stage.does[1:]) + ".", ""]
            lines += table(("", ""), [(what, words(getattr(stage, what))) for what in ("reads", "writes", "refuses")])
        else:
            said = command.description or helps.get(name, "")
            for paragraph in re.split(r"\n\s*\n", said):
                lines += _paragraph(paragraph)
        has_common = shared <= set(command.options())
        own = [action for action in command._actions if not (has_common and set(action.option_strings) <= shared)]
        lines += _options(own) + _examples(command.epilog or "")
    return page("The command line", *lines)


def _paragraph(text: str) -> list[str]:
    facts = [re.fullmatch(r"(\w+): +(.*)", line) for line in text.splitlines()]
    if all(facts):
        return table(("", ""), [(fact[1], words(fact[2])) for fact in facts if fact])
    said = " ".join(text.split())
    return [words(said[:1].upper() + said[1:]) + ("" if said.endswith((".", ":")) else "."), ""]


def _choices(root: Parser) -> Iterator[argparse.Action]:
    for action in root._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action._choices_actions


def tools() -> list[Path]:
    """Return the tools that have a command line of their own."""
    return [path for path in sorted((ROOT / "tools").glob("*.py")) if "ArgumentParser" in path.read_text(encoding="utf-8")]


def tools_page() -> str:
    """Return the page of the tools."""
    lines = [
        "Thin command lines over the functions of the package, for single steps without a run around them. They belong to a checkout.",
        "",
    ]
    for path in tools():
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        lines += [f"## {path.name}", ""]
        for paragraph in re.split(r"\n\s*\n", doc):
            is_code = all(line.startswith((" ", "python ")) for line in paragraph.splitlines())
            lines += ["```bash", *(line.strip() for line in paragraph.splitlines()), "```", ""] if is_code else [words(paragraph), ""]
        lines += _of_parser(parser_of(path))
    return page("Tools", *lines)


def _of_parser(found: argparse.ArgumentParser) -> list[str]:
    lines = _options(found._actions) + _examples(found.epilog or "")
    for action in found._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                lines += [f"### {name}", "", *_options(command._actions)]
    return lines
