"""Runs windows through the real model in the run's layout and collects figures of each. B windows, S tokens, F figures, V columns.

What is measured on the model's output is the caller's; this module knows schedules, the ranks' shares and their sums.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Batch:
    """This rank's part of a batch. `is_scored_BS` marks the tokens that count; padding and given context do not."""

    inputs_BS: torch.Tensor
    labels_BS: torch.Tensor
    is_scored_BS: torch.Tensor
    positions_BS: torch.Tensor
    windows: tuple[Window, ...]


@dataclass(frozen=True)
class Measure:
    """What is wanted of each window.

    Attributes:
        num_figures: F.
        from_logits: `of` gets this rank's columns of the logits (B, S, V/T), not the labels' losses (B, S).
        of: returns the part (B, F) that this rank's tokens have in the windows' figures, in float64. Context-parallel ranks' parts are
            summed; tensor-parallel ranks return the same, and one of them counts.
    """

    num_figures: int
    from_logits: bool
    of: Callable[[torch.Tensor, Batch], torch.Tensor]


def measure_windows(
    chunks: list[Any],
    windows: Sequence[Window],
    measure: Measure,
    *,
    window_tokens: int,
    micro_batch_size: int,
    device: torch.device,
    progress: Progress,
) -> torch.Tensor:
    """Return each window's figures on every rank, float64 of shape (windows, F) in host memory. Collective.

    Padding follows the tokens, is never attended to by them and never scored. The chunks keep their weights and their training mode.
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
        spare = [WindowBatch(multiple, (Window(0, (0,), start_id=0),), (0,))] * (_most(len(batches), device=device) - len(batches))
    was_training = [chunk.training for chunk in chunks]
    for chunk in chunks:
        chunk.eval()
    figures = torch.zeros(len(windows), measure.num_figures, dtype=torch.float64)
    with torch.no_grad():
        for batch, figures_BF in _run(chunks, batches, measure, device=device, progress=progress):
            figures[list(batch.numbers)] = figures_BF.cpu()
        for _ in _run(chunks, spare, measure, device=device, progress=progress):
            pass
    for chunk, training in zip(chunks, was_training, strict=True):
        chunk.train(training)
    if parallel_state.get_tensor_model_parallel_rank() != 0 or data_rank % expert != 0:
        figures.zero_()  # tensor-parallel ranks hold the same figures: one of them counts
    total = figures.to(device)
    distributed.all_reduce(total)
    return total.cpu()


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
    chunks: list[Any], batches: Sequence[WindowBatch], measure: Measure, *, device: torch.device, progress: Progress
) -> Iterator[tuple[WindowBatch, torch.Tensor]]:
    """Yield each batch with its windows' figures; nothing on ranks before the last pipeline stage."""
    started = told = time.monotonic()
    # the interleaved schedule wants whole groups of as many micro-batches as there are stages: the last one is run again, and not read
    group = parallel_state.get_pipeline_model_parallel_world_size() if len(chunks) > 1 else 1
    done, total = 0, sum(len(window.ids) for batch in batches for window in batch.windows)
    for call in _calls(batches):
        whole = call + call[-1:] * (-len(call) % group)
        reports = get_forward_backward_func()(
            forward_step_func=partial(_forward_step, measure),
            data_iterator=[_stream(whole, device=device) for _ in chunks],
            model=chunks,
            num_microbatches=len(whole),
            seq_length=call[0].length,
            micro_batch_size=len(call[0].windows),
            forward_only=True,
        )
        if reports:
            yield from zip(call, (report["figures_BF"] for report in reports[: len(call)]), strict=True)
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


def _stream(batches: Sequence[WindowBatch], *, device: torch.device) -> Iterator[Batch]:
    for batch in batches:
        yield _tensors(batch, device=device)


def _tensors(batch: WindowBatch, *, device: torch.device) -> Batch:
    shape = (len(batch.windows), batch.length)
    inputs_BS, labels_BS = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    is_scored_BS = torch.zeros(shape, dtype=torch.bool)
    for row, window in enumerate(batch.windows):
        ids = torch.tensor(window.ids)
        inputs_BS[row, 0] = window.start_id
        inputs_BS[row, 1 : len(ids)] = ids[:-1]
        labels_BS[row, : len(ids)] = ids
        is_scored_BS[row, window.num_context : len(ids)] = True
    positions_BS = torch.arange(batch.length).expand(shape).contiguous()
    rank, num_ranks = parallel_state.get_context_parallel_rank(), parallel_state.get_context_parallel_world_size()

    def part(whole_BS: torch.Tensor) -> torch.Tensor:
        return part_of_rank(whole_BS, dim=1, rank=rank, num_ranks=num_ranks).to(device)

    return Batch(part(inputs_BS), part(labels_BS), part(is_scored_BS), part(positions_BS), batch.windows)


def _forward_step(measure: Measure, batches: Any, model: Any) -> tuple[torch.Tensor, Any]:
    batch: Batch = next(batches)
    output = model(batch.inputs_BS, batch.positions_BS, None, labels=None if measure.from_logits else batch.labels_BS)
    return output, partial(_report, measure, batch)


def _report(measure: Measure, batch: Batch, output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    figures_BF = measure.of(output, batch)
    return figures_BF.sum(), batch.is_scored_BS.sum().to(torch.int), {"figures_BF": figures_BF}
