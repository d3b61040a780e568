"""Ends training on every rank in the same step at the plan's limit of tokens, or when an in-loop score is at one of its thresholds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from megatron_cpt.plan.metrics import TEXT_METRIC
from megatron_cpt.plan.run_plan import RunPlan, StopScore
from megatron_cpt.train.hooks import BaseHook
from megatron_cpt.train.state import TrainState

THRESHOLD_EVENT = "threshold"

logger = logging.getLogger(__name__)


class Thresholds(BaseHook):
    """The plan's tokens and scores at which it ends. Both are equal on every rank: no collective but at the start."""

    def __init__(
        self,
        plan: RunPlan,
        *,
        agree: Callable[[int], int],
        end: Callable[[str], None],
        record: Callable[[dict[str, Any]], None],
        records: Callable[[], list[dict[str, Any]]],
    ) -> None:
        """Take what ends training and what keeps a record of it.

        Args:
            agree: returns the highest of all ranks' numbers; a collective.
            end: ends training after this step for a reason, as a limit of the plan.
            record: keeps one record; does nothing on ranks that do not write.
            records: returns those that were kept; nothing on ranks that do not write.
        """
        self._plan, self._agree, self._end, self._record, self._records = plan, agree, end, record, records

    def on_start(self, state: TrainState) -> None:
        """End at once where an earlier attempt was at a threshold after this step: the same answer as then."""
        if self._plan.stop.scores:
            mine = ("event", THRESHOLD_EVENT, state.step, self._plan.round)
            met = [record["score"] for record in self._records() if mine == _of_event(record)]
            number = self._agree(1 + met[0] if met else 0)
            if 0 < number <= len(self._plan.stop.scores):  # a new plan may have fewer
                self._end(reason_of(number - 1, self._plan.stop.scores[number - 1]))
        self.after_step(state)

    def after_step(self, state: TrainState) -> None:
        """End when one more step would train on more tokens than the plan allows."""
        most = self._plan.stop.max_tokens
        if most is not None and (state.step + 1) * self._plan.layout.tokens_per_step > most:
            self._end(f"the plan's stop.max_tokens was reached: {state.step * self._plan.layout.tokens_per_step} of {most} tokens")

    def look_at(self, bits_per_byte: Mapping[str, float], tasks: Mapping[str, Mapping[str, float | None]], *, step: int) -> None:
        """End when a score of an in-loop evaluation is at a threshold; a score that is no number is at none."""
        for number, score in enumerate(self._plan.stop.scores):
            value = bits_per_byte.get(score.of) if score.metric == TEXT_METRIC else tasks.get(score.of, {}).get(score.metric)
            if value is None or not is_reached(score, value):
                continue
            reason = f"{reason_of(number, score)}: {value:.4f}"
            self._record({"kind": "event", "event": THRESHOLD_EVENT, "step": step, "score": number, "reasons": [reason]})
            logger.info("step %d: %s. Training ends here.", step, reason)
            self._end(reason)
            return


def is_reached(score: StopScore, value: float) -> bool:
    """Say whether a value is at the threshold or beyond it."""
    return (score.at_most is not None and value <= score.at_most) or (score.at_least is not None and value >= score.at_least)


def reason_of(number: int, score: StopScore) -> str:
    """Return the threshold in words."""
    bound = f"at most {score.at_most:g}" if score.at_most is not None else f"at least {score.at_least:g}"
    return f"the plan's stop.scores[{number}] was reached: {score.of} {score.metric} {bound}"


def _of_event(record: Mapping[str, Any]) -> tuple[Any, ...]:
    return record.get("kind"), record.get("event"), record.get("step"), record.get("round", 1)
