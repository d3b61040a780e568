"""What `metrics.jsonl` says of the weights that a run ended with, and of those that it left behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

Record = dict[str, Any]
OF_A_STEP = ("step", "eval", "forgetting")


@dataclass(frozen=True)
class StepRecords:
    """The records of training by kind, in the order of their steps.

    Attributes:
        steps: those that led to the current weights; `evals` and `forgetting` are the evaluations between them.
        left: steps of earlier rounds that the current weights do not come from, by round.
        head: the latest `attempt` record, which says what the readings of a step mean.
        resumes: the step that each later attempt or round began at, with its round, in order.
        events: what happened beside steps, such as a rollback.
    """

    steps: list[Record] = field(default_factory=list)
    evals: list[Record] = field(default_factory=list)
    forgetting: list[Record] = field(default_factory=list)
    left: dict[int, list[Record]] = field(default_factory=dict)
    head: Record = field(default_factory=dict)
    resumes: list[Record] = field(default_factory=list)
    events: list[Record] = field(default_factory=list)

    @classmethod
    def of(cls, lines: Sequence[Record]) -> StepRecords:
        current: list[Record] = []
        found = cls()
        for line in lines:
            kind = line.get("kind")
            if kind == "resume":
                begin = line.get("step", 0)
                for lost in current:
                    if lost["step"] > begin and lost["kind"] == "step":
                        found.left.setdefault(lost.get("round", 1), []).append(lost)
                current = [each for each in current if each["step"] <= begin]
                found.resumes.append(line)
            elif kind in OF_A_STEP:
                current.append(line)
            elif kind == "attempt":
                found.head.update(line)
            elif kind == "event":
                found.events.append(line)
        for each in current:
            {"step": found.steps, "eval": found.evals, "forgetting": found.forgetting}[each["kind"]].append(each)
        return found

    def tokens_at(self) -> dict[int, float]:
        """Return the tokens that the weights of each recorded step have seen."""
        return {0: 0.0, **{each["step"]: float(each["tokens"]) for each in self.steps}}

    def points(self, key: str) -> list[tuple[float, float]]:
        """Return a figure of the steps over tokens; steps without it, or where it is unknown, are left out."""
        return points_of(self.steps, key)


def points_of(steps: Sequence[Record], key: str) -> list[tuple[float, float]]:
    """Return a figure of step records over tokens."""
    return [(float(step["tokens"]), float(step[key])) for step in steps if is_number(step.get(key))]


def is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
