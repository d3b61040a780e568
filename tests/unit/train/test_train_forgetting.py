"""Forgetting while training: the difference to the frozen base, when it is a warning, and when it is unknown."""

from __future__ import annotations

import logging
import math
import types
from typing import Any

import pytest

from megatron_cpt.plan.run_plan import GatePlan, GateRule
from megatron_cpt.train.forgetting import forgetting_record, forgotten, grace_steps, warn_of

BIT = math.log(2)


def plan(*, grace: int | None = 0, margin: float = 0.1) -> Any:
    """Return what forgetting reads of a plan: 40 samples of warm-up in steps of 8."""
    return types.SimpleNamespace(
        gate=GatePlan((GateRule("web", "may_not_worsen", margin),), 0.9, 500, 3),
        grace_steps=grace,
        schedule=types.SimpleNamespace(warmup_samples=42),
        layout=types.SimpleNamespace(global_batch_size=8),
    )


def baseline() -> dict[str, Any]:
    documents = [{"id": f"d{number}", "bytes": 100, "nats": 100 * BIT} for number in range(8)]
    return {"subjects": {"base": {"texts": {"web": {"documents": documents}, "law": {"documents": documents}}}}}


def scores(worse: float, role: str = "general") -> dict[str, Any]:
    """Return scores that are `worse` bits per byte above the base on average, unlike from document to document."""
    documents = [{"id": f"d{number}", "bytes": 100, "nats": (100 + 100 * worse + (-1) ** number) * BIT} for number in range(8)]
    return {"web": {"role": role, "documents": documents}}


def test_the_difference_is_in_bits_per_byte_and_its_interval_holds_it() -> None:
    record = forgetting_record(plan(), baseline(), scores(0.25), step=7)
    found = record["texts"]["web"]
    assert (found["base"], found["now"], found["difference"]) == pytest.approx((1.0, 1.25, 0.25))
    # documents lie at 0.25 +- 0.01; a mean of 8 of them stays within 0.01 for certain
    assert 0.24 <= found["low"] < 0.25 < found["high"] <= 0.26
    assert (record["step"], record["confidence"], record["in_grace"]) == (7, 0.9, False)


@pytest.mark.parametrize(
    ("worse", "role", "step", "grace", "is_warned"),
    [
        (0.25, "general", 7, 0, True),
        (0.25, "general", 7, 10, False),  # in the grace window
        (0.25, "general", 11, 10, True),
        (0.05, "general", 7, 0, False),  # within the gate's margin
        (-0.25, "general", 7, 0, False),
        (0.25, "domain", 7, 0, False),
    ],
)
def test_a_warning_needs_a_whole_interval_above_the_margin_after_the_grace_window(
    *, worse: float, role: str, step: int, grace: int, is_warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = plan(grace=grace)
    record = forgetting_record(wanted, baseline(), scores(worse, role), step=step)
    with caplog.at_level(logging.WARNING):
        warn_of(wanted, record)
    assert ("web is 0.2500 bits per byte worse than the frozen base" in caplog.text) is is_warned
    assert bool(caplog.text) is is_warned


def test_the_grace_window_is_the_warm_up_unless_it_is_set() -> None:
    assert grace_steps(plan(grace=None)) == 6  # 42 samples in steps of 8
    assert grace_steps(plan(grace=3)) == 3


def test_other_documents_than_the_bases_make_it_unknown() -> None:
    fewer = scores(0.5)
    fewer["web"]["documents"] = fewer["web"]["documents"][1:]
    record = forgetting_record(plan(), baseline(), fewer, step=1)
    assert "other documents" in record["texts"]["web"]["unknown"]
    assert forgotten(plan(), record) == {}
    unknown = forgetting_record(plan(), {}, scores(0.5), step=1)
    assert "no scored documents" in unknown["texts"]["web"]["unknown"]


def test_one_document_gives_a_difference_and_no_interval() -> None:
    base, now = baseline(), scores(0.5)
    base["subjects"]["base"]["texts"]["web"] = {"documents": baseline()["subjects"]["base"]["texts"]["web"]["documents"][:1]}
    now["web"]["documents"] = now["web"]["documents"][:1]
    found = forgetting_record(plan(), base, now, step=1)["texts"]["web"]
    assert found["difference"] == pytest.approx(0.51)
    assert "low" not in found
    assert forgotten(plan(), {"texts": {"web": found}}) == {}


def test_a_text_with_a_validation_side_is_held_against_the_bases_score_of_that_side() -> None:
    base = baseline()
    watched = [{"id": f"d{number}", "bytes": 100, "nats": 150 * BIT} for number in range(8)]
    base["subjects"]["base"]["watched"] = {"web": {"documents": watched}}
    record = forgetting_record(plan(), base, {**scores(0.75), "law": scores(0.25)["web"]}, step=1)
    assert (record["texts"]["web"]["base"], record["texts"]["web"]["difference"]) == pytest.approx((1.5, 0.25))
    assert record["texts"]["law"]["base"] == pytest.approx(1.0)  # no validation side: its test side
