"""Plain text into MyST Markdown that shows exactly that text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

MENTION = re.compile(r"`?docs/((?:[\w-]+/)*[\w-]+\.md)`?")


def words(text: str) -> str:
    """Return prose of the code for a page: what Markdown would read as HTML is escaped, and pages that it names become links."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    escaped = [part if part.startswith("`") else re.sub(r"([<>*_\[\]$|])", r"\\\1", part) for part in parts]
    unescaped = "".join(escaped)
    return MENTION.sub(lambda found: f"[{found[1].rsplit('/', 1)[-1].removesuffix('.md')}](/{found[1]})", unescaped)


def code(text: object) -> str:
    """Return text as inline code, whatever is in it."""
    shown = str(text).replace("\n", " ")
    fence = "``" if "`" in shown else "`"
    return f"{fence} {shown} {fence}" if "`" in shown else f"`{shown}`"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table; cells are Markdown, and may hold a bar."""
    shown = [[re.sub(r"(?<!\\)\|", r"\\|", cell) for cell in row] for row in rows]
    return ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|", *("| " + " | ".join(row) + " |" for row in shown), ""]


def page(title: str, *lines: str) -> str:
    """Return a page that says that it is generated."""
    return "\n".join([f"# {title}", "", *lines]).rstrip("\n") + "\n"
