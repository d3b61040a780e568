"""The schedule's settings become samples, and what cannot be meant is refused by name, all of it at once."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from plan_examples import experiment, facts

from megatron_cpt.config.schema import ScheduleConfig
from megatron_cpt.errors import ConfigError
from megatron_cpt.plan.derive import derive
from megatron_cpt.plan.page import page
from megatron_cpt.plan.run_plan import RunPlan
from megatron_cpt.record.vocab_layout import VocabLayout

CONF = Path(__file__).parents[3] / "conf" / "schedule"
EXTENDED = VocabLayout(128256, 128300, 128512, 128001, "0" * 64)
# The example: 10 steps of 128 samples of 8192 tokens, a peak of 1e-5.


def plan(*, vocab: VocabLayout | None = None, **settings: Any) -> RunPlan:
    config = experiment()
    config.schedule = ScheduleConfig(**({"peak_lr": 1e-5, "min_lr": 1e-6} | settings))
    return derive(config, **(facts() | ({} if vocab is None else {"vocab": vocab})))


@pytest.mark.parametrize(
    "length",
    [{"warmup_fraction": 0.05}, {"warmup_samples": 64}, {"warmup_tokens": 64 * 8192}, {"warmup_tokens": 64 * 8192 + 4000}],
)
def test_a_length_may_be_given_as_a_fraction_as_samples_or_as_tokens(length: dict[str, Any]) -> None:
    assert plan(**length).schedule.warmup_samples == 64


def test_without_a_length_the_warmup_is_one_percent() -> None:
    assert plan().schedule.warmup_samples == 13  # of 1280


def test_a_warm_up_from_a_rate_reaches_the_plan_and_changes_its_fingerprint() -> None:
    rewarmed = plan(warmup_samples=128, warmup_from_lr=1e-6)
    assert rewarmed.schedule.warmup_from_lr == 1e-6
    assert rewarmed.fingerprint != plan(warmup_samples=128).fingerprint
    assert plan(warmup_samples=128, warmup_from_lr=0.0).fingerprint == plan(warmup_samples=128).fingerprint
    assert "cosine: from 1e-06 up to 1e-05 over 128 samples" in " ".join(page(rewarmed).split())


def test_the_floor_may_be_a_fraction_of_the_peak() -> None:
    assert plan(min_lr=None, min_fraction=0.25).schedule.min_lr == 2.5e-6


def test_phases_of_wsd_and_infinite_reach_the_plan() -> None:
    wsd = plan(kind="wsd", anneal_tokens=128 * 8192, anneal_shape="minus_sqrt").schedule
    assert (wsd.kind, wsd.anneal_samples, wsd.anneal_shape, wsd.decay_samples) == ("wsd", 128, "minus_sqrt", 1280)
    infinite = plan(kind="infinite", warmup_samples=0, anneal_fraction=0.1, cooldown_samples=256, constant_lr=5e-6).schedule
    assert (infinite.warmup_samples, infinite.anneal_samples, infinite.cooldown_samples, infinite.constant_lr) == (0, 128, 256, 5e-6)


def test_the_new_rows_stage_lasts_whole_steps_and_the_fractions_are_of_the_rest() -> None:
    schedule = plan(vocab=EXTENDED, new_rows_first_tokens=2**20 + 1, new_rows_lr=1e-3, warmup_fraction=0.25).schedule
    assert (schedule.new_rows_samples, schedule.new_rows_lr) == (256, 1e-3)
    assert (schedule.decay_samples, schedule.warmup_samples) == (1024, 256)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_lr": 2e-5}, r"schedule.peak_lr=1e-05 and a floor of 2e-05 \(schedule.min_lr\) do not fit. Use peak_lr >= min_lr > 0"),
        ({"min_lr": None, "min_fraction": 1.5}, r"floor of 1.5e-05 \(schedule.min_fraction\)"),
        ({"min_fraction": 0.1}, r"min_lr=1e-06 and schedule.min_fraction=0.1 both give the floor"),
        ({"min_lr": None}, r"schedule.min_lr has no value. Give it, or schedule.min_fraction"),
        ({"warmup_fraction": 0.1, "warmup_tokens": 5}, r"schedule.warmup has 2 lengths \(fraction, tokens\)"),
        ({"warmup_samples": -1}, r"schedule.warmup_samples=-1 is below 0"),
        ({"warmup_fraction": float("nan")}, r"warmup_fraction=nan is not a share"),
        ({"warmup_samples": 1281}, r"longer than the run: warmup 1281 samples, and there are 1280"),
        ({"kind": "wsd", "anneal_shape": "linear"}, r"schedule.anneal_fraction has no value; kind=wsd needs it"),
        ({"kind": "wsd", "anneal_fraction": 0.1}, r"anneal_shape=None is not one of linear, cosine, minus_sqrt, exponential"),
        ({"kind": "wsd", "anneal_fraction": 0.1, "anneal_shape": "sqrt"}, r"anneal_shape='sqrt' is not one of"),
        (
            {"kind": "wsd", "warmup_samples": 700, "anneal_fraction": 0.5, "anneal_shape": "linear"},
            r"longer than the run: warmup 700, anneal 640 samples, and there are 1280",
        ),
        ({"anneal_fraction": 0.1}, r"schedule.anneal_fraction=0.1 means nothing for kind=cosine, only for wsd and infinite"),
        ({"anneal_shape": "linear"}, r"schedule.anneal_shape=linear means nothing for kind=cosine, only for wsd"),
        ({"constant_lr": 5e-6}, r"schedule.constant_lr=5e-06 means nothing for kind=cosine, only for infinite"),
        ({"kind": "infinite", "anneal_fraction": 0.1, "cooldown_fraction": 0.1}, r"schedule.constant_lr has no value"),
        (
            {"kind": "infinite", "anneal_fraction": 0.1, "cooldown_fraction": 0.1, "constant_lr": 1e-4},
            r"constant_lr=0.0001 does not lie between the floor \(1e-06\) and the peak \(1e-05\)",
        ),
        ({"warmup_from_lr": 2e-5}, r"schedule.warmup_from_lr=2e-05 does not lie between 0 and the peak \(1e-05\)"),
        ({"warmup_from_lr": -1e-6}, r"schedule.warmup_from_lr=-1e-06 does not lie between 0 and the peak"),
        ({"warmup_from_lr": float("nan")}, r"schedule.warmup_from_lr=nan does not lie between"),
        ({"warmup_from_lr": 1e-6, "warmup_samples": 0}, r"schedule.warmup_from_lr=1e-06 means nothing without a warm-up"),
        ({"new_rows_lr": 1e-3}, r"new_rows_lr=0.001 has no stage to apply to"),
        ({"new_rows_first_tokens": -1}, r"new_rows_first_tokens=-1 is below 0"),
        ({"new_rows_first_tokens": 2**20, "new_rows_lr": 1e-3}, r"the vocabulary has no new rows"),
        ({"vocab": EXTENDED, "new_rows_first_tokens": 2**20}, r"schedule.new_rows_lr has no value"),
        ({"vocab": EXTENDED, "new_rows_first_tokens": 2**20, "new_rows_lr": 0.0}, r"new_rows_lr=0 is not a rate"),
        (
            {"vocab": EXTENDED, "new_rows_first_tokens": 9 * 2**20 + 1, "new_rows_lr": 1e-3},
            r"new_rows_first_tokens=9437185 are 1280 samples in whole steps, and the run has 1280",
        ),
    ],
)
def test_a_schedule_that_cannot_be_meant_is_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(**settings)


def test_all_problems_of_a_schedule_are_listed_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        plan(kind="infinite", min_lr=1.0, warmup_fraction=2.0, new_rows_lr=1.0)
    for expected in ("floor of 1 ", "constant_lr", "warmup_fraction=2.0", "cooldown_fraction", "anneal_fraction", "new_rows_lr"):
        assert expected in str(caught.value)


@pytest.mark.parametrize("scale", [-1.0, float("inf"), float("nan")])
def test_a_scale_of_the_embedding_rate_that_is_none_is_refused(scale: float) -> None:
    config = experiment()
    config.optim.embedding_lr_scale = scale
    with pytest.raises(ConfigError, match=r"optim.embedding_lr_scale"):
        derive(config, **facts())


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_schedule_plans_with_a_peak_and_what_it_says_it_lacks(path: Path) -> None:
    settings = {"peak_lr": 1e-5} | yaml.safe_load(path.read_text(encoding="utf-8"))
    if "min_fraction" not in settings:
        settings["min_lr"] = 1e-6
    if settings["kind"] == "infinite":
        settings |= {"constant_lr": 5e-6, "cooldown_fraction": 0.2}
    config = experiment()
    config.schedule = ScheduleConfig(**settings)
    assert derive(config, **facts()).schedule.kind == settings["kind"]


def test_a_plan_from_before_kinds_and_stages_keeps_its_fingerprint_and_a_stage_changes_it() -> None:
    """The digest was printed by the version that knew the cosine only; a run that it began must go on."""
    old = derive(experiment(), **facts())
    assert old.fingerprint == "ff1384265ce53124c1774d77a01e582fd97491e54378059e460abbe95722b91a"
    changed = dataclasses.replace(old, optimizer=dataclasses.replace(old.optimizer, embedding_lr_scale=0.5))
    assert changed.fingerprint != old.fingerprint
    changed = dataclasses.replace(old, schedule=dataclasses.replace(old.schedule, new_rows_samples=128, new_rows_lr=1e-3))
    assert changed.fingerprint != old.fingerprint


def test_the_page_says_the_phases() -> None:
    text = " ".join(page(plan(vocab=EXTENDED, new_rows_first_tokens=2**20, new_rows_lr=1e-3, warmup_samples=128)).split())
    assert "new rows alone at 0.001 for 128 samples, then cosine: up to 1e-05 over 128 samples, cosine to 1e-06 at 1152" in text
