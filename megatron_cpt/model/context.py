"""Which tokens of a sequence a context-parallel rank holds, and how they are cut out and put together again. C ranks, S tokens.

Under a causal mask late tokens see more than early ones. So a sequence is cut into 2C pieces, and rank r holds piece r and piece
2C - 1 - r: every rank then has the same number of pairs to multiply. Megatron-core and Transformer Engine expect this order.
"""

from __future__ import annotations

import torch


def pieces_of_rank(rank: int, *, num_ranks: int) -> tuple[int, int]:
    """Return the numbers of the two pieces of a sequence that a rank holds, in their order there."""
    return rank, 2 * num_ranks - 1 - rank


def part_of_rank(whole: torch.Tensor, *, dim: int, rank: int, num_ranks: int) -> torch.Tensor:
    """Return a rank's part of a tensor along its dimension of S tokens: S/C of them. With one rank that is the tensor itself."""
    if num_ranks == 1:
        return whole
    assert whole.shape[dim] % (2 * num_ranks) == 0, f"{whole.shape[dim]} tokens are not cut into {2 * num_ranks} pieces"
    pieces = whole.chunk(2 * num_ranks, dim=dim)
    return torch.cat([pieces[number] for number in pieces_of_rank(rank, num_ranks=num_ranks)], dim=dim)


def in_order_of_tokens(parts: torch.Tensor, *, num_ranks: int) -> torch.Tensor:
    """Return the whole sequence from all ranks' parts, which lie one after the other along the first dimension."""
    held = [number for rank in range(num_ranks) for number in pieces_of_rank(rank, num_ranks=num_ranks)]
    where = torch.tensor(sorted(range(2 * num_ranks), key=held.__getitem__), device=parts.device)
    return parts.view(2 * num_ranks, -1, *parts.shape[1:]).index_select(0, where).flatten(0, 1)
