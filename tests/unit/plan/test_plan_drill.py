"""The plan of a drill's bad continuation, and the checkpoint that goes on under it, by hand arithmetic."""

from __future__ import annotations

import dataclasses

import pytest
from plan_examples import experiment, facts

from megatron_cpt.drill.bad_plan import bad_plan, checkpoint_under, last_blend
from megatron_cpt.plan.derive import derive
from megatron_cpt.plan.run_plan import BlendStage, StopConditions


def test_a_bad_plan_changes_what_is_bad_and_what_would_stop_it_and_keeps_the_rules() -> None:
    config = experiment()
    config.stop.spike_factor, config.stop.max_hours, config.monitor.eval_every_steps = 3.0, 9.0, 5
    plan = derive(config, **facts())
    bad = bad_plan(plan, name="rate-1", good_step=10, num_steps=4, peak_lr=1e-3, poisoned=None, identity=plan.identity)
    assert (bad.run_name, bad.num_steps, bad.num_samples) == ("rate-1", 14, 14 * 128)
    assert (bad.schedule.kind, bad.schedule.peak_lr, bad.schedule.warmup_samples) == ("constant", 1e-3, 0)
    assert [entry.num_samples for entry in bad.blend] == [1344, 448]  # three quarters and one of 1,792
    assert bad.stop == StopConditions(None, None, None)
    assert (bad.eval_every_steps, bad.wandb_mode) == (0, "disabled")
    assert (bad.gate.rules, bad.gate.confidence, bad.gate.limits, bad.gate.max_retries) == (plan.gate.rules, plan.gate.confidence, (), 0)
    for name in ("eval", "layout", "optimizer", "vocab", "shape", "packing", "seed", "identity", "backend"):
        assert getattr(bad, name) == getattr(plan, name), name
    assert bad.estimate.tokens == 4 * 2**20
    assert bad.estimate.usd == pytest.approx(0.4 * plan.estimate.usd)  # 4 of the plan's 10 steps
    assert bad.fingerprint != plan.fingerprint


def test_a_blend_that_changed_goes_on_with_what_it_ended_with() -> None:
    plan = dataclasses.replace(derive(experiment(), **facts()), blend_stages=(BlendStage(0, (640, 0)), BlendStage(5, (0, 640))))
    assert [(entry.source, share) for entry, share in last_blend(plan).items()] == [("web", 1.0)]


def test_a_checkpoint_goes_on_under_the_bad_plan_with_its_own_counters() -> None:
    plan = derive(experiment(), **facts())
    poisoned = dataclasses.replace(plan.blend[0], source="law-poisoned")
    bad = bad_plan(plan, name="blend-1", good_step=10, num_steps=4, peak_lr=0.1, poisoned=poisoned, identity={})
    record = {
        "step": 10,
        "samples_seen": 1280,
        "tokens_seen": 10 * 2**20,
        "sources": ["law", "web"],
        "files": {"a": 1},
        "wandb_run_id": "x",
    }
    found = checkpoint_under(bad, record)
    assert found["plan_fingerprint"] == bad.fingerprint
    assert (found["sources"], found["source_samples"], found["source_tokens"]) == (["law-poisoned"], [1280], [10 * 2**20])
    assert (found["step"], found["samples_seen"], found["files"], found["wandb_run_id"]) == (10, 1280, {"a": 1}, None)
