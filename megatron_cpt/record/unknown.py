"""Unknown is a value: a figure is a number or `Unavailable(reason)`, never a silent zero."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Unavailable:
    """A figure that could not be had, and why."""

    reason: str

    def __str__(self) -> str:
        return f"unknown ({self.reason})"


Figure = float | Unavailable


@dataclass(frozen=True)
class Interval:
    """A low, a likely and a high figure of one quantity."""

    low: float
    likely: float
    high: float


Range = Interval | Unavailable


def combine(compute: Callable[..., float], *figures: Figure) -> Figure:
    """Return `compute(*figures)`, or the first reason why one of them is unavailable."""
    for figure in figures:
        if isinstance(figure, Unavailable):
            return figure
    return compute(*figures)


class Amount(float):
    """A figure that people read: in a `g` format without exponents, from 1,000 on whole and with commas, small ones with two digits."""

    def __format__(self, spec: str) -> str:
        if not spec.endswith("g") or not math.isfinite(self):
            return super().__format__(spec)
        sign = "+" if spec.startswith("+") else ""
        if abs(self) >= 999.5:
            return super().__format__(f"{sign},.0f")
        if 0 < abs(self) < 1e-4:
            return super().__format__(f"{sign}.{1 - math.floor(math.log10(abs(self)))}f")
        return super().__format__(spec)


def show(figure: Figure, pattern: str = "{:.3g}") -> str:
    """Return a figure as text, or `unknown (reason)`."""
    return str(figure) if isinstance(figure, Unavailable) else pattern.format(Amount(figure))


def product(*ranges: Range | float) -> Range:
    """Multiply intervals of figures that are not negative: low with low, high with high; an unavailable one makes it unavailable.

    The ends hold when every factor is at its end at once, so they are wider than those of independent errors.
    """
    low = likely = high = 1.0
    for each in ranges:
        if isinstance(each, Unavailable):
            return each
        low, likely, high = (
            (low * each.low, likely * each.likely, high * each.high)
            if isinstance(each, Interval)
            else (low * each, likely * each, high * each)
        )
    return Interval(low, likely, high)


def around(likely: Figure, *, low: Figure, high: Figure) -> Range:
    """Return the interval of a likely figure; an end that is unavailable is the likely figure itself."""
    if isinstance(likely, Unavailable):
        return likely
    return Interval(likely if isinstance(low, Unavailable) else low, likely, likely if isinstance(high, Unavailable) else high)


def likely_of(found: Range) -> Figure:
    """Return the likely figure of an interval."""
    return found if isinstance(found, Unavailable) else found.likely
