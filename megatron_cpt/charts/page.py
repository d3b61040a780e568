"""The shell of a self-contained page, and tables."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

HERE = Path(__file__).parent
STYLE = (HERE / "style.css").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Cell:
    """A cell of a table whose order is that of `key` and not of its text; None is unknown and stands last either way."""

    text: str
    key: float | None

    def __str__(self) -> str:
        return self.text


def whole_page(title: str, body: str, *, is_interactive: bool = False, is_broad: bool = False) -> str:
    """Return a page with its style inside; `body` is HTML.

    Browsers are told to fetch nothing, to send nothing and to run no script but those that are put in here, by their digests.

    Args:
        is_interactive: brings charts to life with the Plotly of the installed package, and lets tables be sorted. It adds 5 MB.
        is_broad: tables and charts may take more room than lines of text.
    """
    name = escape(title)
    scripts = _scripts() if is_interactive else []
    allowed = " ".join(f"'sha256-{_digest(script)}'" for script in scripts) or "'none'"
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    kind = ' class="broad"' if is_broad else ""
    tail = "".join(f"<script>{script}</script>" for script in scripts)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><meta name="color-scheme" content="light dark">'
        f"<title>{name}</title><style>{STYLE}</style></head><body{kind}><h1>{name}</h1>{body}{tail}</body></html>\n"
    )


def _scripts() -> list[str]:
    from plotly.offline import get_plotlyjs  # noqa: PLC0415  -- 5 MB that other pages do not need

    own = [(HERE / name).read_text(encoding="utf-8") for name in ("charts.js", "tables.js")]
    scripts = [get_plotlyjs(), *own]
    assert not any("</script" in script.lower() or "<!--" in script for script in scripts)
    return scripts


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    numbers: Sequence[int] = (),
    hashes: Sequence[int] = (),
    words: Sequence[int] = (),
    is_sortable: bool = False,
) -> str:
    """Return a table whose cells are escaped; `numbers`, `hashes` and `words` (texts with their line ends) are the columns of that kind.

    Args:
        is_sortable: a click on a heading sorts by that column on a page with `is_interactive`; by the `key` of a `Cell`, else by text.
    """

    def css(column: int) -> str:
        kinds = {"n": numbers, "hash": hashes, "words": words}
        return next((f' class="{kind}"' for kind, columns in kinds.items() if column in columns), "")

    def key(cell: object) -> str:
        return f' data-key="{"" if cell.key is None else repr(float(cell.key))}"' if isinstance(cell, Cell) else ""

    top = "".join(f'<th scope="col"{css(column)}>{breakable(cell)}</th>' for column, cell in enumerate(head))
    body = "".join(
        "<tr>" + "".join(f"<td{css(column)}{key(cell)}>{escape(str(cell))}</td>" for column, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    kind = ' class="sortable"' if is_sortable else ""
    return f'<div class="scroll"><table{kind}><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def breakable(name: str) -> str:
    """Return a heading, escaped, in which a dotted key may go over to the next line."""
    return escape(name).replace(".", ".<wbr>").replace("_", "_<wbr>")
