"""The names under which trackers show figures: one table, told in the docs, and cost and energy by hand arithmetic."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from megatron_cpt.meter.attempts import attempts_in
from megatron_cpt.record.unknown import Unavailable
from megatron_cpt.train.alerts import EVENTS, alert_of, end_event
from megatron_cpt.train.metric_names import METRICS, MetricNames
from megatron_cpt.train.metrics import step_record
from megatron_cpt.train.spend import Spend
from megatron_cpt.train.state import StepResult, TrainState

DOCS = Path(__file__).parents[3] / "docs" / "reference" / "trackers.md"
NO_FIGURE = ("kind", "step", "elapsed_seconds")  # of a step record: shown as an axis, or as cost


def pattern(name: str) -> re.Pattern[str]:
    return re.compile("[^/]+".join(map(re.escape, re.split(r"<[^>]+>", name))))


def the_names_of(rows: list[dict[str, float]]) -> set[str]:
    """Return the table's names that rows match; every name of a row must be one of them."""
    found = set()
    for name in {name for row in rows for name in row}:
        matching = [metric.name for metric in METRICS if pattern(metric.name).fullmatch(name)]
        assert matching, f"{name} is in no table"
        metric = max(matching, key=lambda each: len(re.sub("<[^>]+>", "", each)))  # `<metric>` of a benchmark matches the others too
        found.add(metric)
    return found


def whole_step() -> dict[str, Any]:
    """Return a step record as training writes it, with everything that an instrument may add."""
    result = StepResult(2.5, 1.0, 1e-3, 0.5, (4, 4), (128, 128), (320.0, 320.0), (128, 128), False, 1e-4)
    state = TrainState(3, 24, (12, 12), (384, 384), last=result)
    readings = {"mfu": 0.4, "joules": 100.0, "resident_bytes": 1, "device_peak_bytes": 2}
    return step_record(state, sources=["law", "web"], licences=["MIT", "CC0-1.0"], elapsed_seconds=10.0, readings=readings)


def test_every_figure_of_a_step_has_a_name_in_the_table() -> None:
    record = whole_step()
    row = MetricNames({}).row(record)
    sources = {metric.source.partition(".")[2] for metric in METRICS if metric.source.startswith("step.")}
    assert set(record) - set(NO_FIGURE) <= sources
    assert row["train/source/law/loss"] == 2.5
    assert row["train/licence/CC0-1.0/tokens"] == 384
    the_names_of([row])


def test_every_name_of_the_table_is_shown_by_some_record() -> None:
    earlier = {"kind": "end", "attempt": "a", "stage": "corpus", "num_ranks": 1, "status": "finished"}
    names = MetricNames({"law": "domain", "quiz": "bias"}, spend=spend(attempts_in([earlier])))
    names.begin(TrainState(0, 0, (0, 0), (0, 0)))
    rule = {"of": "law", "metric": "bits_per_byte", "difference": -0.1, "low": -0.2, "high": 0.0}
    records = [
        whole_step() | {"elapsed_seconds": 5.0},
        whole_step(),
        {"kind": "eval", "bits_per_byte": {"law": 1.0}, "loss": {"law": 1.0}, "tasks": {"quiz": {"accuracy": 0.5}}, "seconds": 1.0},
        {"kind": "forgetting", "texts": {"law": {"base": 1.0, "difference": 0.1, "low": 0.0, "high": 0.2}}},
        {"kind": "resume", "lost_steps": 1},
        {"kind": "event", "event": "promote", "rules": [rule]},
    ]
    assert the_names_of([names.row(record) for record in records]) == {metric.name for metric in METRICS}


def test_the_docs_hold_the_table_and_the_alerts() -> None:
    said = DOCS.read_text(encoding="utf-8")
    table = [f"| `{metric.name}` | `{metric.source}` | {metric.unit} | {metric.means} |" for metric in METRICS]
    assert "\n".join(table) in said
    titles = [title for title, _ in EVENTS.values()]
    assert [title for title in titles if title not in said] == []


def spend(earlier: Any = (), **rates: Any) -> Spend:
    known: dict[str, Any] = {"usd_per_device_hour": 2.0, "pue": 1.25, "grid_g_co2e_per_kwh": 400.0, "limit_seconds": 40.0}
    return Spend(earlier=earlier, num_ranks=8, seconds=lambda: 900.0, **(known | rates))


def figures(found: Spend, *steps: dict[str, Any]) -> dict[str, float]:
    found.begin(tokens=1000)
    return [found.row(step) for step in steps][-1]


STEPS = (
    {"tokens": 2000, "elapsed_seconds": 10.0, "joules": 3.6e6},
    {"tokens": 3000, "elapsed_seconds": 20.0, "joules": 3.6e6},
)


def test_cost_and_energy_are_the_ledgers_ended_attempts_and_this_one_so_far() -> None:
    ended = {
        "kind": "end", "attempt": "a", "stage": "corpus", "num_ranks": 1, "status": "finished", "seconds": 3600.0, "device_seconds": 3600.0,
        "joules": 7.2e6, "usd": 5.0, "energy": [{"kind": "cpu", "joules": 7.2e6, "measured": 1, "of": 1, "method": "rapl"}],
    }  # fmt: skip
    start = {"kind": "start", "attempt": "a", "stage": "corpus", "num_ranks": 1, "pue": 1.5, "grid_g_co2e_per_kwh": 100.0}
    unknown = {"kind": "end", "attempt": "b", "stage": "vocab", "num_ranks": 1, "status": "failed", "usd": {"unavailable": "no price"}}
    found = figures(spend(attempts_in([start, ended, unknown])), *STEPS)
    assert found == pytest.approx(
        {
            "cost/device_hours": 3.0,  # 1 before, and 8 devices for a quarter of an hour
            "cost/usd": 9.0,  # 5 before, and 2 device-hours at 2 USD
            "cost/usd_per_million_tokens": 2000.0,  # 4 USD for 2,000 tokens
            "cost/limit_used": 0.5,  # 20 of 40 s
            "energy/joules": 3.6e6,
            "energy/watts": 3.6e5,  # in 10 s
            "energy/joules_per_token": 3600.0,
            "energy/kwh": 4.0,  # 2 and 2
            "energy/site_kwh": 2 * 1.5 + 2 * 1.25,
            "energy/g_co2e": 2 * 1.5 * 100 + 2 * 1.25 * 400,
        }
    )


def test_what_is_unknown_is_left_out_and_never_zero() -> None:
    unknown = Unavailable("no price")
    steps = [step | {"joules": None} for step in STEPS]
    assert set(figures(spend(usd_per_device_hour=unknown), *steps)) == {"cost/device_hours", "cost/limit_used"}
    assert set(figures(spend(pue=unknown), *STEPS)) >= {"energy/kwh", "cost/usd"}
    assert {"energy/site_kwh", "energy/g_co2e"}.isdisjoint(figures(spend(pue=unknown), *STEPS))
    assert figures(Spend(), *steps) == {}


@pytest.mark.parametrize("status", ["finished", "stopped"])
def test_an_end_that_was_asked_for_calls_for_nobody(status: str) -> None:
    assert alert_of(end_event(status, "", step=4)) is None
    assert alert_of({"kind": "event", "event": "rollback"}) is not None
    assert alert_of({"kind": "step", "step": 1, "loss": 2.0}) is None
