"""Normalisations that also work under sequence parallelism (megatron's own torch fallback refuses it)."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional


class RMSNorm(torch.nn.Module):
    """Divides by the root mean square over the last dimension and scales; arguments as megatron passes them.

    With `layernorm_zero_centered_gamma` it scales by 1 + weight.
    """

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__()
        self.eps = eps
        self.is_zero_centred = config.layernorm_zero_centered_gamma
        self.weight = _vector(config, hidden_size, value=0.0 if self.is_zero_centred else 1.0)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if not self.is_zero_centred:
            return functional.rms_norm(hidden, self.weight.shape, self.weight, self.eps)
        scale = 1.0 + self.weight.float()  # in fp32: bf16 around 1 is coarser than around 0
        return functional.rms_norm(hidden.float(), scale.shape, scale, self.eps).to(hidden.dtype)


class LayerNorm(torch.nn.Module):
    """Centres and scales to unit variance over the last dimension, then scales and shifts; arguments as megatron passes them."""

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__()
        assert not config.layernorm_zero_centered_gamma, "not part of this norm"
        self.eps = eps
        self.weight = _vector(config, hidden_size, value=1.0)
        self.bias = _vector(config, hidden_size, value=0.0)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(hidden, self.weight.shape, self.weight, self.bias, self.eps)


def _vector(config: Any, size: int, *, value: float) -> torch.nn.Parameter:
    vector = torch.nn.Parameter(torch.full((size,), value, dtype=config.params_dtype, device=torch.cuda.current_device()))
    # Under sequence parallelism each rank sees other tokens, so megatron must sum this gradient over the ranks.
    vector.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
    return vector
