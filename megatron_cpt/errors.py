"""Errors that a user of the command line sees, and the exit code each one ends with.

A `CptError` says what went wrong, where, with which value, by which rule, and what to do next. Our own bugs stay
`assert`s and ordinary exceptions: they keep their traceback.
"""

from __future__ import annotations

from collections.abc import Sequence

EXIT_FINISHED = 0
EXIT_ROLLED_BACK = 5
EXIT_BUDGET = 6
EXIT_STOPPED = 75


def printable(value: object) -> str:
    """Return the text of a value with control characters escaped, so that strangers' names cannot move the cursor."""
    text = value if isinstance(value, str) else repr(value)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class CptError(Exception):
    """A failure that the user can mend.

    Args:
        what: one sentence on what is wrong.
        where: file, key or rank where it was found.
        value: the offending value, shown with control characters escaped.
        rule: the rule that it breaks.
        next_step: what to do about it, as a command or a key where possible.
    """

    exit_code = 1

    def __init__(
        self, what: str, *, where: object = None, value: object = None, rule: str | None = None, next_step: str | None = None
    ) -> None:
        lines = [what]
        for label, part in (("where", where), ("value", value), ("rule", rule), ("next", next_step)):
            if part is not None:
                text = part if label in ("rule", "next") else printable(part if isinstance(part, str) else str(part))
                lines.append(f"  {label + ':':<6} {text}")
        super().__init__("\n".join(lines))


class ConfigError(CptError):
    """The configuration, or a stage's recorded inputs, do not allow the run."""

    exit_code = 2


class DataError(CptError):
    """A corpus, tokenizer or index is missing, damaged or refused."""

    exit_code = 3


class CheckpointError(CptError):
    """A base model or a checkpoint is missing, damaged or does not match the plan."""

    exit_code = 4


class FollowsAnotherRank(CptError):
    """A rank ends because another one failed or died: its own words count only when no other rank speaks."""


class RolledBack(CptError):
    """The gate refused the candidate; the rollback has been carried out."""

    exit_code = EXIT_ROLLED_BACK


class BudgetReached(CptError):
    """A stop condition of the plan was reached; the checkpoint was saved."""

    exit_code = EXIT_BUDGET


class Stopped(CptError):
    """A signal or a stop request ended training early; a checkpoint was saved and the run can go on."""

    exit_code = EXIT_STOPPED


def raise_all(error: type[CptError], problems: Sequence[str], *, where: object = None, next_step: str | None = None) -> None:
    """Raise one error that lists every problem; return quietly when there is none."""
    if not problems:
        return
    if len(problems) == 1:
        raise error(problems[0], where=where, next_step=next_step)
    listed = "\n".join(f"  {number}. {problem}" for number, problem in enumerate(problems, 1))
    raise error(f"{len(problems)} problems:\n{listed}", where=where, next_step=next_step)
