"""Peak memory of every pipeline stage's rank, itemised: a count of tensors, without a factor that was fitted to anything.

Bytes per parameter follow Megatron-core's table (docs/user-guide/features/dist_optimizer.md): 18 for bf16 with fp32 gradients and
Adam, or 6 + 12/d when d data-parallel ranks share the optimizer; 16, or 8 + 8/d, in fp32.
What a layer keeps is listed in `activations.py`. Korthikanti et al. 2022 (arXiv 2205.05198) give what full recomputation keeps, a
layer's input (table 2), and the first stage's factor 1 + (p - 1)/(p v) under the interleaved schedule of v chunks a rank (4.2.3).
Context parallelism gives each rank 1/c of the tokens, and the distributed optimizer d x c ranks to share its state among.
Fully sharded, each of d x c ranks keeps that part of weights, gradients and optimizer state (Rajbhandari et al. 2020, arXiv 1910.02054,
section 5: all three are divided by the number of ranks), and beside it what is gathered at the moment.
In FP8 a layer's matrices keep their inputs in FP8, and beside each matrix lie its FP8 copy and that one's transpose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from megatron_cpt.plan.activations import (
    TORCH,
    TRANSFORMER_ENGINE,
    Kept,
    Operations,
    attention_tensors,
    bytes_per_token,
    head_tensors,
    mlp_tensors,
    prediction_tensors,
)
from megatron_cpt.plan.checkpoint_memory import gathered_bytes, host_load_bytes, host_save_bytes
from megatron_cpt.plan.model_shape import ModelShape
from megatron_cpt.plan.parameters import LayerParams, outer_params, stage_layers
from megatron_cpt.plan.run_plan import Layout, RankMemory

# An assumption, shown as a line of its own: the CUDA context and NCCL's buffers, which torch's allocator does not see. A NeMo run that
# filled an H200 had 139.80 GiB in use, of which torch had 138.66: 1.2 GB.
OUTSIDE_TORCH = 1.2e9
# An assumption, shown as a line of its own: blocks of the allocator that are free and too small. Without `expandable_segments` it can be
# far more: a run with 58.8 GB allocated found no room on 80 GB (NVIDIA Megatron Bridge, skills/nemo-mbridge-perf-memory-tuning).
FRAGMENTATION = 0.05

Dtype = Literal["fp32", "bf16", "fp16"]
_ELEMENT_BYTES: dict[Dtype, int] = {"fp32": 4, "bf16": 2, "fp16": 2}
_GRADIENT_BYTES: dict[Dtype, int] = {"fp32": 4, "bf16": 4, "fp16": 2}  # Megatron-core accumulates gradients of bf16 in fp32
# two Adam moments; 16-bit weights add an fp32 master copy, fp16 gradients one too
_OPTIMIZER_BYTES: dict[Dtype, int] = {"fp32": 8, "bf16": 12, "fp16": 16}
_SHARDED_OPTIMIZER_BYTES = 12  # Megatron-FSDP keeps a master copy beside fp32 weights too
_FP8_COPIES_BYTES = 2  # of a layer's matrix, one byte a number each: Hopper multiplies FP8 in one orientation only
# Of torch's matrix library for the forward and for the backward thread, and of Transformer Engine's, on Hopper and later: 32 MiB each
# (torch: aten/src/ATen/cuda/CublasHandlePool.cpp; Transformer Engine: pytorch/module/base.py).
# Its grouped products of experts have four more.
CUDA_WORKSPACES = 3 * 32 * 2**20
EXPERT_WORKSPACES = 4 * 32 * 2**20


@dataclass(frozen=True)
class Build:
    """How the model is built beyond its layout.

    Attributes:
        recompute_modules: megatron-core's modules that are computed anew under selective recomputation; what this project trains with
            is the MLP, or all experts (`model/build.py`).
        expert_tensor: tensor-parallel ranks that share an expert; None is all of them.
        chunk_layers: layers of every chunk of the pipeline, first to last; None divides them evenly.
        group_size: micro-batches that an interleaved stage runs through one chunk before the next; None is the number of stages.
        gradient_bytes, optimizer_bytes: of one parameter, where they are not the dtype's usual ones.
        fp8_weights: matrices of layers live in FP8 alone, one byte a number.
        extra_forward: forward passes that run ahead of the schedule's own.
        workspaces: bytes of the matrix libraries, and `expert_workspaces` what experts add.
        outside_torch: bytes that torch's allocator does not see.
        on_host: the device is the host, so that a checkpoint's buffers there count.
    """

    operations: Operations = TRANSFORMER_ENGINE
    recompute_modules: frozenset[str] = frozenset({"mlp", "moe"})
    expert_tensor: int | None = None
    chunk_layers: tuple[int, ...] | None = None
    group_size: int | None = None
    extra_forward: int = 0
    gradient_bytes: int | None = None
    optimizer_bytes: int | None = None
    fp8_weights: bool = False
    workspaces: float = CUDA_WORKSPACES
    expert_workspaces: float = EXPERT_WORKSPACES
    outside_torch: float = OUTSIDE_TORCH
    on_host: bool = False


ON_CUDA = Build()
TORCH_ON_CUDA = Build(operations=TORCH)
ON_CPU = Build(operations=TORCH, workspaces=0.0, expert_workspaces=0.0, outside_torch=0.0, on_host=True)


def state_bytes_per_param(dtype: Dtype, *, distributed_optimizer: bool, sharers: int) -> float:
    """Return the bytes of one parameter's weight, gradient and optimizer state on a rank; `sharers` ranks share the latter."""
    optimizer = _OPTIMIZER_BYTES[dtype] / (sharers if distributed_optimizer else 1)
    return _ELEMENT_BYTES[dtype] + _GRADIENT_BYTES[dtype] + optimizer


def tokens_of_a_rank(layout: Layout) -> int:
    """Return the tokens of one micro-batch that one rank holds."""
    return layout.sequence_length * layout.micro_batch_size // layout.context


def layer_tensors(shape: ModelShape, layout: Layout, *, operations: Operations, dense: bool = False) -> list[Kept]:
    """List what one layer keeps of a token."""
    element_bytes = _ELEMENT_BYTES[layout.dtype]
    if layout.fp8 != "none":
        operations = replace(operations, fp8_inputs=True)
    attention = attention_tensors(
        shape,
        operations,
        element_bytes=element_bytes,
        num_keys=layout.sequence_length,
        # torch's attention gathers the keys and values of the other ranks; Transformer Engine's sends them round again in the backward pass
        gathered=layout.context if operations.joint_qkv else 1,
        micro_batch_size=layout.micro_batch_size,
    )
    return attention + mlp_tensors(shape, operations, element_bytes=element_bytes, dense=dense)


def bytes_on_rank(kept: Sequence[Kept], layout: Layout, *, build: Build = ON_CUDA) -> float:
    """Return the bytes of tensors on one rank, for one micro-batch."""
    return tokens_of_a_rank(layout) * bytes_per_token(
        kept,
        tensor=layout.tensor,
        sequence_parallel=layout.sequence_parallel,
        expert_tensor=build.expert_tensor or layout.tensor,
    )


def kept_bytes_per_layer(shape: ModelShape, layout: Layout, *, build: Build = ON_CUDA, dense: bool = False) -> tuple[float, float]:
    """Return what one layer keeps of one micro-batch until its backward pass, and what one layer adds while it is recomputed."""
    kept = layer_tensors(shape, layout, operations=build.operations, dense=dense)
    everything = bytes_on_rank(kept, layout, build=build)
    if layout.recompute == "none":
        return everything, 0.0
    if layout.recompute == "selective":
        stays = bytes_on_rank([entry for entry in kept if not entry.freed_by & build.recompute_modules], layout, build=build)
    else:
        stays = bytes_on_rank([hidden_state(shape, layout)], layout, build=build)
    return stays, everything - stays


def hidden_state(shape: ModelShape, layout: Layout) -> Kept:
    """Return the tensor that goes from layer to layer and from stage to stage."""
    return Kept("hidden state", shape.hidden_size, _ELEMENT_BYTES[layout.dtype], "sequence")


def chunks_in_flight(layout: Layout, *, pipeline_rank: int, build: Build = ON_CUDA) -> int:
    """Return how many chunks' activations a stage holds at its peak: warm-up forward passes and the one that follows them.

    Stage k of p: p - k of them under 1F1B, where a stage is one chunk; 2(p - k - 1) + (v - 1)p + 1 when each rank holds v
    chunks (Narayanan et al. 2021, section 2.2; for k = 0 that is Korthikanti's 1 + (p - 1)/(p v) of all layers).
    """
    pipeline, virtual = layout.pipeline, layout.virtual_pipeline
    behind = pipeline - pipeline_rank - 1
    wanted = behind + 1 if virtual == 1 else 2 * behind + (virtual - 1) * (build.group_size or pipeline) + 1
    return min(wanted + build.extra_forward, virtual * layout.num_microbatches)


def chunk_layers_of(shape: ModelShape, layout: Layout, *, pipeline_rank: int, build: Build = ON_CUDA) -> list[tuple[int, int]]:
    """Return for each chunk of a rank how many layers it has, and how many of them are dense ones of a mixture of experts."""
    num_chunks = layout.pipeline * layout.virtual_pipeline
    sizes = build.chunk_layers or (shape.num_layers // num_chunks,) * num_chunks
    dense, first = [], 0
    for size in sizes:
        dense.append(max(0, min(shape.num_dense_layers - first, size)))
        first += size
    return [(sizes[chunk], dense[chunk]) for chunk in range(pipeline_rank, num_chunks, layout.pipeline)]


def activation_bytes(shape: ModelShape, layout: Layout, *, pipeline_rank: int, build: Build) -> float:
    """Return what one rank keeps of all micro-batches in flight, and what the recomputation of one layer adds."""
    operations, element_bytes = build.operations, _ELEMENT_BYTES[layout.dtype]
    per_layer, again = kept_bytes_per_layer(shape, layout, build=build)
    per_dense, dense_again = kept_bytes_per_layer(shape, layout, build=build, dense=True) if shape.num_dense_layers else (0.0, 0.0)
    chunks = [
        (size - dense) * per_layer + dense * per_dense
        for size, dense in chunk_layers_of(shape, layout, pipeline_rank=pipeline_rank, build=build)
    ]
    is_last = pipeline_rank == layout.pipeline - 1
    if is_last and shape.num_mtp_layers:
        joining = bytes_on_rank(prediction_tensors(shape, operations, element_bytes=element_bytes), layout, build=build)
        chunks[-1] += shape.num_mtp_layers * (per_layer + joining)
    total, left, chunk = max(again, dense_again), chunks_in_flight(layout, pipeline_rank=pipeline_rank, build=build), 0
    group = (build.group_size or layout.pipeline) if layout.virtual_pipeline > 1 else left
    while left > 0:
        total += min(group, left) * chunks[chunk % len(chunks)]
        left, chunk = left - group, chunk + 1
    if is_last:
        total += bytes_on_rank(head_tensors(shape, operations, element_bytes=element_bytes), layout, build=build)
    if pipeline_rank == 0 and operations.hidden_dropout:  # of the embedding, in every micro-batch whose first chunk is in flight
        mask = bytes_on_rank([hidden_state(shape, layout)._replace(bytes=1)], layout, build=build)
        total += mask * min(layout.pipeline, layout.num_microbatches)
    return total


def loss_bytes(shape: ModelShape, layout: Layout, *, num_rows: int, operations: Operations) -> float:
    """Return the last stage's logits with what the loss adds, or, if that is more, with the gradient of the output matrix.

    megatron-core's loss copies the logits to fp32 and works in place there; its gradient is fp32 before it is cast to the logits'
    dtype, so that both times a logit has its own bytes and four (core/tensor_parallel/cross_entropy.py). Each layer of multi-token
    prediction keeps logits of its own until the backward pass.
    """
    element_bytes = _ELEMENT_BYTES[layout.dtype]
    columns = num_rows / layout.tensor
    logits = tokens_of_a_rank(layout) * columns
    with_loss = element_bytes + (operations.loss_bytes if element_bytes < 4 else 0)
    gradient = 0.0 if operations.fused_gradient and not shape.tied_embeddings else element_bytes * columns * shape.hidden_size
    return max(with_loss * (1 + shape.num_mtp_layers) * logits, element_bytes * logits + gradient)


def whole_params(shape: ModelShape, layout: Layout, *, num_rows: int, build: Build) -> int:
    """Count the parameters that a rank holds whole at the peak though they are in shards: two layers, and all that is in no layer.

    The layer at work and the one whose weights come next (or whose gradients leave); embedding, output matrix and final norm stay
    gathered for a whole pass, and their gradients too.
    """
    layers = stage_layers(shape, pipeline=1, pipeline_rank=0)
    in_layers = layers.on_rank(tensor=layout.tensor, expert=layout.expert, expert_tensor=build.expert_tensor)
    outer = outer_params(shape, num_rows=num_rows, tensor=layout.tensor, pipeline=1, pipeline_rank=0)
    return outer + min(2, shape.num_layers) * in_layers // shape.num_layers


def stage_inputs_bytes(shape: ModelShape, layout: Layout, *, pipeline_rank: int, build: Build) -> float:
    """Return what stays between steps of a stage's inputs: of each chunk that is not the first, the last one and its gradient.

    megatron-core's `TransformerBlock.input_tensor` holds it, and the schedule had autograd retain its gradient.
    """
    if layout.pipeline == 1:
        return 0.0
    fed = layout.virtual_pipeline - (1 if pipeline_rank == 0 else 0)
    return 2 * fed * bytes_on_rank([hidden_state(shape, layout)], layout, build=build)


def communication_bytes(shape: ModelShape, layout: Layout, *, build: Build) -> float:
    """Return buffers for tokens under way: gathered ones before a matrix, and a neighbour stage's next input and gradient.

    Gradients are reduced, and weights gathered, within the buffers that they lie in (core/distributed/param_and_grad_buffer.py).
    """
    state = hidden_state(shape, layout)
    gathered = tokens_of_a_rank(layout) * state.elements * state.bytes if layout.sequence_parallel and layout.tensor > 1 else 0.0
    received = 2 * bytes_on_rank([state], layout, build=build) if layout.pipeline > 1 else 0.0
    return gathered + received


def _layers_of_rank(shape: ModelShape, layout: Layout, *, pipeline_rank: int, build: Build) -> LayerParams:
    """Count the layers of one rank, chunk by chunk where they are not divided evenly or not all alike."""
    if build.chunk_layers is None and not shape.num_dense_layers:
        return stage_layers(shape, pipeline=layout.pipeline, pipeline_rank=pipeline_rank)
    chunks = chunk_layers_of(shape, layout, pipeline_rank=pipeline_rank, build=build)
    counts = [stage_layers(shape, pipeline=2, pipeline_rank=0, layers=size, first=shape.num_dense_layers - dense) for size, dense in chunks]
    if pipeline_rank == layout.pipeline - 1 and shape.num_mtp_layers:
        counts.append(stage_layers(shape, pipeline=1, pipeline_rank=0, layers=0, first=shape.num_layers))
    return LayerParams(*(sum(getattr(count, field) for count in counts) for field in ("split", "whole", "experts")))


def rank_memory(shape: ModelShape, layout: Layout, *, num_rows: int, pipeline_rank: int, build: Build = ON_CUDA) -> RankMemory:
    """Estimate the peak of one rank of a stage under the 1F1B schedule, plain or interleaved, with what recomputation leaves out."""
    element_bytes, gradient_bytes = _ELEMENT_BYTES[layout.dtype], build.gradient_bytes or _GRADIENT_BYTES[layout.dtype]
    layers = _layers_of_rank(shape, layout, pipeline_rank=pipeline_rank, build=build)
    expert_tensor = build.expert_tensor or layout.tensor
    of_experts = layers.experts // (expert_tensor * layout.expert)
    outer = outer_params(shape, num_rows=num_rows, tensor=layout.tensor, pipeline=layout.pipeline, pipeline_rank=pipeline_rank)
    params = layers.split // layout.tensor + layers.whole + of_experts + outer
    sharers = layout.data * layout.context
    expert_sharers = sharers * layout.tensor / (layout.expert * expert_tensor)
    weights, gradients = float(element_bytes * params), float(gradient_bytes * params)
    sharded = (params - of_experts) / sharers + of_experts / expert_sharers
    if layout.fsdp:
        whole = whole_params(shape, layout, num_rows=num_rows, build=build)
        weights, gradients = (per_param * (sharded + whole) for per_param in (element_bytes, gradient_bytes))
    in_matrices = layers.split / layout.tensor + of_experts  # and few biases
    if build.fp8_weights:
        weights -= (element_bytes - 1) * in_matrices
    elif layout.fp8 != "none":
        weights += _FP8_COPIES_BYTES * in_matrices
    optimizer_bytes = build.optimizer_bytes or (_SHARDED_OPTIMIZER_BYTES if layout.fsdp else _OPTIMIZER_BYTES[layout.dtype])
    optimizer = optimizer_bytes * (sharded if layout.distributed_optimizer else params)
    activations = activation_bytes(shape, layout, pipeline_rank=pipeline_rank, build=build)
    is_last = pipeline_rank == layout.pipeline - 1
    logits = loss_bytes(shape, layout, num_rows=num_rows, operations=build.operations) if is_last else 0.0
    communication = communication_bytes(shape, layout, build=build)
    workspaces = build.workspaces + (build.expert_workspaces if shape.num_experts else 0.0)
    state = weights + gradients + optimizer + workspaces
    host_load, host_save = (count(layout, num_params=params) for count in (host_load_bytes, host_save_bytes))
    return RankMemory(
        pipeline_rank=pipeline_rank,
        num_params=params,
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        activations=activations,
        logits=logits,
        communication=communication,
        workspaces=workspaces,
        allowance=FRAGMENTATION * (activations + logits + communication),
        stage_inputs=stage_inputs_bytes(shape, layout, pipeline_rank=pipeline_rank, build=build),
        checkpoint_load=state + (host_load if build.on_host else 0.0),
        checkpoint_save=state + gathered_bytes(layout, num_params=params) + (host_save if build.on_host else 0.0),
        host_checkpoint=max(host_load, host_save),
        outside_torch=build.outside_torch,
    )


def memory_of_stages(shape: ModelShape, layout: Layout, *, num_rows: int, build: Build = ON_CUDA) -> tuple[RankMemory, ...]:
    """Estimate one rank of every pipeline stage, first to last; the largest decides whether the run fits."""
    return tuple(rank_memory(shape, layout, num_rows=num_rows, pipeline_rank=rank, build=build) for rank in range(layout.pipeline))


def largest_rank(shape: ModelShape, layout: Layout, *, num_rows: int, build: Build = ON_CUDA) -> RankMemory:
    """Return the rank that needs most; of equal stages only the first and the last can be it.

    A stage between them has no embedding and fewer micro-batches in flight than the first, and no logits.
    """
    is_equal = build.chunk_layers is None and not shape.num_dense_layers
    ranks = {0, layout.pipeline - 1} if is_equal else set(range(layout.pipeline))
    found = [rank_memory(shape, layout, num_rows=num_rows, pipeline_rank=rank, build=build) for rank in sorted(ranks)]
    return max(found, key=lambda rank: rank.total)
