"""What a person is called for: an update or loss that is not finite, a spike, a reached budget, a broken limit, a verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from megatron_cpt.train.divergence import TrainingDiverged

Level = Literal["INFO", "WARN", "ERROR"]

TEXT_LIMIT = 2000  # of a mail or chat message; what is longer stands in the records
ENDS: dict[str, tuple[str, Level]] = {
    "diverged": ("Training diverged", "ERROR"),
    "failed": ("Training failed", "ERROR"),
    "budget": ("Budget reached", "WARN"),
    "limit": ("Hard limit broken", "ERROR"),
}
EVENTS: dict[str, tuple[str, Level]] = {
    "promote": ("Verdict: promoted", "INFO"),
    "rollback": ("Verdict: rolled back", "ERROR"),
    "unknown": ("Verdict: unknown", "WARN"),
    "new round": ("New round", "INFO"),
}


@dataclass(frozen=True)
class Alert:
    """A title that is equal for equal causes, so that a tracker can tell the same one from a new one, and the particulars."""

    title: str
    text: str
    level: Level


def alert_of(record: Mapping[str, Any]) -> Alert | None:
    """Return what a record calls a person for; None where it does not.

    An end that was asked for, a resume, and a threshold or hard limit (whose attempt's end says it) call for nobody.
    """
    kind, where = record.get("kind"), f"step {record.get('step')}"
    if kind == "step" and record.get("is_skipped"):
        if record.get("loss") is None or record.get("grad_norm") is None:
            return Alert("Not a finite number", f"{where}: loss or gradient; the update was left out.", "WARN")
        return Alert("Gradient spike", f"{where}: norm {record['grad_norm']:.4g}; the update was left out.", "WARN")
    if kind == "event":
        known = (ENDS if record.get("is_end") else EVENTS).get(str(record.get("event")))
        reasons = "; ".join(map(str, record.get("reasons", ()))) or "no reason is recorded"
        return None if known is None else Alert(known[0], reasons[:TEXT_LIMIT], known[1])
    return None


def end_event(status: str, reason: str, *, step: int | None) -> dict[str, Any]:
    """Return the end of an attempt as an event for trackers; `outcome.json` is its record."""
    return {"kind": "event", "event": status, "step": step, "reasons": [reason] if reason else [], "is_end": True}


def failure_event(error: BaseException, *, step: int | None) -> dict[str, Any]:
    """Return the end of a failed attempt as an event for trackers."""
    return end_event("diverged" if isinstance(error, TrainingDiverged) else "failed", str(error) or type(error).__name__, step=step)
