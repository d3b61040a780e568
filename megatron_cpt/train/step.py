"""One optimizer step. Shapes: B micro-batch, S sequence. Losses are sums in nats until the global batch is whole."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func

from megatron_cpt.plan.run_plan import RunPlan
from megatron_cpt.train.collectives import totals
from megatron_cpt.train.data import Microbatch, StepBatch
from megatron_cpt.train.divergence import require_finite
from megatron_cpt.train.new_rows import keep_gradients_of_new_rows
from megatron_cpt.train.optimizer import forget_moments, set_rate
from megatron_cpt.train.schedule import ends_new_rows_stage, learning_rate, trains_new_rows_only
from megatron_cpt.train.state import StepResult


def optimizer_step(chunks: list[Any], optimizer: Any, batch: StepBatch, plan: RunPlan) -> StepResult:
    """Update the weights with one global batch and return what all ranks agree on.

    Raises:
        TrainingDiverged: on every rank alike; the weights in memory may be spoilt and must not be saved.
    """
    started = time.perf_counter()
    rate = learning_rate(plan.schedule, samples_seen=batch.first_sample + plan.layout.global_batch_size)
    if ends_new_rows_stage(plan.schedule, first_sample=batch.first_sample):
        forget_moments(optimizer)
    if trains_new_rows_only(plan.schedule, first_sample=batch.first_sample):
        set_rate(optimizer, rate=rate, weight_decay=0.0)
        nats = forward_backward(chunks, optimizer, batch, plan)
        keep_gradients_of_new_rows(chunks, plan.vocab)
    else:
        set_rate(optimizer, rate=rate, weight_decay=plan.optimizer.weight_decay, embedding_scale=plan.optimizer.embedding_lr_scale)
        nats = forward_backward(chunks, optimizer, batch, plan)
    loss, samples, tokens = _agree(nats, batch, num_sources=len(plan.blend))
    step = batch.first_sample // plan.layout.global_batch_size + 1
    require_finite("loss", loss, step=step)
    _, grad_norm, _ = optimizer.step()
    require_finite("gradient norm", float(grad_norm), step=step)
    return StepResult(
        loss=loss,
        grad_norm=float(grad_norm),
        learning_rate=rate,
        seconds=time.perf_counter() - started,
        source_samples=samples,
        source_tokens=tokens,
    )


def forward_backward(chunks: list[Any], optimizer: Any, batch: StepBatch, plan: RunPlan) -> float:
    """Fill the gradients from this rank's micro-batches and return their summed loss in nats (0 before the last stage)."""
    for chunk in chunks:
        chunk.zero_grad_buffer()
    optimizer.zero_grad()
    reports = get_forward_backward_func()(
        forward_step_func=_forward_step,
        data_iterator=[iter(batch.microbatches) for _ in chunks],  # every chunk of a virtual pipeline walks through all of them
        model=chunks,
        num_microbatches=len(batch.microbatches),
        seq_length=plan.layout.sequence_length,
        micro_batch_size=plan.layout.micro_batch_size,
        forward_only=False,
    )
    return sum(float(report["nats"]) for report in reports)


def _forward_step(microbatches: Any, model: Any) -> tuple[torch.Tensor, Any]:
    microbatch = next(microbatches)
    output = model(microbatch.tokens_BS, microbatch.position_ids_BS, None, labels=microbatch.labels_BS)
    return output, partial(_summed_loss, microbatch)


def _summed_loss(microbatch: Microbatch, losses_BS: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    mask_BS = microbatch.loss_mask_BS
    nats = (losses_BS.float() * mask_BS).sum()
    return nats, mask_BS.sum().to(torch.int), {"nats": nats.detach()}


def _agree(nats: float, batch: StepBatch, *, num_sources: int) -> tuple[float, tuple[int, ...], tuple[int, ...]]:
    """Return mean loss, samples and tokens per source of the global batch; each sample is counted by one rank alone."""
    samples, tokens = [0.0] * num_sources, [0.0] * num_sources
    for microbatch in batch.microbatches:
        for source, unmasked in zip(microbatch.source_ids_B.tolist(), microbatch.loss_mask_BS.sum(dim=1).tolist(), strict=True):
            samples[source] += 1
            tokens[source] += unmasked
    counts_here = parallel_state.is_pipeline_last_stage() and parallel_state.get_tensor_model_parallel_rank() == 0
    local = [number if counts_here else 0.0 for number in (nats, *samples, *tokens)]
    total_nats, *counts = totals(local, device=batch.microbatches[0].tokens_BS.device)
    whole = tuple(map(int, counts))
    return total_nats / sum(whole[num_sources:]), whole[:num_sources], whole[num_sources:]
