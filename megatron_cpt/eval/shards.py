"""The best id over logits whose columns lie on tensor-parallel ranks. N positions, V columns of this rank, T ranks."""

from __future__ import annotations

import torch
from megatron.core import parallel_state
from torch import distributed


def first_id_of_rank(num_columns: int) -> int:
    """Return the id of this rank's first column."""
    return int(parallel_state.get_tensor_model_parallel_rank()) * num_columns


def best_ids(logits_NV: torch.Tensor) -> torch.Tensor:
    """Return the id with the highest logit at each position, the lowest id of equals, on every tensor-parallel rank. Collective there.

    Columns of padding hold -inf and never win.
    """
    values_N, ids_N = logits_NV.max(dim=-1)
    ids_N = ids_N + first_id_of_rank(logits_NV.shape[-1])
    num_ranks = parallel_state.get_tensor_model_parallel_world_size()
    if num_ranks == 1:
        return ids_N
    group = parallel_state.get_tensor_model_parallel_group()
    values_TN = [torch.empty_like(values_N) for _ in range(num_ranks)]
    ids_TN = [torch.empty_like(ids_N) for _ in range(num_ranks)]
    distributed.all_gather(values_TN, values_N.contiguous(), group=group)
    distributed.all_gather(ids_TN, ids_N, group=group)
    winner_N = torch.stack(values_TN).max(dim=0).indices  # the first of equals
    return torch.stack(ids_TN).gather(0, winner_N[None])[0]
