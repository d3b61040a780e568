"""Every message that the package can end with, read from its source: text with `...` for what is filled in, rule and next step."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from megatron_cpt import errors

PACKAGE = Path(errors.__file__).parent
FILLED_IN = "\u2026"


@dataclass(frozen=True)
class Kind:
    """A class of errors: its exit code, what it means, and where it is defined."""

    name: str
    exit_code: int
    means: str
    module: str


@dataclass(frozen=True)
class Message:
    """One message; `kind` is empty for a problem that is listed with others, and raised together."""

    kind: str
    text: str
    next_step: str
    module: str

    def matches(self, shown: str) -> bool:
        """Say whether a quoted text is this message, with its blanks filled in somehow or left as `...`."""
        pattern = ".*".join(re.escape(part.strip()) for part in self.text.split(FILLED_IN))
        return (
            len(self.text.replace(FILLED_IN, "").strip()) > 8
            and re.fullmatch(pattern.replace(r"\ ", r"\s+"), shown, flags=re.DOTALL) is not None
        )


def _modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield str(path.relative_to(PACKAGE.parent)), ast.parse(path.read_text(encoding="utf-8"))


@cache
def kinds() -> dict[str, Kind]:
    """Return every class of errors by name, those of other modules too."""
    found = {"CptError": Kind("CptError", errors.CptError.exit_code, "", "megatron_cpt/errors.py")}
    for _ in range(2):  # a class may be defined in a module that comes before its base's
        for module, tree in _modules():
            for node in ast.walk(tree):
                base = node.bases[0].id if isinstance(node, ast.ClassDef) and node.bases and isinstance(node.bases[0], ast.Name) else ""
                if base in found and isinstance(node, ast.ClassDef):
                    found[node.name] = Kind(node.name, _exit_code(node, found[base].exit_code), ast.get_docstring(node) or "", module)
    return found


def _exit_code(node: ast.ClassDef, inherited: int) -> int:
    for statement in node.body:
        if isinstance(statement, ast.Assign) and getattr(statement.targets[0], "id", "") == "exit_code":
            value = statement.value
            return int(value.value) if isinstance(value, ast.Constant) else int(getattr(errors, value.id))  # type: ignore[attr-defined]
    return inherited


def _texts(node: ast.expr | None) -> list[str]:
    """Return what an expression of text may be, one entry an alternative; nothing is filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.JoinedStr):
        return ["".join(part.value if isinstance(part, ast.Constant) else FILLED_IN for part in node.values)]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [left + right for left in _texts(node.left) or [FILLED_IN] for right in _texts(node.right) or [FILLED_IN]]
    if isinstance(node, ast.IfExp):
        return _texts(node.body) + _texts(node.orelse)
    return []


@cache
def messages() -> tuple[Message, ...]:
    """Return all messages, in the order of the modules."""
    found: dict[tuple[str, str], Message] = {}
    for module, tree in _modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in kinds() and node.args:
                steps = [text for word in node.keywords if word.arg == "next_step" for text in _texts(word.value)]
                for text in _texts(node.args[0]):
                    found.setdefault((node.func.id, text), Message(node.func.id, text, steps[0] if steps else "", module))
        for text in _problems(tree):
            found.setdefault(("", text), Message("", text, "", module))
    return tuple(found.values())


def _problems(tree: ast.Module) -> Iterator[str]:
    """Yield the texts of problems that are gathered: what is put into a list of problems, or returned by a function that lists them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and "problem" in node.name:
            for inner in ast.walk(node):
                if isinstance(inner, ast.List):
                    yield from (text for element in inner.elts for text in _texts(element))
                elif isinstance(inner, ast.ListComp):
                    yield from _texts(inner.elt)
        put = (
            node.value
            if isinstance(node, ast.AugAssign | ast.Assign | ast.AnnAssign) and "problem" in ast.unparse(node).split("=")[0]
            else None
        )
        if isinstance(put, ast.List):
            yield from (text for element in put.elts for text in _texts(element))
        elif isinstance(put, ast.ListComp):
            yield from _texts(put.elt)
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "append"
            and "problem" in ast.unparse(node.func.value)
        ):
            yield from _texts(node.args[0])
