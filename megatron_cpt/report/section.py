"""A part of the page, and how its figures are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Section:
    """A heading with an id to jump to, and HTML below it."""

    id: str
    title: str
    body: str

    @property
    def html(self) -> str:
        return f'<section id="{self.id}"><h2>{escape(self.title)}</h2>{self.body}</section>'


def note(*texts: str) -> str:
    """Return a quiet paragraph; its text is escaped."""
    return f'<p class="soft">{escape(" ".join(text for text in texts if text))}</p>'


def notes(texts: Sequence[str]) -> str:
    """Return quiet lines as a list; empty for none."""
    return f'<ul class="soft">{"".join(f"<li>{escape(text)}</li>" for text in texts)}</ul>' if texts else ""


def figure_text(value: float | None, pattern: str = "{:.4f}") -> str:
    return "unknown" if value is None else pattern.format(value)


def interval_text(low: float | None, high: float | None, pattern: str = "{:+.4f}") -> str:
    return "unknown" if low is None or high is None else f"{pattern.format(low)} to {pattern.format(high)}"


def change_text(base: float | None, trained: float | None) -> str:
    return "unknown" if base is None or trained is None else f"{trained - base:+.4f}"
