"""Sums of nats per document with the real model in the run's layout. Shapes: B windows, S tokens."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import distributed

from megatron_cpt.eval.windows import Window, WindowBatch, share_of_rank
from megatron_cpt.model.context import part_of_rank
from megatron_cpt.model.fsdp import is_fully_sharded

BATCHES_PER_CALL = 8  # pipeline stages fill up within a call; between calls progress can be told
SECONDS_BETWEEN_REPORTS = 5.0
FP8_ROWS = 32  # rows of a matrix in FP8 come in multiples of 16, or of 32 with block scales

Progress = Callable[[str], None]


def nats_by_document(
    chunks: list[Any],
    windows: Sequence[Window],
    *,
    num_documents: int,
    prefix_id: int,
    window_tokens: int,
    micro_batch_size: int,
    device: torch.device,
    progress: Progress,
) -> list[float]:
    """Return each document's summed negative log-likelihood in nats, on every rank. Collective.

    Every window starts from `prefix_id`; padding follows the tokens, is never attended to by them and never scored.
    The chunks keep their weights and their training mode.
    """
    multiple = length_unit(chunks[0].config)
    # Ranks that share experts meet in every layer, so they walk through the same windows, and one of them counts.
    expert, data_rank = parallel_state.get_expert_model_parallel_world_size(), parallel_state.get_data_parallel_rank()
    batches = share_of_rank(
        windows,
        window_tokens=window_tokens,
        micro_batch_size=micro_batch_size,
        data_rank=data_rank // expert,
        data_size=parallel_state.get_data_parallel_world_size() // expert,
        multiple=multiple,
    )
    spare: list[WindowBatch] = []
    if is_fully_sharded(chunks):  # every pass gathers weights from all ranks, so all make as many as the one with the most
        spare = [WindowBatch(multiple, (Window(0, (prefix_id,)),))] * (_most(len(batches), device=device) - len(batches))
    was_training = [chunk.training for chunk in chunks]
    for chunk in chunks:
        chunk.eval()
    sums = torch.zeros(num_documents, dtype=torch.float64)
    with torch.no_grad():
        for batch, window_nats in _run(chunks, batches, prefix_id=prefix_id, device=device, progress=progress):
            for window, nats in zip(batch.windows, window_nats, strict=True):
                sums[window.document] += nats
        for _ in _run(chunks, spare, prefix_id=prefix_id, device=device, progress=progress):
            pass
    for chunk, training in zip(chunks, was_training, strict=True):
        chunk.train(training)
    if parallel_state.get_tensor_model_parallel_rank() != 0 or data_rank % expert != 0:
        sums.zero_()  # tensor-parallel ranks hold the same losses: one of them counts
    total = sums.to(device)
    distributed.all_reduce(total)
    return total.tolist()


def _most(number: int, *, device: torch.device) -> int:
    box = torch.tensor([number], dtype=torch.int64, device=device)
    distributed.all_reduce(box, op=distributed.ReduceOp.MAX)
    return int(box.item())


def length_unit(config: Any) -> int:
    """Return what the length of a window must divide by, so that ranks can share it and the kernels in use can run it."""
    tensor = config.tensor_model_parallel_size if config.sequence_parallel else 1
    context = config.context_parallel_size
    pieces = 2 * context if context > 1 else 1
    return math.lcm(pieces, context * tensor * (FP8_ROWS if config.fp8 else 1))


def _run(
    chunks: list[Any], batches: Sequence[WindowBatch], *, prefix_id: int, device: torch.device, progress: Progress
) -> Iterator[tuple[WindowBatch, list[float]]]:
    """Yield each batch with its windows' nats; nothing on ranks before the last pipeline stage."""
    started = told = time.monotonic()
    # the interleaved schedule wants whole groups of as many micro-batches as there are stages: the last one is run again, and not read
    group = parallel_state.get_pipeline_model_parallel_world_size() if len(chunks) > 1 else 1
    done, total = 0, sum(len(window.ids) for batch in batches for window in batch.windows)
    for call in _calls(batches):
        whole = call + call[-1:] * (-len(call) % group)
        reports = get_forward_backward_func()(
            forward_step_func=_forward_step,
            data_iterator=[_stream(whole, prefix_id=prefix_id, device=device) for _ in chunks],
            model=chunks,
            num_microbatches=len(whole),
            seq_length=call[0].length,
            micro_batch_size=len(call[0].windows),
            forward_only=True,
        )
        if reports:
            yield from zip(call, (report["nats_B"].tolist() for report in reports[: len(call)]), strict=True)
        done += sum(len(window.ids) for batch in call for window in batch.windows)
        if time.monotonic() - told > SECONDS_BETWEEN_REPORTS:
            told = time.monotonic()
            rate = done / (told - started)
            progress(f"{done} of {total} tokens, {rate:.0f} tokens/s, {(total - done) / rate:.0f} s left")


def _calls(batches: Sequence[WindowBatch]) -> Iterator[list[WindowBatch]]:
    """Group batches of one shape, a few at a time: a schedule call has one length and one micro-batch size."""
    for _, group in groupby(batches, key=lambda batch: (batch.length, len(batch.windows))):
        same = list(group)
        for begin in range(0, len(same), BATCHES_PER_CALL):
            yield same[begin : begin + BATCHES_PER_CALL]


def _stream(batches: Sequence[WindowBatch], *, prefix_id: int, device: torch.device) -> Iterator[dict[str, torch.Tensor]]:
    for batch in batches:
        yield _tensors(batch, prefix_id=prefix_id, device=device)


def _tensors(batch: WindowBatch, *, prefix_id: int, device: torch.device) -> dict[str, torch.Tensor]:
    shape = (len(batch.windows), batch.length)
    inputs_BS = torch.full(shape, prefix_id, dtype=torch.int64)
    labels_BS = torch.zeros(shape, dtype=torch.int64)
    mask_BS = torch.zeros(shape, dtype=torch.float64)
    for row, window in enumerate(batch.windows):
        ids = torch.tensor(window.ids)
        inputs_BS[row, 1 : len(ids)] = ids[:-1]
        labels_BS[row, : len(ids)] = ids
        mask_BS[row, : len(ids)] = 1.0
    positions_BS = torch.arange(batch.length).expand(shape).contiguous()
    rank, num_ranks = parallel_state.get_context_parallel_rank(), parallel_state.get_context_parallel_world_size()
    whole = {"inputs": inputs_BS, "labels": labels_BS, "mask": mask_BS, "positions": positions_BS}
    return {name: part_of_rank(tensor, dim=1, rank=rank, num_ranks=num_ranks).to(device) for name, tensor in whole.items()}


def _forward_step(tensors: Any, model: Any) -> tuple[torch.Tensor, Any]:
    batch = next(tensors)
    losses_BS = model(batch["inputs"], batch["positions"], None, labels=batch["labels"])
    return losses_BS, partial(_window_nats, batch["mask"])


def _window_nats(mask_BS: torch.Tensor, losses_BS: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    nats_B = (losses_BS.double() * mask_BS).sum(dim=1)
    return nats_B.sum(), mask_BS.sum().to(torch.int), {"nats_B": nats_B}
