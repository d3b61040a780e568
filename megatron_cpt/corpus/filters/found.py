"""What a rule found: the rule's name, the measured value and its threshold."""

from __future__ import annotations

from typing import NamedTuple


class Found(NamedTuple):
    """Why a text is dropped: `rule` is the rule's key in the configuration."""

    rule: str
    measured: float
    threshold: float

    @property
    def detail(self) -> str:
        """The measured value beside the threshold; of a rule that is on or off, its name."""
        if self.rule.startswith("drop_"):
            return self.rule
        return f"{self.measured:.6g}, {self.rule} {self.threshold:.6g}"
