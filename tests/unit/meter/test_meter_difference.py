"""Planned against actual, taken apart by hand; the reasons add up to the difference to the last digit."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from megatron_cpt.meter.account import account_text
from megatron_cpt.meter.attempts import AttemptRecord, attempts_in
from megatron_cpt.meter.difference import LOST, POWER, PRICE, SPEED, START, TOKENS, UNMEASURED, Difference, differences, useless_share
from megatron_cpt.meter.totals import totals_by_stage
from megatron_cpt.record.unknown import Unavailable

PLANNED = {"seconds": 1000.0, "tokens": 10_000, "usd": 2.0, "kwh": 4.0, "g_co2e": 1000.0}  # 2 devices: 0.001 USD, 0.002 kWh a device-second


def lines(
    name: str, *, seconds: float, tokens: int, begun: int | None, usd: object, joules: object, status: str = "finished", **more: Any
) -> list[dict[str, Any]]:
    start = {"kind": "start", "attempt": name, "run": "r", "stage": "train", "time": 1.0, "num_ranks": 2, "device": "gpu", "pue": 1.25}
    end = {
        "kind": "end", "attempt": name, "run": "r", "stage": "train", "status": status, "exit_code": 0, "num_ranks": 2, "seconds": seconds,
        "device_seconds": 2 * seconds, "tokens": tokens, "joules": joules, "usd": usd, "planned": PLANNED, **more,
    }  # fmt: skip
    return [start, end if begun is None else {**end, "start_tokens": begun}]


def by_hand() -> list[AttemptRecord]:
    """Three attempts of one training.

    a: 400 s, read 4,000 tokens of which the checkpoint has 3,000: a quarter of it is lost. 1.0 USD. 2.88 MJ x 1.25 = 1 kWh.
    b: died in 50 s, before its first step, so all of it is lost. 0.1 USD. Nothing measured.
    c: 700 s, from 3,000 to 9,000 tokens. 1.4 USD. 5.76 MJ of one of its two GPUs, x 1.25 = 2 kWh.
    """
    half = [{"kind": "gpu", "joules": 5.76e6, "measured": 1, "of": 2, "method": "counter", "reasons": ["lost"]}]
    return attempts_in(
        [
            *lines("a", seconds=400.0, tokens=4000, begun=0, usd=1.0, joules=2.88e6, status="failed"),
            *lines("b", seconds=50.0, tokens=0, begun=None, usd=0.1, joules={"unavailable": "no meter"}, status="failed"),
            *lines("c", seconds=700.0, tokens=6000, begun=3000, usd=1.4, joules=5.76e6, energy=half),
        ]
    )


def check_sum(found: Difference | Unavailable) -> Difference:
    assert isinstance(found, Difference)
    assert math.fsum(found.parts.values()) == pytest.approx(found.actual - found.planned, abs=1e-12)
    return found


def test_what_is_lost_of_each_attempt_by_hand() -> None:
    assert useless_share(by_hand()) == [0.25, 1.0, 0.0]


def test_time_by_hand() -> None:
    """1,150 s for 1,000 planned. 9,000 tokens stayed of 10,000: -100 s. Lost: 100 s of a, 50 s of b. The other 1,000 s made 9,000
    tokens, planned at 900 s: +100 s."""
    found = check_sum(differences(by_hand())["seconds"])
    assert (found.planned, found.actual) == (1000.0, 1150.0)
    assert found.parts == pytest.approx({TOKENS: -100.0, LOST: 150.0, START: 0.0, SPEED: 100.0})


def test_starts_are_told_from_speed_where_the_steps_are_timed() -> None:
    """c's 700 s hold 560 s of steps: 140 s of starting, and the rest 40 s faster than planned. a's start is not known, so in its speed."""
    records = [replace(record, training_seconds=560.0) if record.attempt_id == "c" else record for record in by_hand()]
    found = check_sum(differences(records)["seconds"])
    assert found.parts == pytest.approx({TOKENS: -100.0, LOST: 150.0, START: 140.0, SPEED: -40.0})


def test_money_by_hand() -> None:
    """2.5 USD for 2.0 planned. Device-seconds at the planned 0.001 USD: -0.2, +0.3, +0.2. They cost 2.3; the price adds 0.2."""
    found = check_sum(differences(by_hand())["usd"])
    assert found.actual == pytest.approx(2.5)
    assert found.parts == pytest.approx({TOKENS: -0.2, LOST: 0.3, START: 0.0, SPEED: 0.2, PRICE: 0.2, UNMEASURED: 0.0})


def test_energy_by_hand() -> None:
    """3 kWh known for 4 planned. At the planned 0.002 kWh a device-second: -0.4, +0.6, +0.4.
    Power, of what was measured: a 1 - 1.6, c 2 - 1.4 (half of its 2.8): 0 together.
    Not measured: b's 0.2 and c's other GPU, 1.4: -1.6."""
    found = check_sum(differences(by_hand())["kwh"])
    assert found.actual == pytest.approx(3.0)
    assert found.parts == pytest.approx({TOKENS: -0.4, LOST: 0.6, START: 0.0, SPEED: 0.4, POWER: 0.0, UNMEASURED: -1.6}, abs=1e-12)


def test_a_run_as_planned_has_no_reasons() -> None:
    records = attempts_in(lines("a", seconds=1000.0, tokens=10_000, begun=0, usd=2.0, joules=11.52e6))  # 3.2 kWh x 1.25
    for found in differences(records).values():
        assert check_sum(found).parts == pytest.approx(dict.fromkeys(found.parts, 0.0), abs=1e-12)  # type: ignore[union-attr]


def test_money_without_a_price_is_told_as_not_measured() -> None:
    records = attempts_in(lines("a", seconds=1000.0, tokens=10_000, begun=0, usd={"unavailable": "no price"}, joules=11.52e6))
    found = check_sum(differences(records)["usd"])
    assert (found.actual, found.parts[UNMEASURED]) == (0.0, -2.0)


def test_an_older_checkpoint_takes_the_work_of_several_attempts() -> None:
    records = attempts_in(
        [
            *lines("a", seconds=1.0, tokens=500, begun=0, usd=1.0, joules=1.0),
            *lines("b", seconds=1.0, tokens=300, begun=400, usd=1.0, joules=1.0),
            *lines("c", seconds=1.0, tokens=800, begun=200, usd=1.0, joules=1.0),
        ]
    )
    assert useless_share(records) == [0.6, 1.0, 0.0]


def test_two_rounds_have_two_plans() -> None:
    second = [{**line, "round": 2} for line in lines("b", seconds=1000.0, tokens=10_000, begun=0, usd=2.0, joules=1.0)]
    records = attempts_in([*lines("a", seconds=1000.0, tokens=10_000, begun=0, usd=2.0, joules=1.0, status="rolled_back"), *second])
    found = check_sum(differences(records)["seconds"])
    assert (found.planned, found.actual, found.parts[LOST], found.parts[TOKENS]) == (2000.0, 2000.0, 1000.0, -1000.0)


def test_an_attempt_without_a_time_is_outside_and_counted() -> None:
    killed = {"kind": "start", "attempt": "k", "run": "r", "stage": "train", "time": 1.0, "num_ranks": 2}
    found = check_sum(differences([*by_hand(), *attempts_in([killed])])["seconds"])
    assert found.num_outside == 1


def test_without_a_plan_or_its_price_the_reason_is_unknown() -> None:
    (start, end) = lines("a", seconds=1.0, tokens=1, begun=0, usd=1.0, joules=1.0)
    assert differences(attempts_in([start, {**end, "planned": None}]))["usd"] == Unavailable("no attempt carries a plan")
    unpriced = {**PLANNED, "usd": {"unavailable": "set tariff.usd_per_device_hour"}}
    assert differences(attempts_in([start, {**end, "planned": unpriced}]))["usd"] == Unavailable("set tariff.usd_per_device_hour")


def test_the_account_tells_the_reasons_largest_first() -> None:
    text = account_text("r", totals_by_stage(by_hand()), differences=differences(by_hand()))
    told = text[text.index("why not as planned") :].splitlines()
    assert told[1] == "    time: planned 1,000, actual 1,150 s, +150"
    assert [line.split()[0] for line in told[2:5]] == ["+150", "-100", "+100"]
    assert "measured 2 of 3 attempts" in text
