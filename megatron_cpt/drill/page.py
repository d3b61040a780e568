"""The checklist of a drill for a terminal, as Markdown and as a record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megatron_cpt.drill.promises import Promise
from megatron_cpt.record.typed import to_plain

SCHEMA_VERSION = 1
MARKS = {True: "held", False: "BROKEN", None: "untested"}


@dataclass(frozen=True)
class DrillResult:
    """One drill: what was done badly, from which checkpoint, and what came of each promise."""

    name: str
    kind: str
    bad: str
    run: str
    good_checkpoint: str
    good_sha256: str
    num_steps: int
    tokens: int
    seconds: float
    promises: tuple[Promise, ...]

    @property
    def held(self) -> bool:
        return all(promise.held for promise in self.promises)

    def to_record(self) -> dict[str, Any]:
        return {"schema_version": SCHEMA_VERSION, "held": self.held, **to_plain(self)}


def checklist(promises: Sequence[Promise]) -> list[str]:
    """Return one line a promise, with what was seen below it where it is long."""
    width = max(len(promise.promise) for promise in promises)
    return [f"{MARKS[promise.held]:<9}{promise.promise:<{width + 2}}{promise.seen}" for promise in promises]


def markdown(result: DrillResult) -> str:
    """Return the page of one drill."""
    kept = "Every promise held." if result.held else "NOT every promise held."
    rows = [f"| {MARKS[promise.held]} | {promise.promise} | {_cell(promise.seen)} |" for promise in result.promises]
    return "\n".join([
        f"# Drill {result.name} of the run {result.run}",
        "",
        f"{kept} A continuation from `{result.good_checkpoint}` (sha256 {result.good_sha256}) was made bad on purpose: {result.bad},"
        f" for {result.num_steps} steps ({result.tokens:,} tokens). Training, evaluation, gate and rollback took {result.seconds:.1f} s"
        " and are on the run's ledger as the stage `drill`.",
        "",
        "| | promise | seen |",
        "| --- | --- | --- |",
        *rows,
        "",
    ])  # fmt: skip


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
