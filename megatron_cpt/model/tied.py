"""The two copies of tied embedding rows under pipeline parallelism: the first stage's, and the last stage's output matrix.

Megatron keeps them equal by summing their gradients. A checkpoint holds only the first copy, so a drift would vanish from
sight with the save; it is looked for before. Letters: V rows of this rank, H hidden columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from megatron.core import parallel_state
from torch import distributed

from megatron_cpt.errors import CheckpointError
from megatron_cpt.model.build import inner_model

_BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16}
_ROWS_AT_ONCE = 1024  # bounds the temporary to 8 bytes x rows x H
_NO_ROW = -1


def check_tied_copies(chunks: Sequence[torch.nn.Module]) -> None:
    """Refuse a tied model whose first and last pipeline stage hold different rows; collective, and the same on every rank.

    Raises:
        CheckpointError: with the number of rows that differ on the worst rank, and one of them.
    """
    if not inner_model(chunks[0]).share_embeddings_and_output_weights or parallel_state.get_pipeline_model_parallel_world_size() == 1:
        return
    found = torch.tensor([0, _NO_ROW], dtype=torch.int64, device=next(chunks[0].parameters()).device)
    if parallel_state.is_rank_in_embedding_group():
        mine_V = row_digests(_copy_of(chunks))
        first_V = mine_V.clone()
        group = parallel_state.get_embedding_group()
        distributed.broadcast(first_V, src=distributed.get_process_group_ranks(group)[0], group=group)
        different = (mine_V != first_V).nonzero().flatten()
        if len(different):
            first_id = parallel_state.get_tensor_model_parallel_rank() * len(mine_V)
            found = torch.stack([torch.tensor(len(different), device=found.device), first_id + different[0]])
    distributed.all_reduce(found, op=distributed.ReduceOp.MAX)
    num_rows, row = found.tolist()
    if num_rows:
        raise CheckpointError(
            "The tied embedding of the first pipeline stage and the output matrix of the last one are no longer the same rows.",
            value=f"{num_rows} rows of one rank differ, one is {row}",
            rule="tied copies are equal, bit for bit",
            next_step="Go on from the last good checkpoint, and report it: it is a fault of the training code, not of the run's settings.",
        )


def row_digests(weight_VH: torch.Tensor) -> torch.Tensor:
    """Return one number a row that depends on every bit of it and on its order, shape (V,); equal rows give equal numbers."""
    multipliers_H = torch.arange(1, 2 * weight_VH.shape[1], 2, device=weight_VH.device) * 0x9E3779B1
    bits_VH = weight_VH.detach().view(_BITS[weight_VH.dtype])
    return torch.cat([(rows.long() * multipliers_H).sum(dim=1) for rows in torch.split(bits_VH, _ROWS_AT_ONCE)])


def _copy_of(chunks: Sequence[torch.nn.Module]) -> torch.Tensor:
    """Return this rank's copy: the embedding on the first stage, the output matrix on the last."""
    first, last = inner_model(chunks[0]), inner_model(chunks[-1])
    weight: torch.Tensor = first.embedding.word_embeddings.weight if first.pre_process else last.output_layer.weight
    return weight
