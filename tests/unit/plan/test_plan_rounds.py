"""The plan of a later round: what it keeps of the checkpoint that it goes on from, and what a retry policy may say."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from plan_examples import experiment, facts

from megatron_cpt.config.schema import BlendStageConfig, ExperimentConfig, GateLimitConfig, RetryConfig
from megatron_cpt.errors import ConfigError
from megatron_cpt.plan.derive import derive
from megatron_cpt.plan.page import page
from megatron_cpt.plan.resume import Earlier
from megatron_cpt.plan.retry import with_changes
from megatron_cpt.plan.run_plan import GateLimit, ResumePoint, Retry, RunPlan

STEP = 128 * 8192  # tokens of a step of the example, which has 10 steps
POINT = ResumePoint("train/checkpoints/step_00000010", "5" * 64, 1)


def earlier(plan: RunPlan, *, step: int = 10, law: int = 960) -> Earlier:
    return Earlier(POINT, step, {"law": law, "web": 128 * step - law}, plan)


def second_round(config: ExperimentConfig, before: Earlier, **changes: Any) -> RunPlan:
    return derive(config, **facts(), round_number=2, earlier=before, **changes)


def test_a_longer_plan_goes_on_where_the_sources_were_left() -> None:
    first = derive(experiment(), **facts())
    config = experiment()
    config.blend.num_tokens, config.blend.shares = 16 * STEP, {"law": 1, "web": 1}
    plan = second_round(config, earlier(first))
    assert (plan.round, plan.resumes_from, plan.num_steps) == (2, POINT, 16)
    # 10 steps x 128 at 3 to 1 were read; 6 x 128 are to come at 1 to 1
    assert [(stage.first_step, stage.samples) for stage in plan.blend_stages] == [(0, (960, 320)), (10, (384, 384))]
    assert [entry.num_samples for entry in plan.blend] == [1344, 704]
    # what megatron-core was asked for in the first round: ceil(1280 x share) and half a per cent, as its builder computes it
    assert [entry.earlier_num_samples for entry in plan.blend] == [(965,), (322,)]
    assert plan.estimate.tokens == 6 * STEP  # the price is that of the steps to come
    assert "from" in page(plan)
    assert "round 2" in page(plan)


def test_a_third_round_knows_both_before_it() -> None:
    config = experiment()
    second = dataclasses.replace(earlier(derive(config, **facts())))
    config.blend.num_tokens = 12 * STEP
    then = second_round(config, second)
    config.blend.num_tokens = 14 * STEP
    third = derive(config, **facts(), round_number=3, earlier=Earlier(POINT, 12, {"law": 1152, "web": 384}, then))
    assert [entry.earlier_num_samples for entry in third.blend] == [(965, 1152), (322, 384)]


def test_stages_that_are_over_leave_the_shares_that_hold_now() -> None:
    first = derive(experiment(), **facts())
    config = experiment()
    config.blend.num_tokens = 16 * STEP
    config.blend.stages = [BlendStageConfig(4 * STEP, {"law": 1, "web": 1}), BlendStageConfig(14 * STEP, {"web": 1})]
    plan = second_round(config, earlier(first))
    assert [(stage.first_step, stage.samples) for stage in plan.blend_stages] == [(0, (960, 320)), (10, (256, 256)), (14, (0, 256))]


def test_the_fingerprint_of_a_later_plan_names_its_checkpoint_and_not_its_number() -> None:
    first = derive(experiment(), **facts())
    config = experiment()
    config.blend.num_tokens = 16 * STEP
    plan = second_round(config, earlier(first))
    assert dataclasses.replace(plan, round=3).fingerprint == plan.fingerprint
    other = dataclasses.replace(plan, resumes_from=dataclasses.replace(POINT, sha256="6" * 64))
    assert other.fingerprint != plan.fingerprint


def test_what_cannot_change_on_the_way_is_listed_at_once() -> None:
    first = derive(experiment(), **facts())
    config = experiment()
    config.seed, config.parallel.global_batch_size, config.blend.num_tokens = 1, 256, 4 * STEP
    with pytest.raises(ConfigError) as refused:
        second_round(config, earlier(first))
    for words in ("seed=1 was 1234", "parallel.global_batch_size=256 was 128", "has seen 10485760 tokens already"):
        assert words in str(refused.value)


def test_no_more_tokens_is_a_round_that_only_judges_again() -> None:
    first = derive(experiment(), **facts())
    plan = second_round(experiment(), earlier(first))
    assert plan.num_steps == 10
    assert plan.estimate.tokens == 0
    assert sum(entry.num_samples for entry in plan.blend) == 1280


def test_each_change_of_the_policy_is_made_on_top_of_the_ones_before() -> None:
    config = experiment()
    config.schedule.warmup_from_lr = 1e-7
    changed = with_changes(config, [Retry(lower_rate=0.5), Retry(replay=0.4), Retry(vocabulary="keep"), Retry(lower_rate=0.5)])
    assert (changed.schedule.peak_lr, changed.schedule.min_lr) == (2.5e-6, 2.5e-7)
    assert changed.schedule.warmup_from_lr == 2.5e-8
    assert changed.blend.shares == pytest.approx({"law": 0.6, "web": 0.4})
    assert changed.tokenizer.num_new_pieces == 0
    assert config == _with_warmup(experiment())  # the original is left alone


def _with_warmup(config: ExperimentConfig) -> ExperimentConfig:
    config.schedule.warmup_from_lr = 1e-7
    return config


def test_a_policy_and_limits_are_frozen_and_said() -> None:
    config = experiment()
    config.monitor.eval_every_steps = 5
    config.gate.limits = [GateLimitConfig("news", 0.3)]
    config.gate.retries, config.gate.max_retries = [RetryConfig(lower_rate=0.3), RetryConfig(replay=0.5)], 2
    plan = derive(config, **facts())
    assert plan.gate.limits == (GateLimit("news", 0.3),)
    assert plan.gate.retries == (Retry(lower_rate=0.3), Retry(replay=0.5))
    text = " ".join(page(plan).split())
    assert "news rises by more than 0.3 bits per byte in the loop" in text
    assert "lower_rate 0.3, then replay 0.5; then it stops for you" in text


@pytest.mark.parametrize(
    ("retries", "words"),
    [
        ([RetryConfig(lower_rate=0.3, replay=0.2)], r"gate.retries\[0\] changes 2 things \(lower_rate, replay\)"),
        ([RetryConfig()], r"gate.retries\[0\] changes 0 things"),
        ([RetryConfig(lower_rate=1.5)], "lower_rate=1.5 is no factor"),
        ([RetryConfig(replay=0.0)], "replay=0.0 is not a share"),
        ([RetryConfig(vocabulary="drop")], "vocabulary='drop' is not keep"),
        ([RetryConfig(vocabulary="keep")], "num_new_pieces is 0"),
        # 0.9 of 1,280 samples x 8,192 tokens is 9.4 million, 1.05 times web's 9 million; law's own limit is told beside it
        ([RetryConfig(replay=0.9)], r"after gate.retries\[0\]: .*web 1.05 times"),
        ([], "max_retries=1 is not between 0 and the 0 changes"),
    ],
)
def test_a_policy_that_cannot_be_followed_is_refused_before_anything_runs(retries: list[RetryConfig], words: str) -> None:
    config = experiment()
    config.gate.retries, config.gate.max_retries = retries, 1
    if retries and retries[0].replay == 0.9:
        config.blend.max_epochs = 1.04
        config.blend.num_tokens, config.blend.shares = 10 * STEP, {"law": 0.3, "web": 0.7}
    with pytest.raises(ConfigError, match=words):
        derive(config, **facts())


def test_a_change_of_the_vocabulary_is_refused_where_training_goes_on_from_a_checkpoint() -> None:
    config = experiment()
    config.gate.retries, config.gate.max_retries = [RetryConfig(vocabulary="keep")], 1
    with pytest.raises(ConfigError, match="goes on from a promoted checkpoint"):
        second_round(config, earlier(derive(experiment(), **facts())))
    assert second_round(config, earlier(derive(experiment(), **facts())), num_retries=1).round == 2  # it is made already


@pytest.mark.parametrize(
    ("limits", "every", "words"),
    [
        ([GateLimitConfig("web", 0.3)], 5, "limits.0..of='web' is not one of eval.texts"),
        ([GateLimitConfig("news", 0.0)], 5, "max_increase=0.0 is not a limit"),
        ([GateLimitConfig("news", 0.3, metric="accuracy")], 5, "metric='accuracy' is not one of bits_per_byte"),
        ([GateLimitConfig("news", 0.3), GateLimitConfig("news", 0.4)], 5, "more than one limit on 'news'"),
        ([GateLimitConfig("news", 0.3)], 0, "eval_every_steps=0 never scores it"),
    ],
)
def test_limits_that_could_never_be_judged_are_refused(limits: list[GateLimitConfig], every: int, words: str) -> None:
    config = experiment()
    config.gate.limits, config.monitor.eval_every_steps = limits, every
    with pytest.raises(ConfigError, match=words):
        derive(config, **facts())
