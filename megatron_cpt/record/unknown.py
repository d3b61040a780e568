"""Unknown is a value: a figure is a number or `Unavailable(reason)`, never a silent zero."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Unavailable:
    """A figure that could not be had, and why."""

    reason: str

    def __str__(self) -> str:
        return f"unknown ({self.reason})"


Figure = float | Unavailable


def combine(compute: Callable[..., float], *figures: Figure) -> Figure:
    """Return `compute(*figures)`, or the first reason why one of them is unavailable."""
    for figure in figures:
        if isinstance(figure, Unavailable):
            return figure
    return compute(*figures)


def show(figure: Figure, pattern: str = "{:.3g}") -> str:
    """Return a figure as text, or `unknown (reason)`."""
    return str(figure) if isinstance(figure, Unavailable) else pattern.format(figure)
