"""Causal core attention over torch's `scaled_dot_product_attention`.

Shapes: S tokens, B sequences, N query heads, G query groups, D head columns.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional


class CausalAttention(torch.nn.Module):
    """Softmax attention of each token to itself and earlier ones, or to those that a given mask leaves it; it builds no mask."""

    def __init__(self, config: Any, layer_number: int, softmax_scale: float | None = None, **_: Any) -> None:
        super().__init__()
        assert config.attention_dropout == 0.0, "dropout is not part of this core attention"
        assert config.context_parallel_size == 1, "a rank must hold the whole sequence"
        assert not config.apply_query_key_layer_scaling, "scaling by layer number is not part of this core attention"
        self.layer_number = layer_number
        self.softmax_scale = softmax_scale

    def forward(
        self,
        query_SBND: torch.Tensor,
        key_SBGD: torch.Tensor,
        value_SBGD: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        attn_mask_type: Any = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: Any = None,
    ) -> torch.Tensor:
        """Return the heads' outputs side by side, shape (S, B, N*D).

        Args:
            attention_mask: None, or (B, 1, S, S), True where a query (second to last) must not see a key; it holds the causal part too.
        """
        assert attention_bias is None, "attention_bias is not part of this core attention"
        assert packed_seq_params is None, "packed sequences are not part of this core attention"
        num_tokens, num_sequences, num_heads, _ = query_SBND.shape
        out_BNSD = functional.scaled_dot_product_attention(
            query_SBND.permute(1, 2, 0, 3),
            key_SBGD.permute(1, 2, 0, 3),
            value_SBGD.permute(1, 2, 0, 3),
            attn_mask=None if attention_mask is None else ~attention_mask,
            is_causal=attention_mask is None,
            scale=self.softmax_scale,
            enable_gqa=num_heads != key_SBGD.shape[2],
        )
        return out_BNSD.permute(2, 0, 1, 3).reshape(num_tokens, num_sequences, -1)
