"""Rotary frequencies of stretched bases, in fp32 and in the order of operations of transformers, so that late positions agree.

Shape: D/2 frequencies, for the pairs of columns of one head.
"""

from __future__ import annotations

import math

import torch

from megatron_cpt.plan.rotary import RotaryScaling


def rotary_frequencies(scaling: RotaryScaling, *, base: float, head_dim: int) -> torch.Tensor:
    """Return the angle that one position adds to each pair of columns, shape (D/2,), in fp32."""
    periods = base ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    if scaling.kind == "linear":  # Chen et al. 2023, arXiv 2306.15595
        return (1.0 / periods) / scaling.factor
    if scaling.kind == "llama3":
        return _llama3(1.0 / periods, scaling)
    return _yarn(periods, scaling, base=base, head_dim=head_dim)


def _llama3(frequencies: torch.Tensor, scaling: RotaryScaling) -> torch.Tensor:
    """Keep short wavelengths, divide long ones' frequencies by the factor, and blend between (Llama 3.1's published code)."""
    original = scaling.original_max_position
    turns = original / (2 * math.pi / frequencies)  # over the original positions
    weight = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blended = (1 - weight) * frequencies / scaling.factor + weight * frequencies
    stretched = torch.where(turns < scaling.low_freq_factor, frequencies / scaling.factor, blended)
    return torch.where(turns > scaling.high_freq_factor, frequencies, stretched)


def _yarn(periods: torch.Tensor, scaling: RotaryScaling, *, base: float, head_dim: int) -> torch.Tensor:
    """Blend by pair of columns between kept and divided frequencies (Peng et al. 2023, arXiv 2309.00071, section 3.2)."""

    def pair_of(turns: float) -> float:
        """Return the pair of columns, as a real number, that makes so many turns over the original positions."""
        return head_dim * math.log(scaling.original_max_position / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = pair_of(scaling.beta_fast), pair_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    keep = 1 - ramp
    return 1.0 / (scaling.factor * periods) * (1 - keep) + 1.0 / periods * keep
