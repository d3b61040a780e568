"""The shell of a self-contained page, and tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

STYLE = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")


def whole_page(title: str, body: str) -> str:
    """Return a page with its style inside; `body` is HTML."""
    name = escape(title)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{name}</title><style>{STYLE}</style></head><body><h1>{name}</h1>{body}</body></html>\n"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: Sequence[int] = (), hashes: Sequence[int] = ()) -> str:
    """Return a table whose cells are escaped; `numbers` and `hashes` are the columns of that kind."""

    def css(column: int) -> str:
        return ' class="n"' if column in numbers else ' class="hash"' if column in hashes else ""

    top = "".join(f"<th{css(column)}>{escape(cell)}</th>" for column, cell in enumerate(head))
    body = "".join(
        "<tr>" + "".join(f"<td{css(column)}>{escape(str(cell))}</td>" for column, cell in enumerate(row)) + "</tr>" for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
