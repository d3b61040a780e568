"""A plan of nothing but training steps, for what runs the train stage's step outside of a run: a probe, a benchmark."""

from __future__ import annotations

from typing import Any

from megatron_cpt.plan.model_shape import ModelShape
from megatron_cpt.plan.run_plan import (
    BlendEntry,
    CheckpointPlan,
    Estimate,
    EvalPlan,
    GatePlan,
    Layout,
    OptimizerPlan,
    RunPlan,
    SchedulePlan,
    StopConditions,
    Tariff,
)
from megatron_cpt.record.unknown import Unavailable
from megatron_cpt.record.vocab_layout import VocabLayout


def bare_plan(
    shape: ModelShape,
    vocab: VocabLayout,
    layout: Layout,
    *,
    name: str,
    seed: int,
    backend: Any,
    num_steps: int,
    optimizer: OptimizerPlan,
    schedule: SchedulePlan,
    eval_plan: EvalPlan,
) -> RunPlan:
    """Return a plan of `num_steps` steps on one domain source; it estimates nothing, judges nothing and stops for nothing."""
    unknown, num_samples = Unavailable(f"{name} is no run"), num_steps * layout.global_batch_size
    source = BlendEntry("domain", "domain", "", "", 1.0, num_samples * layout.sequence_length, num_samples, 1.0)
    return RunPlan(
        schema_version=1, run_name=name, seed=seed, backend=backend, shape=shape, vocab=vocab, layout=layout, blend=(source,),
        num_steps=num_steps, optimizer=optimizer, schedule=schedule, checkpoint=CheckpointPlan(num_steps, 1), log_every_steps=1,
        eval_every_steps=0, wandb_mode="disabled", wandb_project="", eval=eval_plan, gate=GatePlan((), 0.95, 1, 0),
        stop=StopConditions(None, None, None), tariff=Tariff("none", unknown, "", unknown, "", unknown, "", unknown, ""),
        estimate=Estimate(0, (), unknown, 1.0, "", 1, unknown, unknown, unknown, unknown, unknown, unknown, unknown, ()), identity={},
    )  # fmt: skip
