"""The plan of a round that goes on from a checkpoint of an earlier one: what may change, and where its data begin. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from megatron_cpt.config.schema import BlendConfig, BlendStageConfig, ExperimentConfig
from megatron_cpt.plan.blend import requested_samples
from megatron_cpt.plan.run_plan import BlendEntry, ResumePoint, RunPlan


@dataclass(frozen=True)
class Earlier:
    """The checkpoint that a round goes on from, and the plan that it was saved under; `source_samples` were read, by source."""

    point: ResumePoint
    step: int
    source_samples: dict[str, int]
    plan: RunPlan


def resume_problems(config: ExperimentConfig, earlier: Earlier, *, vocab_sha256: str) -> list[str]:
    """Say what of a configuration does not go with the checkpoint: the order of the data and the form of the weights stay."""
    layout, parallel = earlier.plan.layout, config.parallel
    kept = {
        "seed": (config.seed, earlier.plan.seed),
        "parallel.global_batch_size": (parallel.global_batch_size, layout.global_batch_size),
        "parallel.sequence_length": (parallel.sequence_length, layout.sequence_length),
        "parallel.dtype": (parallel.dtype, layout.dtype),
        "the vocabulary's tokenizer": (vocab_sha256, earlier.plan.vocab.tokenizer_sha256),
    }
    problems = [
        f"{key}={now} was {before} when {earlier.point.checkpoint} was saved, and this round goes on from it."
        " Leave it, or use a new run_name."
        for key, (now, before) in kept.items()
        if now != before
    ]
    if config.blend.num_tokens <= (earlier.step - 1) * layout.tokens_per_step:
        problems.append(
            f"blend.num_tokens={config.blend.num_tokens} is the run's whole length, and {earlier.point.checkpoint} has seen"
            f" {earlier.step * layout.tokens_per_step} tokens already. Raise it to train on."
        )
    return problems


def blend_after(blend: BlendConfig, earlier: Earlier) -> BlendConfig:
    """Return a blend whose first stage is what was read, source by source, and which then goes on as `blend` says.

    A stage of `blend` that begins before the checkpoint's step holds from that step on.
    """
    tokens_per_step = earlier.plan.layout.tokens_per_step
    begins = earlier.step * tokens_per_step
    now, later = blend.shares, []
    for stage in blend.stages:
        if math.ceil(stage.from_tokens / tokens_per_step) <= earlier.step:
            now = stage.shares
        else:
            later.append(stage)
    read = {name: float(count) for name, count in earlier.source_samples.items()}
    if blend.num_tokens <= begins:  # nothing more is read
        return replace(blend, shares=read, stages=[])
    return replace(blend, shares=read, stages=[BlendStageConfig(from_tokens=begins, shares=now), *later])


def with_earlier_samples(blend: tuple[BlendEntry, ...], earlier: Earlier) -> tuple[BlendEntry, ...]:
    """Return the entries with what each round before this one wanted of their sources."""
    before = {
        entry.source: (*entry.earlier_num_samples, wanted)
        for entry, wanted in zip(earlier.plan.blend, requested_samples(earlier.plan), strict=True)
    }
    return tuple(replace(entry, earlier_num_samples=before.get(entry.source, ())) for entry in blend)
