"""Causal core attention over torch's `scaled_dot_product_attention`.

Shapes: S tokens of this rank, T tokens of the whole sequence, B sequences, N query heads, G query groups, D head columns.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from megatron_cpt.model.context import in_order_of_tokens, pieces_of_rank


class CausalAttention(torch.nn.Module):
    """Softmax attention of each token to itself and earlier ones, or to those that a given mask leaves it.

    Ranks that share a sequence gather all keys and values, and each attends with its own queries; the gradients of keys and
    values are summed on the ranks that they belong to. No other mask is built than that of a piece to the tokens before it.
    """

    def __init__(self, config: Any, layer_number: int, softmax_scale: float | None = None, **_: Any) -> None:
        super().__init__()
        assert config.attention_dropout == 0.0, "dropout is not part of this core attention"
        assert not config.apply_query_key_layer_scaling, "scaling by layer number is not part of this core attention"
        self.layer_number = layer_number
        self.softmax_scale = softmax_scale
        self.num_context_ranks = config.context_parallel_size

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
            attention_mask: None, or (B, 1, S, T), True where a query (second to last) must not see a key; it holds the causal part too.
        """
        assert attention_bias is None, "attention_bias is not part of this core attention"
        assert packed_seq_params is None, "packed sequences are not part of this core attention"
        num_tokens, num_sequences, _, _ = query_SBND.shape
        seen = None if attention_mask is None else ~attention_mask
        if self.num_context_ranks == 1:
            out_BNSD = self._attend(query_SBND, key_SBGD, value_SBGD, seen=seen)
        else:
            out_BNSD = self._attend_across_ranks(query_SBND, key_SBGD, value_SBGD, seen=seen)
        return out_BNSD.permute(2, 0, 1, 3).reshape(num_tokens, num_sequences, -1)

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, seen: torch.Tensor | None) -> torch.Tensor:
        return functional.scaled_dot_product_attention(
            query.permute(1, 2, 0, 3),
            key.permute(1, 2, 0, 3),
            value.permute(1, 2, 0, 3),
            attn_mask=seen,
            is_causal=seen is None,
            scale=self.softmax_scale,
            enable_gqa=query.shape[2] != key.shape[2],
        )

    def _attend_across_ranks(
        self, query_SBND: torch.Tensor, key_SBGD: torch.Tensor, value_SBGD: torch.Tensor, *, seen: torch.Tensor | None
    ) -> torch.Tensor:
        """Attend with each of this rank's two pieces of queries to the keys up to that piece's end."""
        from megatron.core import parallel_state  # noqa: PLC0415  # only after `choose`
        from megatron.core.tensor_parallel import gather_from_sequence_parallel_region  # noqa: PLC0415

        num_ranks = self.num_context_ranks
        parts = torch.stack((key_SBGD, value_SBGD), dim=1)
        gathered = gather_from_sequence_parallel_region(parts, group=parallel_state.get_context_parallel_group())
        key_TBGD, value_TBGD = in_order_of_tokens(gathered, num_ranks=num_ranks).unbind(dim=1)
        length = query_SBND.shape[0] // 2
        out = []
        for half, piece in enumerate(pieces_of_rank(parallel_state.get_context_parallel_rank(), num_ranks=num_ranks)):
            mine, end = slice(half * length, (half + 1) * length), (piece + 1) * length
            if seen is None:
                earlier = torch.ones(length, end, dtype=torch.bool, device=query_SBND.device).tril(diagonal=end - length)
            else:
                earlier = seen[:, :, mine, :end]
            out.append(self._attend(query_SBND[mine], key_TBGD[:end], value_TBGD[:end], seen=earlier))
        return torch.cat(out, dim=2)
