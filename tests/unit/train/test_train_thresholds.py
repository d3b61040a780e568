"""The plan's tokens and in-loop scores at which training ends: when they are reached, in that step on every rank, with exit code 6."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import pytest

from megatron_cpt.plan.run_plan import StopConditions, StopScore
from megatron_cpt.train.runtime import StopRequest, status_of
from megatron_cpt.train.state import TrainState
from megatron_cpt.train.thresholds import Thresholds

LAW = StopScore("law", "bits_per_byte", at_most=0.9)
QUIZ = StopScore("quiz", "accuracy", at_least=0.6)


class Ended(Exception):
    pass


def thresholds(stop: StopConditions, *, kept: list[dict[str, Any]] | None = None, others: int = 0) -> tuple[Thresholds, list[str]]:
    """Return thresholds of a plan with 256 tokens a step, and the reasons for which they end training."""
    plan: Any = types.SimpleNamespace(stop=stop, round=1, layout=types.SimpleNamespace(tokens_per_step=256))
    records = [] if kept is None else kept
    reasons: list[str] = []
    found = Thresholds(
        plan, agree=lambda number: max(number, others), end=reasons.append, record=records.append, records=lambda: list(records)
    )
    return found, reasons


def at(step: int) -> TrainState:
    return TrainState(step=step, samples_seen=8 * step, source_samples=(8 * step,), source_tokens=(256 * step,))


def stop(*scores: StopScore, max_tokens: int | None = None) -> StopConditions:
    return StopConditions(None, None, None, max_tokens=max_tokens, scores=scores)


def test_tokens_are_never_more_than_the_limit_and_a_restart_ends_at_once() -> None:
    found, reasons = thresholds(stop(max_tokens=1000))
    for step in (1, 2):
        found.after_step(at(step))
    assert reasons == []
    found.after_step(at(3))  # 768 tokens; a fourth step would make 1,024
    assert reasons == ["the plan's stop.max_tokens was reached: 768 of 1000 tokens"]
    again, reasons = thresholds(stop(max_tokens=1000))
    again.on_start(at(3))
    assert len(reasons) == 1


@pytest.mark.parametrize(
    ("bits", "tasks", "is_reached"),
    [
        ({"law": 0.9}, {}, True),
        ({"law": 0.9001}, {}, False),
        ({"law": 0.95}, {"quiz": {"accuracy": 0.6}}, True),
        ({"law": 0.95}, {"quiz": {"accuracy": 0.59}}, False),
        ({"law": 0.95}, {"quiz": {"accuracy": None}}, False),  # no number is at no threshold
        ({"other": 0.1}, {"quiz": {"gap": 0.9}}, False),
    ],
)
def test_a_score_ends_training_at_its_threshold_and_no_other_score_does(
    *, bits: dict[str, float], tasks: dict[str, dict[str, float | None]], is_reached: bool
) -> None:
    kept: list[dict[str, Any]] = []
    found, reasons = thresholds(stop(LAW, QUIZ), kept=kept)
    found.look_at(bits, tasks, step=7)
    assert bool(reasons) == bool(kept) == is_reached


def test_a_restart_at_the_step_of_a_threshold_ends_at_once_on_every_rank_and_names_it() -> None:
    kept: list[dict[str, Any]] = []
    first, _ = thresholds(stop(LAW, QUIZ), kept=kept)
    first.look_at({"law": 1.0}, {"quiz": {"accuracy": 0.7}}, step=7)
    again, reasons = thresholds(stop(LAW, QUIZ), kept=kept)
    again.on_start(at(7))
    assert reasons == ["the plan's stop.scores[1] was reached: quiz accuracy at least 0.6"]
    other, reasons = thresholds(stop(LAW, QUIZ), others=2)  # this rank keeps no records; the first one's answer holds
    other.on_start(at(7))
    assert reasons == ["the plan's stop.scores[1] was reached: quiz accuracy at least 0.6"]
    earlier, reasons = thresholds(stop(LAW, QUIZ), kept=kept)
    earlier.on_start(at(4))
    assert reasons == []


def test_a_threshold_is_a_budget_stop_without_a_collective_and_its_first_reason_stays(tmp_path: Path) -> None:
    def no_collective(_: int) -> int:
        raise Ended

    request = StopRequest(tmp_path, limits={}, agree=no_collective, seconds_used=lambda: 0.0)
    with pytest.raises(Ended):
        request.requested()
    request.end_at_threshold("the plan's stop.max_tokens was reached")
    request.end_at_threshold("another one")
    assert request.requested()
    assert (status_of(request), request.reason) == ("budget", "the plan's stop.max_tokens was reached")
