"""One optimizer step. Shapes: B micro-batch, S sequence. Losses are sums in nats until the global batch is whole."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func

from megatron_cpt.model.build import inner_model
from megatron_cpt.plan.run_plan import RunPlan
from megatron_cpt.train.collectives import totals
from megatron_cpt.train.data import Microbatch, StepBatch
from megatron_cpt.train.divergence import diverged, is_bad, require_finite
from megatron_cpt.train.first_loss import PromisedLoss
from megatron_cpt.train.new_rows import keep_gradients_of_new_rows
from megatron_cpt.train.optimizer import forget_moments, set_rate
from megatron_cpt.train.packing import positions_in_force
from megatron_cpt.train.schedule import embedding_learning_rate, ends_new_rows_stage, learning_rate, trains_new_rows_only
from megatron_cpt.train.state import StepResult, TrainState

logger = logging.getLogger(__name__)


def optimizer_step(
    chunks: list[Any], optimizer: Any, batch: StepBatch, plan: RunPlan, *, before: TrainState, promise: PromisedLoss | None = None
) -> StepResult:
    """Update the weights with one global batch and return what all ranks agree on.

    With `stop.max_skipped_steps` or `stop.spike_factor` a bad update is found before any weight takes it, and left out while the
    plan allows one more. Without them nothing is computed that is not needed, and a bad update ends the run after the fact.

    Args:
        promise: what was recorded of the weights; the first step after a load is compared with it.

    Raises:
        TrainingDiverged: on every rank alike; the weights in memory may be spoilt and must not be saved.
        CheckpointError: on every rank alike, before the update: the loss does not keep the promise.
    """
    started = time.perf_counter()
    samples_seen = batch.first_sample + plan.layout.global_batch_size
    rate = learning_rate(plan.schedule, samples_seen=samples_seen)
    if ends_new_rows_stage(plan.schedule, first_sample=batch.first_sample):
        forget_moments(optimizer)
    if trains_new_rows_only(plan.schedule, first_sample=batch.first_sample):
        set_rate(optimizer, rate=rate, weight_decay=0.0)
        nats = forward_backward(chunks, optimizer, batch, plan)
        keep_gradients_of_new_rows(chunks, plan.vocab)
    else:
        set_rate(optimizer, rate=rate, weight_decay=plan.optimizer.weight_decay, embedding_scale=plan.optimizer.embedding_lr_scale)
        nats = forward_backward(chunks, optimizer, batch, plan)
    stop, step = plan.stop, before.step + 1
    is_guarded = stop.max_skipped_steps > 0 or stop.spike_factor is not None
    norm = gradient_norm(optimizer) if is_guarded else 0.0
    suspect = is_bad(norm, recent=before.recent_grad_norms, spike_factor=stop.spike_factor)
    sums = _agree(nats, batch, plan, suspect=suspect)
    if promise is not None and before.last is None:
        promise.check(source_nats=sums.nats, source_loss_tokens=sums.loss_tokens, step=step)
    is_skipped = is_guarded and (sums.num_suspects > 0 or not math.isfinite(sums.loss))
    if is_skipped:
        logger.info("step %d: no weight takes this update: loss %.4g, gradient norm %.4g.", step, sums.loss, norm)
        if before.skipped_steps >= stop.max_skipped_steps:
            problem = f"The update is bad, and stop.max_skipped_steps={stop.max_skipped_steps} are left out already."
            raise diverged(problem, step=step, value=f"loss {sums.loss:.4g}, gradient norm {norm:.4g}")
    else:
        require_finite("loss", sums.loss, step=step)
        _, norm, _ = optimizer.step()
        require_finite("gradient norm", float(norm), step=step)
    return StepResult(
        loss=sums.loss,
        grad_norm=float(norm),
        learning_rate=rate,
        seconds=time.perf_counter() - started,
        source_samples=sums.samples,
        source_tokens=tuple(count * plan.layout.sequence_length for count in sums.samples),
        source_nats=sums.nats,
        source_loss_tokens=sums.loss_tokens,
        is_skipped=is_skipped,
        embedding_learning_rate=_own_embedding_rate(plan, samples_seen=samples_seen),
    )


def _own_embedding_rate(plan: RunPlan, *, samples_seen: int) -> float | None:
    """Return the rate of embedding and output rows, None in a plan where it never differs from the others'."""
    scale = plan.optimizer.embedding_lr_scale
    if scale == 1.0 and not plan.schedule.new_rows_samples:
        return None
    return embedding_learning_rate(plan.schedule, samples_seen=samples_seen, scale=scale)


def gradient_norm(optimizer: Any) -> float:
    """Return the L2 norm of the whole gradient of the global batch, before clipping; no weight is touched. Collective."""
    optimizer.prepare_grads()
    return float(optimizer.get_grad_norm())


def forward_backward(chunks: list[Any], optimizer: Any, batch: StepBatch, plan: RunPlan) -> list[list[float]]:
    """Fill the gradients from this rank's micro-batches and return each sample's loss in nats, by micro-batch.

    The list is empty on ranks before the last pipeline stage. Of a sequence that ranks share, the loss is that of this rank's tokens.
    """
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
    return [report["nats_B"].tolist() for report in reports]


def _forward_step(microbatches: Any, model: Any) -> tuple[torch.Tensor, Any]:
    microbatch = next(microbatches)
    with positions_in_force(inner_model(model), microbatch.position_ids_BS):
        output = model(microbatch.tokens_BS, microbatch.position_ids_BS, microbatch.attention_mask_B1SS, labels=microbatch.labels_BS)
    return output, partial(_summed_loss, microbatch)


def _summed_loss(microbatch: Microbatch, losses_BS: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    mask_BS = microbatch.loss_mask_BS
    nats_B = (losses_BS.float() * mask_BS).sum(dim=1)
    return nats_B.sum(), mask_BS.sum().to(torch.int), {"nats_B": nats_B.detach()}


@dataclass(frozen=True)
class _Sums:
    """What the ranks agree on of a global batch: the mean loss, and samples, nats and tokens with a loss by source."""

    loss: float
    samples: tuple[int, ...]
    nats: tuple[float, ...]
    loss_tokens: tuple[int, ...]
    num_suspects: int


def _agree(nats: list[list[float]], batch: StepBatch, plan: RunPlan, *, suspect: bool) -> _Sums:
    """Return the sums over the global batch in one exchange.

    Each sample is counted by one rank alone. Its nats and its tokens with a loss are those of the context-parallel ranks that share
    it, each of which knows its own part.

    Args:
        suspect: this rank holds the update for bad; one such rank is enough.
    """
    num = len(plan.blend)
    samples, by_source, tokens = [0.0] * num, [0.0] * num, [0.0] * num
    counts_samples = parallel_state.get_context_parallel_rank() == 0
    if parallel_state.is_pipeline_last_stage() and parallel_state.get_tensor_model_parallel_rank() == 0:
        for microbatch, nats_B in zip(batch.microbatches, nats, strict=True):
            unmasked_B = microbatch.loss_mask_BS.sum(dim=1).tolist()
            for source, sum_of_nats, unmasked in zip(microbatch.source_ids_B.tolist(), nats_B, unmasked_B, strict=True):
                samples[source] += counts_samples
                by_source[source] += sum_of_nats
                tokens[source] += unmasked
    whole = totals([*samples, *by_source, *tokens, float(suspect)], device=batch.microbatches[0].tokens_BS.device)
    loss_tokens = tuple(map(int, whole[2 * num : 3 * num]))
    all_nats = tuple(whole[num : 2 * num])
    return _Sums(sum(all_nats) / max(sum(loss_tokens), 1), tuple(map(int, whole[:num])), all_nats, loss_tokens, int(whole[-1]))
