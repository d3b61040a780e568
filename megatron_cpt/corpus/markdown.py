"""Strangers' text in our Markdown: it is shown, and never becomes markup."""

from __future__ import annotations

import re
from collections.abc import Sequence

from megatron_cpt.errors import printable

_MARKUP = re.compile(r"[\\`*_\[\]|~>$]")  # what marks anywhere in a line; all of it stands behind words of ours
_AS_ENTITY = {"&": "&amp;", "<": "&lt;"}


def cell(value: object) -> str:
    """Return text that stands in a table cell or a line as it is: no markup, no HTML, no links, no new lines, no control characters."""
    text = printable(str(value))
    text = _MARKUP.sub(lambda match: f"\\{match.group()}", text)
    text = re.sub("[&<]", lambda match: _AS_ENTITY[match.group()], text)
    # what begins like an address is made a link by many a viewer
    return re.sub(r"(?i)\b(https?|ftp|mailto|www)(?=[:.])", r"\1\\", text).replace("@", "\\@")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table; columns after the first whose every entry begins with a digit are set to the right."""
    is_number = [place > 0 and all(re.match(r"[\d-]", row[place]) for row in rows) for place in range(len(head))]
    return [
        f"| {' | '.join(head)} |",
        f"| {' | '.join('---:' if number else '---' for number in is_number)} |",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"
