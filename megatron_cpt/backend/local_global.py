"""What Gemma 3 has beside other families: a norm behind each output matrix, and rotary angles that differ by layer.

Imported only after a backend was chosen. Shapes: S tokens, D rotary columns.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.attention import SelfAttention


def with_norm_behind(linear: type[torch.nn.Module], norm: Any) -> type[torch.nn.Module]:
    """Return a row-parallel linear layer whose output is normalised; its parameters are named as in Megatron Bridge."""

    class NormedLinear(linear):  # type: ignore[misc, valid-type]  # the base is one of megatron's, untyped
        def __init__(self, input_size: int, output_size: int, *, config: Any, **kwargs: Any) -> None:
            super().__init__(input_size, output_size, config=config, **kwargs)
            self.post_layernorm = norm(config=config, hidden_size=output_size, eps=config.layernorm_epsilon)

        def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
            output, bias = super().forward(hidden)
            assert bias is None, "the norm would have to see the bias"
            return self.post_layernorm(output), None

    return NormedLinear


class LocalGlobalAttention(SelfAttention):  # type: ignore[misc]  # megatron has no types for mypy
    """SelfAttention that takes its layer's half of the angles: first those of layers that see everything, then those of windows."""

    def forward(self, *args: Any, rotary_pos_emb: torch.Tensor, **kwargs: Any) -> Any:
        every = self.config.window_attn_skip_freq
        far, near = rotary_pos_emb.chunk(2, dim=-1)
        return super().forward(*args, rotary_pos_emb=far if self.layer_number % every == 0 else near, **kwargs)


class TwoRotaries(torch.nn.Module):
    """Two of megatron's rotary embeddings side by side, in the order that LocalGlobalAttention expects."""

    def __init__(self, far: torch.nn.Module, near: torch.nn.Module) -> None:
        super().__init__()
        self.far, self.near = far, near

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return angles of shape (S, 1, 1, 2 D)."""
        return torch.cat([self.far(*args, **kwargs), self.near(*args, **kwargs)], dim=-1)

    def get_emb(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return what `forward` does, of every position where ranks share a sequence."""
        return torch.cat([self.far.get_emb(*args, **kwargs), self.near.get_emb(*args, **kwargs)], dim=-1)  # type: ignore[operator]

    def get_rotary_seq_len(self, *args: Any, **kwargs: Any) -> int:
        return self.far.get_rotary_seq_len(*args, **kwargs)  # type: ignore[operator, no-any-return]
