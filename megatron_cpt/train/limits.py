"""Ends training on every rank in the same step when an in-loop score breaks a hard limit of the plan."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from megatron_cpt.gate.limits import Breach, breach_of, not_finite
from megatron_cpt.plan.run_plan import RunPlan

LIMIT_EVENT = "limit"

logger = logging.getLogger(__name__)


class Limits:
    """The plan's hard limits on one rank. Only the first rank compares with the frozen base; its answer holds for all."""

    def __init__(
        self,
        plan: RunPlan,
        *,
        agree: Callable[[int], int],
        stop: Callable[..., None],
        record: Callable[[dict[str, Any]], None],
        records: Callable[[], list[dict[str, Any]]],
    ) -> None:
        """Take what ends training and what keeps a record of it.

        Args:
            agree: returns the highest of all ranks' numbers; a collective.
            stop: ends training after this step, on the rank that calls it, for a reason and `is_spoilt`.
            record: keeps one record; does nothing on ranks that do not write.
            records: returns those that were kept; nothing on ranks that do not write.
        """
        self._plan, self._agree, self._stop, self._record, self._records = plan, agree, stop, record, records
        self.breach: Breach | None = None

    def were_broken_at(self, step: int) -> bool:
        """Say whether an earlier attempt of this round met a broken limit after this step. Collective."""
        mine = ("event", LIMIT_EVENT, step, self._plan.round)
        met = [record for record in self._records() if mine == _of_event(record)]
        return self._agree(int(bool(met))) > 0

    def are_broken_by(self, bits_per_byte: Mapping[str, float], *, step: int) -> bool:
        """End training when a text with a limit has no finite score, and say so. The scores are equal on every rank: no collective."""
        breach = not_finite(self._plan.gate, bits_per_byte, step=step)
        if breach is not None:
            self._end(breach)
        return breach is not None

    def look_at(self, forgetting: Mapping[str, Any] | None, *, step: int) -> None:
        """End training on all ranks when the first one's `forgetting` record breaks a limit. Collective."""
        breach = None if forgetting is None else breach_of(self._plan.gate, forgetting)
        if self._agree(int(breach is not None)):
            self._end(breach or Breach(step, "a text", 0.0, self._plan.gate.confidence, 0.0, 0.0))

    def _end(self, breach: Breach) -> None:
        self.breach = breach = replace(breach, round=self._plan.round)  # so that two rounds never have one verdict
        self._record({"kind": "event", "event": LIMIT_EVENT, "step": breach.step, "reasons": [breach.reason]})
        logger.info("step %d: %s. Training ends here.", breach.step, breach.reason)
        self._stop(breach.reason, is_spoilt=breach.difference is None)


def _of_event(record: Mapping[str, Any]) -> tuple[Any, ...]:
    return record.get("kind"), record.get("event"), record.get("step"), record.get("round", 1)
