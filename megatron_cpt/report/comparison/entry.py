"""One run of a comparison: its state, settings, bill, tokens and tokenizer, and the scores that its figures are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from megatron_cpt.errors import CptError
from megatron_cpt.meter.totals import WHOLE, StageTotals
from megatron_cpt.plan.run_plan import RunPlan
from megatron_cpt.record.unknown import Figure, Unavailable
from megatron_cpt.report.comparison.settings import settings_of
from megatron_cpt.report.records import RunRecords

VERDICTS = {"promote": "promoted", "rollback": "rolled back", "unknown": "verdict unknown"}
STATES = {"running": "running", "failed": "failed", "stopped": "stopped", "killed": "killed"}


@dataclass(frozen=True)
class State:
    """How far a run came: one word or two, and the details."""

    word: str
    detail: str = ""

    @property
    def css_class(self) -> str:
        """The colour of the verdicts in charts/style.css."""
        return {"promoted": "promote", "rolled back": "rollback", "failed": "rollback", "killed": "rollback"}.get(self.word, "unknown")

    def __str__(self) -> str:
        return f"{self.word} ({self.detail})" if self.detail else self.word


@dataclass(frozen=True)
class Entry:
    """One run as the comparison sees it; `records` is None for a run whose records cannot be read, and `state` says why."""

    name: str
    folder: Path
    state: State
    records: RunRecords | None = None
    baseline: Mapping[str, Any] = field(default_factory=dict)
    candidate: Mapping[str, Any] | None = None

    @classmethod
    def read(cls, folder: Path, *, name: str) -> Entry:
        """Read a run; a damaged record makes an unreadable entry, so that the other runs are still compared."""
        try:
            records = RunRecords.read(folder)
        except CptError as error:
            return cls(name, folder, State("unreadable", " ".join(str(error).split())))
        for stage, found in (("baseline", records.baseline), ("eval", records.candidate)):
            if not isinstance(found, dict) and (folder / stage / "eval.json").exists():
                return cls(name, folder, State("unreadable", f"{stage}/eval.json is damaged"))
        return cls(name, folder, _state(records), records, records.baseline or {}, records.candidate)

    @property
    def plan(self) -> RunPlan | None:
        return self.records.plan if self.records else None

    @cached_property
    def settings(self) -> dict[str, Any]:
        return settings_of(self.records.manifests) if self.records else {}

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that have finished."""
        return tuple(self.records.manifests) if self.records else ()

    @property
    def tokens(self) -> Figure:
        """Tokens in the weights: of finished training, or of the last recorded step."""
        if self.records and "tokens" in self.records.facts("train"):
            return float(self.records.facts("train")["tokens"])
        if self.records and self.records.steps:
            return float(self.records.steps[-1]["tokens"])
        return Unavailable("no step is recorded")

    def total(self, stage: str = WHOLE) -> StageTotals | None:
        """Return the bill of a stage over all its attempts, failed ones too; None where there was none."""
        return self.records.total(stage) if self.records else None

    def taken_over(self) -> dict[str, str]:
        """Return the stages that another run did, each with that run's name: they are on its bill."""
        manifests = self.records.manifests if self.records else {}
        return {stage: manifest.taken_from for stage, manifest in manifests.items() if manifest.taken_from}

    def bytes_per_token(self, role: str, subject: str = "init") -> Figure:
        """Return the bytes of a token on the held-out texts of a role; `init` has the run's own vocabulary, `base` the base model's."""
        texts = self.baseline.get("subjects", {}).get(subject, {}).get("texts", {})
        same = [text for text in texts.values() if text.get("role") == role]
        tokens = sum(text.get("tokens", 0) for text in same)
        if not tokens:
            return Unavailable(f"no {role} text has been scored with this vocabulary")
        return float(sum(text["bytes"] for text in same) / tokens)


def _state(records: RunRecords) -> State:
    last = records.attempts[-1] if records.attempts else None
    if records.verdict is not None:
        after = f"then {last.status} in {last.stage}" if last and last.status in STATES and last.stage != "gate" else ""
        return State(VERDICTS[records.verdict.decision], after)
    if last is None:
        return State("not begun") if not records.manifests else State("unfinished", f"up to {list(records.manifests)[-1]}")
    if last.status not in STATES:
        return State("unfinished", f"up to {last.stage}")
    detail = f"in {last.stage}"
    if last.stage == "train" and records.steps:
        detail += f" after step {records.steps[-1]['step']}" + (f" of {records.plan.num_steps}" if records.plan else "")
    if last.status == "failed" and last.exit_code is not None:
        detail += f", exit code {last.exit_code}"
    return State(STATES[last.status], detail)
