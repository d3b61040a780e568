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
        """Say whether a quoted text is this message: with its blanks filled in or left as dots, and what follows left out by dots."""
        return _fits(shown, self.text) or _fits(self.text, shown)


def _fits(text: str, template: str) -> bool:
    """Say whether a text is a template with its blanks filled in; one that is all blanks fits nothing."""
    pattern = ".*".join(re.escape(part.strip()).replace(r"\ ", r"\s+") for part in template.split(FILLED_IN))
    return len(template.replace(FILLED_IN, "").strip()) > 8 and re.fullmatch(pattern, text, flags=re.DOTALL) is not None


@cache
def _modules() -> tuple[tuple[str, ast.Module], ...]:
    paths = sorted(PACKAGE.rglob("*.py"))
    return tuple((str(path.relative_to(PACKAGE.parent)), ast.parse(path.read_text(encoding="utf-8"))) for path in paths)


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


def _makers(tree: ast.Module) -> dict[str, str]:
    """Return what a module's calls make errors with: classes, and functions that hand their first argument to a class."""
    found = {name: name for name in kinds()}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.args.args:
            for inner in ast.walk(node):
                is_made = isinstance(inner, ast.Call) and isinstance(inner.func, ast.Name) and inner.func.id in kinds() and inner.args
                if is_made and getattr(inner.args[0], "id", "") == node.args.args[0].arg:
                    found[node.name] = inner.func.id
    return found


@cache
def messages() -> tuple[Message, ...]:
    """Return all messages, in the order of the modules."""
    found: dict[tuple[str, str], Message] = {}
    for module, tree in _modules():
        makers = _makers(tree)
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or not node.args:
                continue
            steps = [text for word in node.keywords if word.arg == "next_step" for text in _texts(word.value)]
            if node.func.id == "raise_all" and isinstance(node.args[0], ast.Name):
                kind, texts = node.args[0].id, [text for element in _elements(node.args[1]) for text in _texts(element)]
            else:
                kind, texts = makers.get(node.func.id, ""), _texts(node.args[0])
            for text in texts if kind in kinds() else []:
                if text.replace(FILLED_IN, "").strip(" ."):
                    found.setdefault((kind, text), Message(kind, text, steps[0] if steps else "", module))
        for text in _problems(tree):
            found.setdefault(("", text), Message("", text, "", module))
    return tuple(found.values())


def _elements(node: ast.expr) -> list[ast.expr]:
    """Return what stands for the elements of a list that is written out."""
    return node.elts if isinstance(node, ast.List) else [node.elt] if isinstance(node, ast.ListComp) else []


def _problems(tree: ast.Module) -> Iterator[str]:
    """Yield the texts of problems that are gathered: what is put into a list of problems, or returned by a function that lists them."""
    for node in ast.walk(tree):
        elements: list[ast.expr] = []
        if isinstance(node, ast.FunctionDef) and "problem" in node.name:
            elements = [element for inner in ast.walk(node) if isinstance(inner, ast.expr) for element in _elements(inner)]
        elif isinstance(node, ast.AugAssign | ast.Assign | ast.AnnAssign) and node.value is not None:
            is_list_of_problems = "problem" in ast.unparse(node).partition("=")[0]
            elements = _elements(node.value) if is_list_of_problems else []
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "append":
            elements = node.args if "problem" in ast.unparse(node.func.value) else []
        yield from (text for element in elements for text in _texts(element))
