"""Peak memory of every pipeline stage's rank, itemised. A count of tensors, without a fudge factor.

Bytes per parameter follow Megatron-core's table (docs/user-guide/features/dist_optimizer.md): 18 for bf16 with fp32 gradients and
Adam, or 6 + 12/d when d data-parallel ranks share the optimizer; 16, or 8 + 8/d, in fp32.
Activations follow the tensor list of Korthikanti et al. 2022 (arXiv 2205.05198, section 4.1), counted for grouped-query attention
and a gated MLP, with attention that keeps no score matrix. The same paper gives what full recomputation keeps, a layer's input (2sbh
in bf16, table 2), and the first stage's factor 1 + (p - 1)/(p v) under the interleaved schedule of v chunks a rank (section 4.2.3).
Context parallelism gives each rank 1/c of the tokens, and the distributed optimizer d x c ranks to share its state among.
Fully sharded, each of d x c ranks keeps that part of weights, gradients and optimizer state (Rajbhandari et al. 2020, arXiv 1910.02054,
section 5: all three are divided by the number of ranks), and beside it what is gathered at the moment.
FP8 is counted from above: activations as in bf16, and beside each matrix of a layer its FP8 copy and that one's transpose.
"""

from __future__ import annotations

from typing import Literal

from megatron_cpt.plan.model_shape import ModelShape
from megatron_cpt.plan.parameters import layer_params, matrix_params_per_layer, rank_expert_params, rank_params
from megatron_cpt.plan.run_plan import Layout, RankMemory

NOT_COUNTED = "memory leaves out fragmentation, communication buffers, optimizer temporaries and the process itself (about 1 GB a rank)"

Dtype = Literal["fp32", "bf16"]
_ELEMENT_BYTES: dict[Dtype, int] = {"fp32": 4, "bf16": 2}
_GRADIENT_BYTES = 4  # Megatron-core accumulates gradients in fp32 for either dtype
_OPTIMIZER_BYTES: dict[Dtype, int] = {"fp32": 8, "bf16": 12}  # two Adam moments; bf16 weights add an fp32 master copy
_SHARDED_OPTIMIZER_BYTES = 12  # Megatron-FSDP keeps a master copy beside fp32 weights too
_LOGIT_BYTES = 4  # the loss works in place on one fp32 copy of the logits
_FP8_COPIES_BYTES = 2  # of a layer's matrix, one byte a number each: Hopper multiplies FP8 in one orientation only


def activation_bytes_per_layer(
    shape: ModelShape,
    *,
    num_tokens: int,
    tensor: int,
    sequence_parallel: bool,
    element_bytes: int,
    fused_swiglu: bool,
    gathered: int = 1,
) -> float:
    """Count the bytes that one layer keeps for the backward pass of one micro-batch of `num_tokens` (= s x b) tokens.

    Of other ranks' tokens it may keep the keys and values: `gathered` times its own.
    Whole on every tensor rank unless `sequence_parallel`: the inputs of both norms, of the query/key/value matrix and of the MLP.
    Split over tensor ranks: queries, keys, values, the attention's output, and the middle of the MLP, which keeps gate, up and
    product (3 x ffn), and the activated gate too when SwiGLU is not one fused operation (4 x ffn). An MLP that is not gated keeps
    its middle before and after the activation. A token's experts each keep their copy of it and their output beside their middle,
    counted as if the router spread the tokens evenly. Norms of queries and keys keep their inputs, as many as queries and keys.
    """
    whole = 4 * shape.hidden_size
    heads = (2 * shape.num_attention_heads + 2 * shape.num_query_groups * gathered) * shape.head_dim
    if shape.traits.qk_norm:
        heads += (shape.num_attention_heads + shape.num_query_groups) * shape.head_dim
    if shape.traits.gemma:
        whole += 2 * shape.hidden_size  # the inputs of the norms behind attention and MLP
    per_token = whole / (tensor if sequence_parallel else 1)
    per_token += (heads + mlp_middle(shape, fused_swiglu=fused_swiglu)) / tensor
    return element_bytes * num_tokens * per_token


def mlp_middle(shape: ModelShape, *, fused_swiglu: bool) -> int:
    """Count the elements that the MLP of one layer keeps of one token, or all experts that the token is sent to."""
    one = ((3 if fused_swiglu else 4) if shape.traits.gated else 2) * shape.ffn_hidden_size
    return shape.experts_per_token * (one + 2 * shape.hidden_size) if shape.num_experts else one


def tokens_of_a_rank(layout: Layout) -> int:
    """Return the tokens of one micro-batch that one rank holds."""
    return layout.sequence_length * layout.micro_batch_size // layout.context


def kept_bytes_per_layer(shape: ModelShape, layout: Layout, *, fused_swiglu: bool) -> tuple[float, float]:
    """Return what one layer keeps of one micro-batch until its backward pass, and what one layer adds while it is recomputed."""
    element_bytes = _ELEMENT_BYTES[layout.dtype]
    num_tokens = tokens_of_a_rank(layout)
    everything = activation_bytes_per_layer(
        shape,
        num_tokens=num_tokens,
        tensor=layout.tensor,
        sequence_parallel=layout.sequence_parallel,
        element_bytes=element_bytes,
        fused_swiglu=fused_swiglu,
        # the attention that the CPU backend uses gathers them; Transformer Engine's sends them round again in the backward pass
        gathered=1 if fused_swiglu else layout.context,
    )
    if layout.recompute == "none":
        return everything, 0.0
    if layout.recompute == "selective":
        middle = element_bytes * num_tokens * mlp_middle(shape, fused_swiglu=fused_swiglu) / layout.tensor
        return everything - middle, middle
    layer_input = element_bytes * num_tokens * shape.hidden_size / (layout.tensor if layout.sequence_parallel else 1)
    return layer_input, everything - layer_input


def chunks_in_flight(layout: Layout, *, pipeline_rank: int) -> int:
    """Return how many chunks' activations a stage holds at its peak: warm-up forward passes and the one that follows them.

    Stage k of p: p - k of them under 1F1B, where a stage is one chunk; 2(p - k - 1) + (v - 1)p + 1 when each rank holds v
    chunks (Narayanan et al. 2021, section 2.2; for k = 0 that is Korthikanti's 1 + (p - 1)/(p v) of all layers).
    """
    pipeline, virtual = layout.pipeline, layout.virtual_pipeline
    behind = pipeline - pipeline_rank - 1
    wanted = behind + 1 if virtual == 1 else 2 * behind + (virtual - 1) * pipeline + 1
    return min(wanted, virtual * layout.num_microbatches)


def whole_params(shape: ModelShape, layout: Layout, *, num_rows: int) -> int:
    """Count the parameters that a rank holds whole at the peak though they are in shards: two layers, and all that is in no layer.

    The layer at work and the one whose weights come next (or whose gradients leave); embedding, output matrix and final norm stay
    gathered for a whole pass, and their gradients too.
    """
    in_layers = shape.num_layers * layer_params(shape).on_rank(tensor=layout.tensor, expert=layout.expert)
    params = rank_params(shape, num_rows=num_rows, tensor=layout.tensor, pipeline=1, pipeline_rank=0)
    return params - in_layers + min(2, shape.num_layers) * in_layers // shape.num_layers


def rank_memory(shape: ModelShape, layout: Layout, *, num_rows: int, pipeline_rank: int, fused_swiglu: bool) -> RankMemory:
    """Estimate the peak of one rank of a stage under the 1F1B schedule, plain or interleaved, with what recomputation leaves out."""
    element_bytes = _ELEMENT_BYTES[layout.dtype]
    params = rank_params(
        shape, num_rows=num_rows, tensor=layout.tensor, pipeline=layout.pipeline, pipeline_rank=pipeline_rank, expert=layout.expert
    )
    of_experts = rank_expert_params(shape, tensor=layout.tensor, pipeline=layout.pipeline, expert=layout.expert)
    num_tokens = tokens_of_a_rank(layout)
    layers_in_flight = chunks_in_flight(layout, pipeline_rank=pipeline_rank) * (
        shape.num_layers // (layout.pipeline * layout.virtual_pipeline)
    )
    per_layer, while_recomputed = kept_bytes_per_layer(shape, layout, fused_swiglu=fused_swiglu)
    is_last = pipeline_rank == layout.pipeline - 1
    sharers = layout.data * layout.context
    weights, gradients = float(element_bytes * params), float(_GRADIENT_BYTES * params)
    if layout.fsdp:
        whole = whole_params(shape, layout, num_rows=num_rows)
        weights = weights / sharers + element_bytes * whole
        gradients = gradients / sharers + _GRADIENT_BYTES * whole
    sharded = ((params - of_experts) + of_experts * layout.expert) / sharers
    in_matrices = shape.num_layers // layout.pipeline * matrix_params_per_layer(shape, expert=layout.expert) / layout.tensor
    in_fp8 = in_matrices if layout.fp8 != "none" else 0
    head_input = 2 * element_bytes * num_tokens * shape.hidden_size if is_last else 0  # of the final norm and the output matrix
    return RankMemory(
        pipeline_rank=pipeline_rank,
        num_params=params,
        weights=weights + _FP8_COPIES_BYTES * in_fp8,
        gradients=gradients,
        optimizer=(_SHARDED_OPTIMIZER_BYTES if layout.fsdp else _OPTIMIZER_BYTES[layout.dtype])
        * (sharded if layout.distributed_optimizer else params),
        activations=layers_in_flight * per_layer + while_recomputed + head_input,
        logits=_LOGIT_BYTES * num_tokens * num_rows / layout.tensor if is_last else 0.0,
    )


def memory_of_stages(shape: ModelShape, layout: Layout, *, num_rows: int, fused_swiglu: bool) -> tuple[RankMemory, ...]:
    """Estimate one rank of every pipeline stage, first to last; the largest decides whether the run fits."""
    return tuple(
        rank_memory(shape, layout, num_rows=num_rows, pipeline_rank=rank, fused_swiglu=fused_swiglu) for rank in range(layout.pipeline)
    )
