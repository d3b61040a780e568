"""Which source gives how many training samples, and how often each is repeated."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from megatron_cpt.config.schema import BlendConfig, SourceConfig
from megatron_cpt.errors import printable
from megatron_cpt.plan.run_plan import BlendEntry, BlendStage, Layout, RunPlan

ROLES = ("domain", "general")
MIN_SURPLUS = 0.005  # megatron-core's default


def samples_per_source(shares: Mapping[str, float], *, num_samples: int) -> dict[str, int]:
    """Split samples by normalised share; what rounding leaves over goes to the largest remainders, so that the sum is exact."""
    total = math.fsum(shares.values())
    exact = {name: num_samples * share / total for name, share in shares.items()}
    samples = {name: math.floor(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: (samples[name] - exact[name], name))
    for name in by_remainder[: num_samples - sum(samples.values())]:
        samples[name] += 1
    return samples


def epochs_per_source(samples: Mapping[str, int], *, tokens: Mapping[str, int], sequence_length: int) -> dict[str, float]:
    """Return how often each source is read: samples x sequence length over the tokens that it has."""
    return {name: count * sequence_length / tokens[name] for name, count in samples.items()}


def largest_num_tokens(
    shares: Mapping[str, float], *, tokens: Mapping[str, int], max_epochs: float, global_batch_size: int, sequence_length: int
) -> int:
    """Return the most training tokens, in whole steps, for which no source is read more than `max_epochs` times."""
    total = math.fsum(shares.values())
    tokens_per_step = global_batch_size * sequence_length
    steps = min(math.floor(max_epochs * tokens[name] * total / (share * tokens_per_step)) for name, share in shares.items() if share > 0)
    while steps > 0:  # rounding to whole samples may put one source a sample over
        samples = samples_per_source(shares, num_samples=steps * global_batch_size)
        if max(epochs_per_source(samples, tokens=tokens, sequence_length=sequence_length).values()) <= max_epochs:
            break
        steps -= 1
    return steps * tokens_per_step


def needed_surplus(shares: Sequence[float], *, num_samples: int) -> float:
    """Return the share of spare samples per source that the blend can never overdraw.

    megatron-core builds `ceil(num_samples x share)` samples per source and then draws up to the sum of those numbers
    from all of them, so that a large source beside several small ones is drawn past its end (IndexError).
    """
    total = sum(shares)
    targets = [math.ceil(num_samples * share / total) for share in shares]
    worst = [(share / total * sum(targets) + 1) / target - 1 for share, target in zip(shares, targets, strict=True)]
    return max(MIN_SURPLUS, *worst)


def requested_samples(plan: RunPlan) -> list[int]:
    """Return how many samples of each source megatron-core's datasets are asked for under a plan: what their order follows from."""
    if plan.blend_stages or len(plan.blend) == 1:
        return [entry.num_samples for entry in plan.blend]
    shares = [entry.share for entry in plan.blend]
    surplus = needed_surplus(shares, num_samples=plan.num_samples)
    return [math.ceil(math.ceil(plan.num_samples * share / sum(shares)) * (1 + surplus)) for share in shares]


def blend_problems(blend: BlendConfig, sources: Mapping[str, SourceConfig], index_facts: Mapping[str, Any]) -> list[str]:
    """Say what is wrong with the shares themselves: unknown sources, impossible numbers, sources without train tokens."""
    problems = _share_problems("blend.shares", blend.shares, sources, index_facts)
    for number, stage in enumerate(blend.stages):
        problems += _share_problems(f"blend.stages[{number}].shares", stage.shares, sources, index_facts)
    return problems


def _share_problems(
    key: str, shares: Mapping[str, float], sources: Mapping[str, SourceConfig], index_facts: Mapping[str, Any]
) -> list[str]:
    problems = []
    indexed = index_facts["sources"]
    if not shares:
        problems.append(f"{key} is empty: no source would be trained on.")
    for name, share in shares.items():
        label = f"{key}.{printable(name)}"
        if name not in sources:
            problems.append(f"{label} names no source. Sources: {', '.join(sorted(sources)) or 'none'}.")
            continue
        if not math.isfinite(share) or share < 0:
            problems.append(f"{label}={share} is not a share. Use a number of 0 or more; shares are normalised.")
        if sources[name].role not in ROLES:
            problems.append(f"source.{printable(name)}.role={sources[name].role!r} is not one of {', '.join(ROLES)}.")
        if share > 0 and indexed.get(name, {}).get("tokens", 0) <= 0:
            problems.append(f"{label}={share}, but the index holds no training tokens of it. Give it text, or the share 0.")
    if shares and not problems and math.fsum(shares.values()) <= 0:
        problems.append(f"{key} sum to 0: give at least one source a share.")
    return problems


def blend_stage_problems(blend: BlendConfig, *, tokens_per_step: int) -> list[str]:
    """Say which stages begin at no step of their own."""
    problems = []
    num_steps = math.ceil(blend.num_tokens / tokens_per_step)
    earlier = 0
    for number, stage in enumerate(blend.stages):
        step = math.ceil(stage.from_tokens / tokens_per_step)
        if not earlier < step < num_steps:
            problems.append(
                f"blend.stages[{number}].from_tokens={stage.from_tokens} begins at step {step}, which is not between step {earlier} (where"
                f" the shares before it begin) and the end at {num_steps}; a step has {tokens_per_step} tokens."
            )
        earlier = step
    return problems


def all_shares(blend: BlendConfig) -> list[dict[str, float]]:
    """Return the shares of every stage in order, each over the same sources: those with a share in any of them."""
    stages = [blend.shares, *(stage.shares for stage in blend.stages)]
    names = [name for name in dict.fromkeys(name for shares in stages for name in shares) if any(s.get(name, 0) > 0 for s in stages)]
    return [{name: shares.get(name, 0.0) for name in names} for shares in stages]


def blend_stages(blend: BlendConfig, *, num_steps: int, layout: Layout) -> tuple[BlendStage, ...]:
    """Return the exact samples of every stage; none for a blend whose shares never change."""
    if not blend.stages:
        return ()
    first_steps = [0, *(math.ceil(stage.from_tokens / layout.tokens_per_step) for stage in blend.stages)]
    stages = []
    for first, end, shares in zip(first_steps, [*first_steps[1:], num_steps], all_shares(blend), strict=True):
        samples = samples_per_source(shares, num_samples=(end - first) * layout.global_batch_size)
        stages.append(BlendStage(first, tuple(samples.values())))
    return tuple(stages)


def blend_entries(
    blend: BlendConfig,
    sources: Mapping[str, SourceConfig],
    index_facts: Mapping[str, Any],
    *,
    stages: Sequence[BlendStage],
    num_steps: int,
    global_batch_size: int,
    sequence_length: int,
) -> tuple[tuple[BlendEntry, ...], list[str]]:
    """Return the entries of a blend whose shares are sound, summed over its stages, and the problems that its size brings."""
    shares = all_shares(blend)[0]
    tokens = {name: int(index_facts["sources"][name]["tokens"]) for name in shares}
    num_samples = num_steps * global_batch_size
    samples = samples_per_source(shares, num_samples=num_samples)
    if stages:
        samples = {name: sum(stage.samples[number] for stage in stages) for number, name in enumerate(shares)}
    epochs = epochs_per_source(samples, tokens=tokens, sequence_length=sequence_length)
    problems = [
        f"blend.shares.{printable(name)} is so small that none of the {num_samples} samples comes from it."
        " Raise it, raise blend.num_tokens, or set it to 0."
        for name, count in samples.items()
        if count == 0
    ]
    over = {name: value for name, value in epochs.items() if value > blend.max_epochs}
    listed = ", ".join(f"{printable(name)} {value:.2f} times" for name, value in sorted(over.items()))
    if over and stages:
        problems.append(
            f"blend.shares and blend.stages read {listed}; blend.max_epochs is {blend.max_epochs:g}."
            " Lower its shares or blend.num_tokens, or give it more text."
        )
    elif over:
        allowed = largest_num_tokens(
            shares, tokens=tokens, max_epochs=blend.max_epochs, global_batch_size=global_batch_size, sequence_length=sequence_length
        )
        way_out = (
            f"The largest blend.num_tokens allowed is {allowed}."
            if allowed
            else "Not even one step is allowed: use a smaller parallel.global_batch_size, or more text."
        )
        problems.append(f"blend.num_tokens={blend.num_tokens} reads {listed}; blend.max_epochs is {blend.max_epochs:g}. {way_out}")
    entries = tuple(
        BlendEntry(
            source=name,
            role="domain" if sources[name].role == "domain" else "general",
            licence=sources[name].licence,
            prefix=f"index/{name}.train",
            share=samples[name] / num_samples,
            num_tokens=tokens[name],
            num_samples=samples[name],
            num_epochs=epochs[name],
        )
        for name in shares
    )
    return entries, problems
