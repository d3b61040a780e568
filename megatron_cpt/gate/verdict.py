"""The decision of the gate as data: one result per rule, one verdict, one fingerprint."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from megatron_cpt.plan.metrics import TEXT_METRIC
from megatron_cpt.record.hashing import sha256_plain
from megatron_cpt.record.store import read_json
from megatron_cpt.record.typed import from_plain, to_plain

VERDICT_NAME = "verdict.json"
VERDICT_PAGE = "verdict.md"
SCHEMA_VERSION = 2

Outcome = Literal["passed", "failed", "unsure", "unknown"]


@dataclass(frozen=True)
class RuleResult:
    """One rule and its figures, in the metric's unit; `difference` is candidate minus base, with the interval `low` to `high`.

    `passed`: what the rule asks was shown. `failed`: harm beyond it was shown. `unsure`: neither was. `unknown`: it could not be
    measured. `p_passed` and `p_failed` are the corrected p-values of the first two, each to be held against `level`;
    `smallest_detectable` is the distance from a bound that these items show in four cases of five, and `items_needed` how many
    items would show the present one.
    """

    on: str
    metric: str
    kind: str
    group: str
    margin: float
    required: bool
    outcome: Outcome
    reason: str
    num_items: int = 0
    num_excluded: int = 0
    base: float | None = None
    candidate: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p_passed: float | None = None
    p_failed: float | None = None
    level: float | None = None
    test: str = ""
    smallest_detectable: float | None = None
    items_needed: int | None = None

    @property
    def passed(self) -> bool | None:
        """True or False where the rule was decided, None where it is unsure or unknown."""
        return {"passed": True, "failed": False}.get(self.outcome)

    @property
    def name(self) -> str:
        """What the rule is on, with the metric unless it is the one of texts."""
        return self.on if self.metric == TEXT_METRIC else f"{self.on} {self.metric}"

    def __str__(self) -> str:
        advisory = "" if self.required else " (advisory)"
        return f"{self.name} {self.kind.replace('_', ' ')}{advisory}: {self.reason}"


@dataclass(frozen=True)
class Verdict:
    """What is to happen with the candidate: promoted when everything asked was shown, rolled back when harm was, else unknown.

    `step` is the candidate's, None where it is not recorded; `notes` say what the decision does not rest on.
    """

    decision: Literal["promote", "rollback", "unknown"]
    rules: tuple[RuleResult, ...]
    reasons: tuple[str, ...]
    confidence: float
    bootstrap_samples: int
    seed: int
    base_weights_sha256: str | None
    candidate_weights_sha256: str | None
    step: int | None = None
    notes: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION

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
