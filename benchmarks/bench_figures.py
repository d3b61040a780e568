"""What a benchmark found, handed to `run_all.py` as lines of JSON; a benchmark that is run by itself only prints."""

from __future__ import annotations

import json
import os
from pathlib import Path

FILE_VARIABLE = "BENCHMARK_FIGURES"


def note(what: str, value: float, unit: str, *, at_least: float | None = None, at_most: float | None = None, detail: str = "") -> None:
    """Append one figure to the file that `run_all.py` named, if it did.

    Args:
        what: the figure in words, with the peer where it is a ratio.
        unit: `times` for a ratio, else of the value.
        at_least: the goal, where more is better.
        at_most: the goal, where less is better.
        detail: what the figure was made of, such as the two medians of a ratio.
    """
    path = os.environ.get(FILE_VARIABLE)
    if path:
        line = {"what": what, "value": value, "unit": unit, "at_least": at_least, "at_most": at_most, "detail": detail}
        with Path(path).open("a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")
