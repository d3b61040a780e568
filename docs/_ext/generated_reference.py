"""Writes the pages of docs/reference/generated/ before Sphinx reads them: from the schema, the parsers, the errors and their messages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from command_pages import command_page, tools_page
from configuration_pages import configuration_pages
from error_pages import exit_code_page, message_page
from metric_pages import metric_pages
from sphinx.application import Sphinx

FOLDER = Path("reference") / "generated"


def pages() -> Iterator[tuple[str, str]]:
    """Yield the name and the text of every generated page."""
    yield from configuration_pages()
    yield "commands", command_page()
    yield "tools", tools_page()
    yield "exit-codes", exit_code_page()
    yield "messages", message_page()
    yield from metric_pages()


def write_pages(folder: Path) -> None:
    """Write the pages into a folder, leave those that have not changed alone, and remove others."""
    folder.mkdir(parents=True, exist_ok=True)
    written = set()
    for name, text in pages():
        path = folder / f"{name}.md"
        written.add(path)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    for path in set(folder.glob("*.md")) - written:
        path.unlink()


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect to Sphinx."""
    app.connect("builder-inited", lambda app: write_pages(Path(app.srcdir) / FOLDER))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
