"""Blends whose shares change, weights that mislead, and limits by the clock: what a plan says of them before anything runs."""

from __future__ import annotations

import dataclasses

import pytest
from plan_examples import experiment, facts

from megatron_cpt.config.schema import BlendStageConfig, ProvenanceConfig, SourceConfig
from megatron_cpt.errors import ConfigError
from megatron_cpt.plan.blend import samples_per_source
from megatron_cpt.plan.derive import derive
from megatron_cpt.plan.money import clock_limits
from megatron_cpt.plan.page import page
from megatron_cpt.plan.run_plan import PackingPlan, RunPlan, StopConditions, Tariff
from megatron_cpt.record.unknown import Unavailable

STEP = 128 * 8192  # tokens of a step of the example, which has 10 steps


def staged(*stages: tuple[int, dict[str, float]]) -> RunPlan:
    config = experiment()
    config.blend.stages = [BlendStageConfig(from_tokens=tokens, shares=shares) for tokens, shares in stages]
    return derive(config, **facts())


def test_shares_change_at_the_next_whole_step_with_exact_samples() -> None:
    plan = staged((4 * STEP - 5, {"law": 1, "web": 1}), (9 * STEP, {"web": 1}))
    assert [(stage.first_step, stage.samples) for stage in plan.blend_stages] == [
        (0, (384, 128)),  # 4 steps x 128 samples at 3 to 1
        (4, (320, 320)),  # 5 steps at 1 to 1
        (9, (0, 128)),
    ]
    assert [entry.num_samples for entry in plan.blend] == [704, 576]
    # 704 samples x 8,192 tokens over 4,000,000; 576 x 8,192 over 9,000,000
    assert [round(entry.num_epochs, 6) for entry in plan.blend] == [1.441792, 0.524288]
    text = page(plan)
    assert "steps 1 to 4: 75.0% law, 25.0% web" in text
    assert "steps 5 to 9: 50.0% law, 50.0% web" in text
    assert "steps 10 to 10: 0.0% law, 100.0% web" in text
    assert "1.44 times" in text


def test_packing_is_frozen_and_said() -> None:
    config = experiment()
    config.blend.cross_document_attention, config.blend.loss_on_end_of_document = False, False
    plan = derive(config, **facts())
    assert plan.packing == PackingPlan(reset_positions=False, cross_document_attention=False, loss_on_end_of_document=False)
    assert "packing: documents do not see each other, no loss from an end mark" in page(plan)
    assert "packing" not in page(derive(experiment(), **facts()))


def test_a_source_may_join_in_a_later_stage() -> None:
    config, known = experiment(), facts()
    known["index_facts"]["sources"]["news"] = {"documents": 9, "tokens": 9_000_000, "role": "general", "licence": "CC0-1.0"}
    config.blend.stages = [BlendStageConfig(from_tokens=5 * STEP, shares={"news": 1})]
    plan = derive(config, **known)
    assert [(entry.source, entry.num_samples) for entry in plan.blend] == [("law", 480), ("web", 160), ("news", 640)]
    assert [stage.samples for stage in plan.blend_stages] == [(480, 160, 0), (0, 0, 640)]


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ([(10 * STEP, {"law": 1})], r"stages\[0\].from_tokens=.* begins at step 10, which is not between step 0 .* end at 10"),
        ([(0, {"law": 1})], r"stages\[0\].from_tokens=0 begins at step 0"),
        ([(5 * STEP, {"law": 1}), (5 * STEP - 1, {"web": 1})], r"stages\[1\].from_tokens=.* begins at step 5, which is not between step 5"),
        ([(5 * STEP, {"lex": 1})], r"blend.stages\[0\].shares.lex names no source"),
        ([(5 * STEP, {})], r"blend.stages\[0\].shares is empty"),
        ([(5 * STEP, {"news": 1})], r"blend.stages\[0\].shares.news=1, but the index holds no training tokens"),
    ],
)
def test_stages_that_cannot_be_are_named(stages: list[tuple[int, dict[str, float]]], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        staged(*stages)


def test_repeats_over_all_stages_are_capped() -> None:
    config = experiment()
    config.blend.max_epochs = 1.4  # the first stage alone reads law 0.79 times, both together 1.44 times
    config.blend.stages = [BlendStageConfig(from_tokens=4 * STEP, shares={"law": 1, "web": 1})]
    config.blend.shares = {"law": 3, "web": 1}
    with pytest.raises(ConfigError, match=r"law 1.57 times; blend.max_epochs is 1.4"):  # (384 + 384) x 8,192 / 4,000,000
        derive(config, **facts())


def test_a_plan_of_before_keeps_its_fingerprint() -> None:
    plan = derive(experiment(), **facts())
    assert plan.blend_stages == ()
    assert plan.packing == PackingPlan(reset_positions=False, cross_document_attention=True, loss_on_end_of_document=True)
    changed = [
        staged((5 * STEP, {"law": 1})),
        dataclasses.replace(plan, packing=PackingPlan(cross_document_attention=False)),
        dataclasses.replace(plan, packing=PackingPlan(loss_on_end_of_document=False)),
    ]
    assert len({plan.fingerprint, *(other.fingerprint for other in changed)}) == 4


@pytest.mark.parametrize(
    ("weights", "samples", "epochs"),
    [  # sources of 10 and 20 samples of text, 30 samples to train on
        ((1, 1), (15, 15), (1.5, 0.75)),
        ((10, 20), (10, 20), (1.0, 1.0)),
        ((2, 4), (10, 20), (1.0, 1.0)),  # weights need not sum to anything
    ],
)
def test_a_weight_is_a_share_of_training_samples_and_not_of_the_source(
    weights: tuple[float, float], samples: tuple[int, int], epochs: tuple[float, float]
) -> None:
    plan = two_sources(weights)
    assert tuple(entry.num_samples for entry in plan.blend) == samples
    assert tuple(entry.num_epochs for entry in plan.blend) == epochs
    assert tuple(entry.share for entry in plan.blend) == tuple(count / 30 for count in samples)


def test_a_weight_that_gives_no_sample_is_named() -> None:
    with pytest.raises(ConfigError, match=r"blend.shares.small is so small that none of the 30 samples comes from it"):
        two_sources((0.0001, 0.9999))
    assert samples_per_source({"small": 0.0001, "large": 0.9999}, num_samples=30) == {"small": 0, "large": 30}


def two_sources(weights: tuple[float, float]) -> RunPlan:
    config, known = experiment(), facts()
    config.parallel.global_batch_size, config.parallel.sequence_length, config.eval.window_tokens = 2, 8192, 8192
    config.blend.num_tokens = 30 * 8192
    for name, num in (("small", 10), ("large", 20)):
        config.source[name] = SourceConfig(
            path="x", role="domain", licence="CC0-1.0", provenance=ProvenanceConfig("a test", "2026", "made"), language="en"
        )
        known["index_facts"]["sources"][name] = {"documents": 9, "tokens": num * 8192, "role": "domain", "licence": "CC0-1.0"}
    config.blend.shares = {"small": weights[0], "large": weights[1]}
    return derive(config, **known)


def tariff(**changes: object) -> Tariff:
    return dataclasses.replace(Tariff("t", 3.0, "", 970.0, "", 1.2, "", 400.0, ""), **changes)  # type: ignore[arg-type]


def test_money_and_energy_are_reached_by_the_clock() -> None:
    stop = StopConditions(max_hours=2.0, max_usd=48.0, max_kwh=9.312)
    # 8 devices at 3 USD an hour spend 48 USD in 2 h; 8 x 970 W x 1.2 = 9.312 kW use 9.312 kWh in 1 h
    limits = clock_limits(stop, tariff(), num_ranks=8)
    assert list(limits) == ["stop.max_hours", "stop.max_usd", "stop.max_kwh"]
    assert list(limits.values()) == pytest.approx([7200, 7200, 3600])
    assert clock_limits(StopConditions(None, None, None), tariff(), num_ranks=8) == {}


def test_a_limit_holds_though_nobody_knows_how_long_the_run_takes() -> None:
    config = experiment()
    config.gpu.mfu_low = config.gpu.mfu_likely = config.gpu.mfu_high = None
    config.gpu.name = "a device that nobody published a run on"
    config.stop.max_usd = 100.0
    plan = derive(config, **facts())
    assert isinstance(plan.estimate.usd, Unavailable)
    assert plan.stop.max_usd == 100.0


@pytest.mark.parametrize(
    ("limit", "unknown", "words"),
    [
        ("max_usd", ("tariff", "usd_per_device_hour"), r"stop.max_usd=5 cannot be kept, because the rate is unknown .*usd_per_device_hour"),
        (
            "max_kwh",
            ("gpu", "node_watts_per_device"),
            r"stop.max_kwh=5 cannot be kept, because the rate is unknown .*node_watts_per_device",
        ),
        ("max_kwh", ("tariff", "pue"), r"stop.max_kwh=5 cannot be kept, because the rate is unknown .*tariff.pue"),
    ],
)
def test_a_limit_on_an_unknown_rate_is_refused(limit: str, unknown: tuple[str, str], words: str) -> None:
    config = experiment()
    setattr(config.stop, limit, 5.0)
    setattr(getattr(config, unknown[0]), unknown[1], None)
    with pytest.raises(ConfigError, match=words):
        derive(config, **facts())


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("spike_factor", 1.0, r"stop.spike_factor=1.0 is not above 1"),
        ("max_skipped_steps", -1, r"stop.max_skipped_steps=-1 is below 0"),
    ],
)
def test_impossible_stop_settings_are_named(key: str, value: float, words: str) -> None:
    config = experiment()
    setattr(config.stop, key, value)
    with pytest.raises(ConfigError, match=words):
        derive(config, **facts())
