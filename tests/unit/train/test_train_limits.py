"""Hard limits in the loop: when a score breaks one, that all ranks end in that step, and the verdict that follows."""

from __future__ import annotations

import dataclasses
import math
import signal
import types
from pathlib import Path
from typing import Any

import pytest

from megatron_cpt.gate.limits import Breach, breach_of, not_finite, verdict_of_breach
from megatron_cpt.plan.run_plan import GateLimit, GatePlan
from megatron_cpt.train.divergence import TrainingDiverged
from megatron_cpt.train.forgetting import forgetting_record
from megatron_cpt.train.hooks import InLoopEvaluation
from megatron_cpt.train.limits import Limits
from megatron_cpt.train.runtime import StopRequest, status_of
from megatron_cpt.train.state import TrainState

BIT = math.log(2)
GATE = GatePlan((), 0.9, 500, 3, limits=(GateLimit("web", 0.3),))


def plan(*, grace: int = 0, gate: GatePlan = GATE, number: int = 1) -> Any:
    """Return what limits read of a plan."""
    return types.SimpleNamespace(gate=gate, grace_steps=grace, round=number)


def scores(worse: float, *, spread: float = 0.0, text: str = "web") -> dict[str, Any]:
    """Return scores of 8 documents of 100 bytes, `worse` bits per byte above a base of 1.0 on average, `spread` to either side."""
    documents = [{"id": f"d{n}", "bytes": 100, "nats": (100 + 100 * (worse + spread * (-1) ** n)) * BIT, "tokens": 25} for n in range(8)]
    nats = sum(document["nats"] for document in documents)
    return {text: {"role": "general", "documents": documents, "nats": nats, "tokens": 200, "bits_per_byte": nats / BIT / 800}}


BASELINE = {"subjects": {"base": {"weights_sha256": "b", "texts": scores(0.0) | scores(0.0, text="law")}}}


@pytest.mark.parametrize(
    ("worse", "spread", "step", "grace", "is_broken"),
    [
        (0.4, 0.01, 7, 0, True),
        (0.4, 0.01, 7, 7, False),  # in the grace window
        (0.4, 0.01, 8, 7, True),
        (0.31, 0.5, 7, 0, False),  # the estimate lies beyond the limit, its interval does not
        (0.3 - 1e-9, 0.0, 7, 0, False),
        (-0.4, 0.01, 7, 0, False),
    ],
)
def test_a_limit_breaks_when_estimate_and_interval_lie_beyond_it_after_the_grace_window(
    *, worse: float, spread: float, step: int, grace: int, is_broken: bool
) -> None:
    record = forgetting_record(plan(grace=grace), BASELINE, scores(worse, spread=spread), step=step)
    breach = breach_of(GATE, record)
    assert (breach is not None) == is_broken
    if breach is not None:
        assert (breach.of, breach.step, breach.max_increase, breach.confidence) == ("web", step, 0.3, 0.9)
        assert breach.difference == pytest.approx(worse)
        assert breach.low is not None
        assert 0.3 < breach.low <= worse + 1e-9


def test_a_text_without_a_limit_or_without_a_comparable_score_breaks_nothing() -> None:
    assert breach_of(GATE, forgetting_record(plan(), BASELINE, scores(9.0, text="law"), step=7)) is None
    other = scores(9.0)
    other["web"]["documents"].pop()
    assert breach_of(GATE, forgetting_record(plan(), BASELINE, other, step=7)) is None
    assert not_finite(GATE, {"law": math.nan}, step=7) is None


class Rank:
    """One rank with in-loop evaluation: what it scores, and what came of it. Ranks of a test share what they agree on."""

    def __init__(self, found: dict[str, Any], *, others: int = 0, first: bool = True, gate: GatePlan = GATE, grace: int = 0) -> None:
        self.kept: list[dict[str, Any]] = []
        self.stops: list[tuple[str, bool]] = []
        record = self.kept.append if first else (lambda _: None)
        compare: Any = (lambda given, step: forgetting_record(plan(gate=gate, grace=grace), BASELINE, given, step=step)) if first else None
        self.limits = Limits(
            plan(gate=gate, number=2),
            agree=lambda code: max(code, others),
            stop=lambda reason, *, is_spoilt: self.stops.append((reason, is_spoilt)),
            record=record,
            records=lambda: self.kept,
        )
        self.hook = InLoopEvaluation(
            lambda: found, every_steps=2, record=record, compare=compare or (lambda _scores, _step: None), limits=self.limits
        )

    def step(self, number: int) -> Rank:
        self.hook.after_step(TrainState(number, 8 * number, (8 * number,), (8 * number,)))
        return self


def test_the_first_rank_ends_training_with_figures_and_an_event() -> None:
    rank = Rank(scores(0.4)).step(3).step(4)
    ((reason, is_spoilt),) = rank.stops
    assert reason.startswith("hard limit in the loop of round 2: web is +0.4000 bits per byte against the frozen base after step 4")
    assert not is_spoilt
    assert [record["kind"] for record in rank.kept] == ["eval", "forgetting", "event"]
    assert rank.kept[-1] == {"kind": "event", "event": "limit", "step": 4, "reasons": [reason]}


def test_another_rank_ends_in_the_same_step_on_the_first_ones_word() -> None:
    rank = Rank(scores(0.4), others=1, first=False).step(4)
    assert len(rank.stops) == 1
    assert Rank(scores(0.4), others=0, first=False).step(4).stops == []


def test_a_loss_that_is_no_number_ends_it_even_in_the_grace_window_and_only_where_there_is_a_limit() -> None:
    spoilt = scores(math.nan)
    rank = Rank(spoilt, grace=100).step(4)
    ((reason, is_spoilt),) = rank.stops
    assert "the loss on web is not a finite number after step 4" in reason
    assert is_spoilt
    assert [record["kind"] for record in rank.kept] == ["event"]
    with pytest.raises(TrainingDiverged, match="loss on law is not a finite number"):
        Rank(scores(0.0) | scores(math.inf, text="law")).step(4)
    without = InLoopEvaluation(lambda: spoilt, every_steps=2, record=lambda _: None)
    with pytest.raises(TrainingDiverged, match="loss on web is not a finite number"):
        without.after_step(TrainState(2, 16, (16,), (16,)))


def test_a_run_that_was_killed_after_the_breach_ends_when_it_is_started_again() -> None:
    rank = Rank(scores(0.4)).step(4)
    rank.kept[-1]["round"] = 2  # as the metrics file keeps it
    state = TrainState(4, 32, (32,), (32,))
    rank.hook.on_start(state)
    assert len(rank.stops) == 2
    rank.hook.on_start(TrainState(2, 16, (16,), (16,)))  # resumed from before it
    assert len(rank.stops) == 2


def test_a_stop_for_a_limit_needs_no_exchange_and_has_its_own_status(tmp_path: Path) -> None:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    try:
        stop = StopRequest(tmp_path, limits={}, agree=lambda _: pytest.fail("an exchange"), seconds_used=lambda: 0.0)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    stop.break_limit("too far", is_spoilt=False)
    assert stop.requested()
    assert (status_of(stop), stop.reason) == ("limit", "too far")


def test_the_verdict_of_a_breach_is_a_rollback_with_its_reason_and_differs_between_rounds() -> None:
    breach = Breach(step=4, of="web", max_increase=0.3, confidence=0.9, difference=0.41, low=0.35)
    verdict = verdict_of_breach(BASELINE, GATE, breach, weights_sha256="w")
    assert (verdict.decision, verdict.rules, verdict.candidate_weights_sha256, verdict.base_weights_sha256) == ("rollback", (), "w", "b")
    assert verdict.reasons == (
        "hard limit in the loop: web is +0.4100 bits per byte against the frozen base after step 4, at least +0.3500 at 90%;"
        " the limit is +0.3000",
    )
    again = verdict_of_breach(BASELINE, GATE, dataclasses.replace(breach, round=2), weights_sha256="w")
    assert again.fingerprint != verdict.fingerprint
