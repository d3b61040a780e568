"""The decision of the gate as data: one result per rule, one verdict, one fingerprint."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from megatron_cpt.record.hashing import sha256_plain
from megatron_cpt.record.store import read_json
from megatron_cpt.record.typed import from_plain, to_plain

VERDICT_NAME = "verdict.json"


@dataclass(frozen=True)
class RuleResult:
    """One rule and its figures, in bits per byte; `difference` is candidate minus base, with the interval `low` to `high`.

    `passed` is None when the rule could not be judged; `reason` says why, or how it was judged.
    """

    on: str
    kind: str
    margin: float
    num_documents: int
    base: float | None
    candidate: float | None
    difference: float | None
    low: float | None
    high: float | None
    passed: bool | None
    reason: str

    def __str__(self) -> str:
        return f"{self.on} {self.kind.replace('_', ' ')}: {self.reason}"


@dataclass(frozen=True)
class Verdict:
    """What is to happen with the candidate. It never becomes `promote` while a rule is unknown."""

    decision: Literal["promote", "rollback", "unknown"]
    rules: tuple[RuleResult, ...]
    reasons: tuple[str, ...]
    confidence: float
    bootstrap_samples: int
    seed: int
    base_weights_sha256: str | None
    candidate_weights_sha256: str | None

    @cached_property
    def fingerprint(self) -> str:
        return sha256_plain(to_plain(self))

    @classmethod
    def load(cls, path: Path) -> Verdict:
        """Read a recorded verdict.

        Raises:
            DataError: it is missing or is not JSON.
            ConfigError: it has another form.
        """
        return from_plain(cls, read_json(path), where=path)
