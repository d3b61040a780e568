"""Figures in words and labelled lines: what the pages of a plan are written with. 80 columns of plain text."""

from __future__ import annotations

import textwrap

from megatron_cpt.plan.run_plan import RankMemory
from megatron_cpt.record.unknown import Amount, Figure, Range, Unavailable

WIDTH = 80
INDENT = 12


def show_duration(seconds: Figure) -> str:
    """Return seconds as seconds, minutes, hours or days, whichever reads best."""
    if isinstance(seconds, Unavailable):
        return str(seconds)
    unit, length = _unit_of(seconds)
    return f"{show_amount(seconds / length)} {unit}"


def show_durations(likely: float, low: float, high: float) -> str:
    """Return a likely duration and its ends, all in the unit that reads best for the likely one."""
    unit, length = _unit_of(likely)
    shown, least, most = (show_amount(value / length) for value in (likely, low, high))
    return f"{shown} {unit} likely, {least} to {most}"


def _unit_of(seconds: float) -> tuple[str, int]:
    units = (("d", 86400), ("h", 3600), ("min", 60))
    return next(((unit, length) for unit, length in units if seconds >= 2 * length), ("s", 1))


def show_count(number: float) -> str:
    """Return a large count with its unit: 134.5 M, 8.03 G."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.4g} {unit}"
    return f"{number:g}"


def show_bytes(size: float) -> str:
    """Return a size in decimal units: 24.1 MB, 61.7 GB."""
    for unit, length in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= length:
            return f"{size / length:.3g} {unit}"
    return f"{size:g} B"


def show_amount(amount: float) -> str:
    """Return money, energy or carbon for a reader who plans with it: three digits below 1,000, whole numbers with commas above."""
    return f"{Amount(amount):.3g}"


def show_range(found: Range, unit: str) -> str:
    """Return the likely figure with its unit, and the ends where they are others."""
    if isinstance(found, Unavailable):
        return str(found)
    likely = f"{show_amount(found.likely)} {unit}"
    if found.low == found.likely == found.high:
        return likely
    return f"{likely} likely, {show_amount(found.low)} to {show_amount(found.high)}"


def field(label: str, text: str) -> list[str]:
    """Return a text behind its label, wrapped to the page."""
    return textwrap.wrap(
        text, WIDTH, initial_indent=f"{label:<{INDENT}}", subsequent_indent=" " * INDENT, break_long_words=True, break_on_hyphens=False
    )


def memory_parts(rank: RankMemory) -> dict[str, float]:
    """Return what the peak of a step is made of, in bytes, with the assumed allowances."""
    return {
        "weights": rank.weights,
        "gradients": rank.gradients,
        "optimizer": rank.optimizer,
        "activations": rank.activations,
        "logits and loss": rank.logits,
        "communication": rank.communication,
        "workspaces": rank.workspaces,
        "allowance for fragmentation": rank.allowance,
        "CUDA and NCCL": rank.outside_torch,
    }


def memory_items(rank: RankMemory) -> str:
    """Return what a step's peak is made of, and what a checkpoint takes where that is more."""
    parts = memory_parts(rank)
    items = ", ".join(f"{name} {show_bytes(value)}" for name, value in parts.items() if value > 0)
    step = rank.allocated_peak + rank.allowance
    for what, size in {"writing": rank.checkpoint_save, "reading": rank.checkpoint_load}.items():
        if size > step and size + rank.outside_torch == rank.total:
            return items + f"; {what} a checkpoint needs {show_bytes(rank.total)}"
    return items
