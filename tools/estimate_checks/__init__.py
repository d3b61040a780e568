"""Published figures beside this project's own: one module per subject with a function `group()`, and what it needs.

A module reads tables of `tests/data/published/`, asks the package for the same quantity and returns its rows. `groups()` finds the
modules by itself and orders them by `Group.order` (memory 10, throughput 20, energy and money 30).
"""

from __future__ import annotations

import csv
import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PUBLISHED = Path(__file__).resolve().parents[2] / "tests" / "data" / "published"


@dataclass(frozen=True)
class Check:
    """One published figure, the same from this project, and how far they may lie apart.

    Attributes:
        what: the configuration in words, or how the figure is made.
        tolerance: largest error, relative, or in `unit` where `absolute`; None only reports the error.
        excluded: why the row decides nothing, where it does not.
        other: the error of another public tool on the same row, in its own words.
    """

    id: str
    what: str
    published: float
    ours: float
    unit: str
    source: str
    tolerance: float | None = None
    absolute: bool = False
    excluded: str = ""
    other: str = ""

    @property
    def error(self) -> float:
        """Ours less published, relative to the published one unless `absolute`."""
        difference = self.ours - self.published
        return difference if self.absolute else difference / self.published

    @property
    def passes(self) -> bool:
        """True where the error is within the tolerance, or nothing is decided; a figure in full digits may differ in the last one."""
        return self.excluded != "" or self.tolerance is None or abs(self.error) <= self.tolerance * (1 + 1e-9)


@dataclass(frozen=True)
class Mean:
    """The mean absolute error over several rows, and the most that it may be."""

    what: str
    checks: tuple[Check, ...]
    tolerance: float | None = None

    @property
    def value(self) -> float:
        counted = [abs(check.error) for check in self.checks if not check.excluded]
        return sum(counted) / len(counted)

    @property
    def passes(self) -> bool:
        return self.tolerance is None or self.value <= self.tolerance


@dataclass(frozen=True)
class Group:
    """One section of the page: its rows, means over them, and paragraphs before and after (Markdown)."""

    title: str
    order: int
    intro: str
    checks: tuple[Check, ...]
    means: tuple[Mean, ...] = ()
    closing: str = ""


def published(name: str) -> list[dict[str, str]]:
    """Read one table of published figures, every cell a string, "" for an empty one."""
    with (PUBLISHED / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def groups() -> Iterator[Group]:
    """Yield the group of every module of this package that has one, in their order."""
    modules = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    found: list[Group] = [module.group() for module in modules if hasattr(module, "group")]
    yield from sorted(found, key=lambda group: (group.order, group.title))
