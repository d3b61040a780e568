"""The blend is never drawn past its end: megatron-core's own index builder against the spare samples that we ask for."""

# ruff: noqa: PLC0415  -- megatron is imported in a process of its own, after the backend is chosen
from __future__ import annotations

import math
import random

import numpy as np
from launch_ranks import launch_ranks

CASES = 200


def test_no_blend_overdraws_its_sources() -> None:
    ((worst_without, overdrawn),) = launch_ranks(_draw_many, 1)
    assert worst_without > 0, "no case needed the surplus: the test proves nothing"
    assert overdrawn == []


def _draw_many() -> tuple[int, list[str]]:
    """Return how many cases megatron's default surplus would fail, and the cases that ours fails."""
    from megatron_cpt.backend import choose

    choose("cpu")
    from megatron.core.datasets import helpers

    from megatron_cpt.plan.blend import MIN_SURPLUS, needed_surplus

    rng = random.Random(5)
    cases = [([0.96, 0.01, 0.01, 0.01, 0.01], 10), ([0.001, 0.999], 1000), ([0.0001, 0.9999], 10)]
    cases += [([10 ** rng.uniform(-4, 0) for _ in range(rng.randint(2, 12))], rng.choice([1, 2, 7, 50, 1000, 20000])) for _ in range(CASES)]
    default_fails, overdrawn = 0, []
    for shares, num_samples in cases:
        weights = [share / sum(shares) for share in shares]
        targets = [math.ceil(num_samples * weight) for weight in weights]
        source, number = np.zeros(sum(targets), dtype=np.int16), np.zeros(sum(targets), dtype=np.int64)
        helpers.build_blending_indices(source, number, weights, len(weights), sum(targets), False)
        drawn = np.bincount(source, minlength=len(shares))
        surplus = needed_surplus(shares, num_samples=num_samples)
        default_fails += any(drawn > [math.ceil(target * (1 + MIN_SURPLUS)) for target in targets])
        if any(drawn > [math.ceil(target * (1 + surplus)) for target in targets]):
            overdrawn.append(f"{num_samples} samples of {shares}: drew {drawn}, surplus {surplus}")
    return default_fails, overdrawn
