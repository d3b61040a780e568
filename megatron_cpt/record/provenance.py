"""Where a text came from, in words."""

from __future__ import annotations

from collections.abc import Mapping


def provenance_in_words(recorded: object) -> str:
    """Return the parts of a source's provenance as one phrase; records of older versions hold a phrase already."""
    if not isinstance(recorded, Mapping):
        return str(recorded)
    return f"{recorded['origin']} ({recorded['date']}; {recorded['obtained']})"
