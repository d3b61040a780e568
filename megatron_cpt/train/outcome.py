"""How a training attempt ended, as a file: torchrun turns every exit code of its workers into 1."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from megatron_cpt.errors import EXIT_BUDGET, EXIT_FINISHED, EXIT_ROLLED_BACK, EXIT_STOPPED
from megatron_cpt.gate.limits import Breach
from megatron_cpt.record.store import read_json, write_json
from megatron_cpt.record.typed import from_plain, to_plain

OUTCOME_NAME = "outcome.json"
SCHEMA_VERSION = 1
Status = Literal["finished", "stopped", "budget", "limit", "failed"]
EXIT_CODES: dict[Status, int] = {
    "finished": EXIT_FINISHED, "stopped": EXIT_STOPPED, "budget": EXIT_BUDGET, "limit": EXIT_ROLLED_BACK, "failed": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """The end of one attempt.

    Attributes:
        step: steps done; None when the attempt failed before its first.
        seconds: wall time of the attempt.
        reason: why it stopped or failed, for a person; empty when finished.
        checkpoint: newest complete checkpoint relative to the run folder, None when there is none.
        rank: the rank that wrote this record.
        source_tokens: tokens that this attempt read of each source, those of steps that a later attempt redoes included.
        breach: the hard limit of the plan that ended training, None when none did.
    """

    schema_version: int
    status: Status
    step: int | None
    exit_code: int
    seconds: float
    reason: str
    checkpoint: str | None
    rank: int
    source_tokens: dict[str, int] = field(default_factory=dict)
    breach: Breach | None = None


def write_outcome(train_dir: Path, outcome: Outcome) -> None:
    write_json(train_dir / OUTCOME_NAME, to_plain(outcome))


def read_outcome(train_dir: Path) -> Outcome | None:
    """Return the last attempt's end; None when it was killed before it could say so, or never began."""
    path = train_dir / OUTCOME_NAME
    return from_plain(Outcome, read_json(path), where=path) if path.exists() else None
