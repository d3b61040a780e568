"""RMS normalisation that also works under sequence parallelism (megatron's own torch fallback refuses it)."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional


class RMSNorm(torch.nn.Module):
    """Divides by the root mean square over the last dimension and scales; arguments as megatron passes them."""

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype, device=torch.cuda.current_device()))
        # Under sequence parallelism each rank sees other tokens, so megatron must sum this gradient over the ranks.
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(hidden, self.weight.shape, self.weight, self.eps)
