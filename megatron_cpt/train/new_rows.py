"""The first stage, which trains only the rows of new ids: every other gradient is cleared before the optimizer sees it.

A parameter whose gradient has been zero since its moments were zero moves by rate x 0 / (0 + epsilon) = 0 in Adam, and
without decay it is not touched at all: it stands still to the bit, and its moments stay zero. The gradient norm, and so
the clipping, is that of the new rows. All moments and the step count are dropped when the stage ends (step.py): with the
count kept, moments that were zero for N steps would no longer be corrected for having started at zero, and the first
steps of the whole model would be off by a factor of up to (1 - beta1) / sqrt(1 - beta2). So the rest of the run is a run of its own
from the weights that the stage ends with.

Shapes: V rows of this rank, H hidden columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from megatron.core import parallel_state

from megatron_cpt.model.fsdp import first_row, is_fully_sharded, shards_of
from megatron_cpt.record.vocab_layout import VocabLayout


def keep_gradients_of_new_rows(chunks: Sequence[torch.nn.Module], vocab: VocabLayout) -> None:
    """Clear every gradient of this rank but those of the rows of new ids in embedding and output.

    Called when gradients are whole: after the sums over data-parallel ranks and between tied embeddings. With the
    distributed optimizer the buffers hold this rank's share of the sums, and the rest is read by nobody.
    """
    for chunk in chunks:
        if is_fully_sharded([chunk]):
            _keep_in_shards(chunk, vocab)
            continue
        for parameter in chunk.parameters():
            gradient: torch.Tensor = parameter.main_grad  # type: ignore[attr-defined]  # megatron's DDP puts it there
            if not getattr(parameter, "is_embedding_or_output_parameter", False):
                gradient.zero_()
                continue
            new = rows_of_new_ids(vocab, num_rows_here=gradient.shape[0])
            gradient[: new.start].zero_()
            gradient[new.stop :].zero_()


def _keep_in_shards(chunk: torch.nn.Module, vocab: VocabLayout) -> None:
    for _, parameter, rows_here in shards_of(chunk):
        if parameter.grad is None:  # no row of it is here
            continue
        gradient = parameter.grad._local_tensor
        if not getattr(parameter, "is_embedding_or_output_parameter", False):
            gradient.zero_()
            continue
        new = rows_of_new_ids(vocab, num_rows_here=parameter.orig_param.shape[0])
        start, stop = (min(max(row - first_row(parameter), 0), len(rows_here)) for row in (new.start, new.stop))
        gradient[:start].zero_()
        gradient[stop:].zero_()


def rows_of_new_ids(vocab: VocabLayout, *, num_rows_here: int) -> range:
    """Return which rows of this tensor-parallel rank's part of a (V, H) table belong to new ids; padding rows do not."""
    first_id = 0 if num_rows_here == vocab.num_padded_rows else parallel_state.get_tensor_model_parallel_rank() * num_rows_here
    start = min(max(vocab.num_base_ids - first_id, 0), num_rows_here)
    stop = min(max(vocab.num_ids - first_id, start), num_rows_here)
    return range(start, stop)
