"""After a build: warn of every page that would load a script, style, font or picture from elsewhere. `make docs` makes it an error."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.util import logging

ADDRESS = r"""["']?((?:https?:)?//[^"'\s>]+)"""
LOADED = re.compile(
    rf"""<(?:script|img|iframe|source)\b[^>]*\bsrc={ADDRESS}"""
    rf"""|<link\b(?=[^>]*\brel=["']?(?:stylesheet|preload|icon|prefetch|preconnect))[^>]*\bhref={ADDRESS}"""
)
LOADED_BY_STYLE = re.compile(r"""@import\s+["']((?:https?:)?//[^"']+)|url\(["']?((?:https?:)?//[^"')]+)""")
log = logging.getLogger(__name__)


def loads_from_elsewhere(text: str, *, is_style: bool) -> list[str]:
    """Return the addresses that a page (or style sheet) would load from other hosts when it is opened; links to click do not count."""
    return ["".join(found) for found in (LOADED_BY_STYLE if is_style else LOADED).findall(text)]


def look(app: Sphinx, exception: Exception | None) -> None:
    """Look at every page and style sheet that was built."""
    if exception is not None or app.builder.format != "html":
        return
    for path in sorted(Path(app.outdir).rglob("*")):
        if path.suffix in (".html", ".css"):
            for address in loads_from_elsewhere(path.read_text(encoding="utf-8"), is_style=path.suffix == ".css"):
                log.warning("%s would be loaded from the network by %s", address, path.relative_to(app.outdir))


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect to Sphinx."""
    app.connect("build-finished", look)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
