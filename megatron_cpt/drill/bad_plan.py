"""The plan of a bad continuation: the run's own plan, a few steps longer, with one thing wrong. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from megatron_cpt.plan.blend import samples_per_source
from megatron_cpt.plan.run_plan import BlendEntry, CheckpointPlan, RunPlan, SchedulePlan, StopConditions
from megatron_cpt.record.unknown import Figure, Unavailable

Kind = Literal["rate", "blend"]
KINDS: tuple[Kind, ...] = ("rate", "blend")
_SCALED = ("seconds_low", "seconds", "seconds_high", "device_hours", "usd", "kwh", "kg_co2e")


def bad_plan(
    plan: RunPlan, *, name: str, good_step: int, num_steps: int, peak_lr: float, poisoned: BlendEntry | None, identity: Mapping[str, str]
) -> RunPlan:
    """Return the plan that trains `num_steps` bad steps after `good_step`.

    The gate's rules, the texts, the layout and the optimizer are the run's own. The rate is constant, so that every step does the
    same. Nothing but the gate's rules is to catch the result: limits on updates, hours, money and scores in between are taken out, and
    so are retries and the grace window.

    Args:
        peak_lr: the constant rate.
        poisoned: the one source of the blend; None keeps the run's sources and the shares that it ended with.
        identity: fingerprints of the stages that the plan stands on.
    """
    total = good_step + num_steps
    num_samples = total * plan.layout.global_batch_size
    sources = last_blend(plan) if poisoned is None else {poisoned: 1.0}
    samples = samples_per_source({entry.source: share for entry, share in sources.items()}, num_samples=num_samples)
    share_of_steps = num_steps / plan.num_steps
    estimate: dict[str, Any] = {name: _scaled(getattr(plan.estimate, name), share_of_steps) for name in _SCALED}
    return dataclasses.replace(
        plan,
        run_name=name,
        num_steps=total,
        schedule=SchedulePlan("constant", peak_lr, peak_lr, 0, num_samples),
        blend=tuple(
            dataclasses.replace(
                entry,
                share=samples[entry.source] / num_samples,
                num_samples=samples[entry.source],
                num_epochs=samples[entry.source] * plan.layout.sequence_length / entry.num_tokens,
                earlier_num_samples=(),
            )
            for entry in sources
        ),
        blend_stages=(),
        checkpoint=CheckpointPlan(every_steps=total, keep_last=max(plan.checkpoint.keep_last, 2)),
        stop=StopConditions(None, None, None),
        eval_every_steps=0,
        wandb_mode="disabled",
        tensorboard=False,
        gate=dataclasses.replace(plan.gate, limits=(), retries=(), max_retries=0),
        grace_steps=0,
        round=1,
        resumes_from=None,
        estimate=dataclasses.replace(plan.estimate, tokens=num_steps * plan.layout.tokens_per_step, **estimate),
        identity=dict(identity),
    )


def last_blend(plan: RunPlan) -> dict[BlendEntry, float]:
    """Return the sources that a plan's blend ends with, and their shares."""
    if not plan.blend_stages:
        return {entry: entry.share for entry in plan.blend}
    last = plan.blend_stages[-1].samples
    return {entry: count / sum(last) for entry, count in zip(plan.blend, last, strict=True) if count}


def _scaled(figure: Figure, share: float) -> Figure:
    return figure if isinstance(figure, Unavailable) else figure * share


def checkpoint_under(plan: RunPlan, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a checkpoint's record in the words of the bad plan, so that training goes on from it: same weights, moments and counters.

    Tokens by source are what the bad plan's blend would have read up to there; their sum is what was really read.
    """
    steps, layout = int(record["step"]), plan.layout
    samples = samples_per_source({entry.source: entry.share for entry in plan.blend}, num_samples=steps * layout.global_batch_size)
    return {
        **record,
        "plan_fingerprint": plan.fingerprint,
        "sources": list(samples),
        "source_samples": list(samples.values()),
        "source_tokens": [count * layout.sequence_length for count in samples.values()],
        "wandb_run_id": None,
    }
