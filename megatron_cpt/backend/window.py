"""Core attention with a sliding window, in the layers that the configuration gives one.

Shapes: S tokens, B sequences, N query heads, G query groups, D head columns.
"""

from __future__ import annotations

from typing import Any

import torch

from megatron_cpt.backend.attention import CausalAttention


class WindowedAttention(CausalAttention):
    """CausalAttention that in some layers sees a fixed number of tokens only: itself and those right before it."""

    def __init__(self, config: Any, layer_number: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, layer_number, *args, **kwargs)
        assert config.context_parallel_size == 1, "a window is not part of attention across ranks"
        every = config.window_attn_skip_freq  # every so many layers one sees everything
        has_window = every is None or layer_number % every != 0
        self.num_seen = config.window_size[0] + 1 if has_window else None

    def forward(
        self,
        query_SBND: torch.Tensor,
        key_SBGD: torch.Tensor,
        value_SBGD: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Return the heads' outputs side by side, shape (S, B, N*D); a mask that is given holds beside the window."""
        num_tokens = query_SBND.shape[0]
        if self.num_seen is not None and num_tokens > self.num_seen:
            all_SS = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=query_SBND.device)
            hidden_SS = all_SS.triu(diagonal=1) | all_SS.tril(diagonal=-self.num_seen)
            attention_mask = hidden_SS[None, None] if attention_mask is None else attention_mask | hidden_SS
        return super().forward(query_SBND, key_SBGD, value_SBGD, attention_mask, **kwargs)
