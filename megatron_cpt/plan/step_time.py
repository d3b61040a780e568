"""Seconds of one training step from first principles: layers, output layer, pipeline schedule, reductions and the optimizer.

The model knows a machine's measured rates (machine.py) and the list of what a step computes, moves and sends; no constant of it is
fitted to a training run. Ranks are numbered as in megatron-core: tensor first, then context, data and pipeline, so that neighbours of
a tensor group share a node.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from megatron_cpt.plan.communication import all_reduce_seconds, bucket_params, gather_seconds, send_seconds
from megatron_cpt.plan.kernels import DEFAULT_KERNELS, Kernels, matmul_seconds
from megatron_cpt.plan.layer_key import key_of
from megatron_cpt.plan.layer_time import Seconds, dense_layer, layer_seconds
from megatron_cpt.plan.machine import Machine
from megatron_cpt.plan.model_shape import ModelShape
from megatron_cpt.plan.parameters import rank_params
from megatron_cpt.plan.run_plan import Layout

# Of one parameter, by megatron-core's optimizer: Adam reads gradient, master weight and two moments and writes the last three (28), the
# norm reads the gradient (4), clipping scales it (8), the weight is copied from its master (6), the gradient is set to zero (4).
_OPTIMIZER_BYTES = 28 + 4 + 8 + 6 + 4
# Of one logit, by megatron-core's vocab_parallel_cross_entropy: cast to fp32 (2 + 4), read for the maximum (4), the maximum taken off
# (8), exponential (8), read for the sum (4), division (8); backward times the loss's gradient (8), cast back (4 + 2).
_LOGIT_BYTES = 6 + 4 + 8 + 8 + 4 + 8 + 8 + 6


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step on the slowest rank, by cause.

    Attributes:
        compute: of the layers of all micro-batches, by cause.
        output: the output layer and the loss.
        bubble: waiting for the pipeline to fill and to drain, and for slower stages.
        pipeline: sending to the next stage.
        data: reductions of gradients and gathering of weights that nothing hides.
        optimizer: the update.
    """

    compute: Seconds
    output: float
    bubble: float
    pipeline: float
    data: float
    optimizer: float

    @property
    def total(self) -> float:
        return self.compute.total + self.output + self.bubble + self.pipeline + self.data + self.optimizer

    def items(self) -> dict[str, float]:
        """Return the seconds by cause, in words."""
        part = self.compute
        return {
            "matrix products": part.matmul,
            "attention": part.attention,
            "elementwise": part.elementwise,
            "recomputation": part.recompute,
            "tensor-parallel communication": part.tensor,
            "context-parallel communication": part.context,
            "expert-parallel communication": part.expert,
            "output layer and loss": self.output,
            "pipeline bubble": self.bubble,
            "pipeline sends": self.pipeline,
            "data-parallel communication": self.data,
            "optimizer": self.optimizer,
        }


def step_time(shape: ModelShape, layout: Layout, machine: Machine, *, num_rows: int, kernels: Kernels = DEFAULT_KERNELS) -> StepTime:
    """Predict one step.

    The slowest stage works without a pause on all micro-batches; the first one reaches it, and the last one leaves, through the
    other stages, of which an interleaved schedule waits only one chunk's time each (Narayanan et al. 2021, section 2.2).
    """
    key = key_of(layout)
    forward, backward = layer_seconds(shape, key, machine, kernels)
    layers, count = math.ceil(shape.num_layers / layout.pipeline), layout.num_microbatches
    output = _output_seconds(shape, layout, machine, num_rows=num_rows)
    of_stage, others = _stages(shape, layout, machine, kernels, usual=forward.plus(backward), layers=layers)
    compute = Seconds().plus(of_stage, count)
    num_sends = 2 * count * layout.virtual_pipeline if layout.pipeline > 1 else 0
    send = send_seconds(
        machine,
        (4 if layout.dtype == "fp32" else 2) * shape.hidden_size * _tokens(layout) / layout.tensor,
        leaves_node=layout.tensor * layout.context * layout.data >= machine.devices_per_node,
    )
    if layout.virtual_pipeline > 1:  # megatron-core sends one chunk's output while it computes the next
        send = max(0.0, send - forward.total * layers / layout.virtual_pipeline)
    return StepTime(
        compute=compute,
        output=output * count * (1 + shape.num_mtp_layers),
        bubble=others / layout.virtual_pipeline,
        pipeline=num_sends * send,
        data=_data_seconds(shape, layout, machine, kernels, num_rows=num_rows, forward=forward.total, backward=backward.total),
        optimizer=_optimizer_seconds(shape, layout, machine, kernels, num_rows=num_rows),
    )


def _stages(shape: ModelShape, layout: Layout, machine: Machine, kernels: Kernels, *, usual: Seconds, layers: int) -> tuple[Seconds, float]:
    """Return the seconds of the slowest stage's layers for one micro-batch, and those of all other stages together.

    First layers without experts take a time of their own; layers of multi-token prediction, each with the matrix that joins two hidden
    states, lie on the last stage.
    """
    if not shape.num_dense_layers and not shape.num_mtp_layers:
        return Seconds().plus(usual, layers), (shape.num_layers - layers) * usual.total
    forward, backward = layer_seconds(dense_layer(shape), key_of(layout), machine, kernels)
    dense, hidden = forward.plus(backward), shape.hidden_size
    joining = 3 * matmul_seconds(machine, _tokens(layout), hidden // layout.tensor, 2 * hidden)
    predicting = Seconds().plus(usual.plus(Seconds(matmul=joining)), shape.num_mtp_layers)
    stages = []
    for stage in range(layout.pipeline):
        size = max(0, min(layers, shape.num_layers - stage * layers))
        first = max(0, min(shape.num_dense_layers - stage * layers, size))
        stages.append(Seconds().plus(dense, first).plus(usual, size - first))
    stages[-1] = stages[-1].plus(predicting)
    slowest = max(stages, key=lambda stage: stage.total)
    return slowest, sum(stage.total for stage in stages) - slowest.total


def _tokens(layout: Layout) -> int:
    return layout.sequence_length * layout.micro_batch_size // layout.context


def _output_seconds(shape: ModelShape, layout: Layout, machine: Machine, *, num_rows: int) -> float:
    """Return the seconds of output layer and loss for one micro-batch, forward and backward; the last stage has them, the slowest one."""
    tokens, rows, hidden = _tokens(layout), num_rows // layout.tensor, shape.hidden_size
    products = matmul_seconds(machine, tokens, rows, hidden) + matmul_seconds(machine, tokens, hidden, rows)
    products += matmul_seconds(machine, rows, hidden, tokens, output_bytes=8)
    moved = machine.memory_seconds(_LOGIT_BYTES * tokens * rows)
    width = 4 if layout.dtype == "fp32" else 2
    return products + moved + 3 * gather_seconds(machine, width * tokens * hidden, group=layout.tensor)


def _optimizer_seconds(shape: ModelShape, layout: Layout, machine: Machine, kernels: Kernels, *, num_rows: int) -> float:
    params = _params(shape, layout, num_rows=num_rows)
    return machine.memory_seconds(
        (_OPTIMIZER_BYTES + 8 * kernels.loss_scaling) * params / (layout.data * layout.context if _shards(layout) else 1)
    )


def _shards(layout: Layout) -> bool:
    return layout.distributed_optimizer or layout.fsdp


def _params(shape: ModelShape, layout: Layout, *, num_rows: int) -> int:
    """Count the parameters of the stage that has most to reduce: the first one."""
    sizes = {"tensor": layout.tensor, "pipeline": layout.pipeline, "expert": layout.expert}
    return rank_params(shape, num_rows=num_rows, pipeline_rank=0, **sizes)


def _data_seconds(
    shape: ModelShape, layout: Layout, machine: Machine, kernels: Kernels, *, num_rows: int, forward: float, backward: float
) -> float:
    """Return what a step waits for gradients to be reduced and for weights to be gathered.

    Overlapped, gradients go beside the last micro-batch's backward pass and weights beside the first one's forward pass; the last
    bucket of gradients has nothing to hide behind. Fully sharded, every layer's weights are gathered before each of its passes.
    """
    params = _params(shape, layout, num_rows=num_rows)
    group, stride = layout.data * layout.context, layout.tensor
    width = 4 if layout.dtype == "fp32" else 2
    tied = 0.0
    if layout.pipeline > 1 and shape.tied_embeddings:  # first and last stage add up their gradients of the shared rows
        shared = kernels.gradient_bytes * num_rows * shape.hidden_size / layout.tensor
        tied = all_reduce_seconds(machine, shared, group=2, stride=layout.num_ranks // layout.pipeline)
    if group == 1:
        return tied
    if layout.fsdp:
        layer = params / shape.num_layers
        gather = gather_seconds(machine, width * layer, group=group, stride=stride)
        reduce = gather_seconds(machine, kernels.gradient_bytes * layer, group=group, stride=stride)
        waits = max(0.0, gather - forward) + max(0.0, gather + reduce - backward)
        return layout.num_microbatches * shape.num_layers * waits + gather + reduce
    reduce = gather_seconds(machine, kernels.gradient_bytes * params, group=group, stride=stride)
    gather = gather_seconds(
        machine, (width if layout.distributed_optimizer else kernels.gradient_bytes) * params, group=group, stride=stride
    )
    layers = shape.num_layers // layout.pipeline
    if layout.overlap_grad_reduce:
        reduce = max(reduce - layers * backward, reduce / math.ceil(params / bucket_params(layout, params)))
    if layout.overlap_param_gather:
        gather = max(0.0, gather - layers * forward)
    return tied + reduce + gather
