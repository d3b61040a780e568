"""Seconds of one transformer layer on one rank for one micro-batch, itemised: a list of its kernels and collectives, none fitted.

Letters of the formulas: T tokens of a rank's micro-batch, h hidden size, f the MLP's middle, a heads of d numbers, g key/value heads,
t tensor-parallel ranks, c context-parallel ranks, E experts of which a token is sent to k.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache

from megatron_cpt.plan.communication import all_reduce_seconds, all_to_all_seconds, gather_seconds, send_seconds
from megatron_cpt.plan.kernels import Kernels, flash_seconds, matmul_seconds
from megatron_cpt.plan.machine import Machine
from megatron_cpt.plan.model_shape import ModelShape
from megatron_cpt.plan.run_plan import Layout
from megatron_cpt.plan.throughput import tokens_seen


@dataclass(frozen=True)
class Seconds:
    """Time of a part of a step on one rank, by cause. Communication is what is not hidden behind computing."""

    matmul: float = 0.0
    attention: float = 0.0
    elementwise: float = 0.0
    tensor: float = 0.0
    context: float = 0.0
    expert: float = 0.0
    recompute: float = 0.0

    @property
    def total(self) -> float:
        return self.matmul + self.attention + self.elementwise + self.tensor + self.context + self.expert + self.recompute

    def plus(self, other: Seconds, times: float = 1.0) -> Seconds:
        """Return the sum of this and `times` the other, item by item."""
        return Seconds(*(getattr(self, item.name) + times * getattr(other, item.name) for item in fields(Seconds)))


@dataclass(frozen=True)
class LayerKey:
    """What of a layout the time of a layer depends on."""

    tensor: int
    context: int
    expert: int
    micro_batch_size: int
    sequence_length: int
    sequence_parallel: bool
    element_bytes: int
    fp8: bool
    recompute: str

    @property
    def num_tokens(self) -> int:
        return self.sequence_length * self.micro_batch_size // self.context


def key_of(layout: Layout) -> LayerKey:
    return LayerKey(
        tensor=layout.tensor,
        context=layout.context,
        expert=layout.expert,
        micro_batch_size=layout.micro_batch_size,
        sequence_length=layout.sequence_length,
        sequence_parallel=layout.sequence_parallel,
        element_bytes=4 if layout.dtype == "fp32" else 2,
        fp8=layout.fp8 != "none",
        recompute=layout.recompute,
    )


@lru_cache(maxsize=4096)
def layer_seconds(shape: ModelShape, key: LayerKey, machine: Machine, kernels: Kernels) -> tuple[Seconds, Seconds]:
    """Return the seconds of a layer's forward and of its backward pass; what is recomputed belongs to the backward pass."""
    attention, mlp = _attention_matmuls(shape, key), _mlp_matmuls(shape, key)
    forward_of_attention = _forward(shape, key, machine, kernels, attention, is_attention=True)
    forward_of_mlp = _forward(shape, key, machine, kernels, mlp, is_attention=False)
    forward = forward_of_attention.plus(forward_of_mlp)
    backward = _backward(shape, key, machine, kernels, attention, is_attention=True)
    backward = backward.plus(_backward(shape, key, machine, kernels, mlp, is_attention=False))
    repeated = 0.0
    if key.recompute == "full":
        repeated = forward.total
    elif key.recompute == "selective" and kernels.selective == "mlp":
        repeated = forward_of_mlp.total
    elif key.recompute == "selective":
        repeated = _core_attention(shape, key, machine, kernels, backward=False)
    return forward, backward.plus(Seconds(recompute=repeated))


@dataclass(frozen=True)
class _Matmul:
    rows: int
    columns: int
    inner: int
    count: int = 1
    gathers: bool = False  # its input is gathered over the tensor ranks, its input's gradient reduced

    def forward(self, machine: Machine, *, fp8: bool) -> float:
        return matmul_seconds(machine, self.rows, self.columns, self.inner, count=self.count, fp8=fp8)

    def of_input(self, machine: Machine, *, fp8: bool) -> float:
        return matmul_seconds(machine, self.rows, self.inner, self.columns, count=self.count, fp8=fp8)

    def of_weight(self, machine: Machine, *, fp8: bool) -> float:
        """The gradient of a weight is added to an fp32 sum: read and written."""
        return matmul_seconds(machine, self.columns, self.inner, self.rows, count=self.count, fp8=fp8, output_bytes=8)


def _attention_matmuls(shape: ModelShape, key: LayerKey) -> tuple[_Matmul, ...]:
    tokens, hidden = key.num_tokens, shape.hidden_size
    heads = shape.num_attention_heads * shape.head_dim // key.tensor
    groups = max(shape.num_query_groups // key.tensor, 1) * shape.head_dim
    return (_Matmul(tokens, heads + 2 * groups, hidden, gathers=True), _Matmul(tokens, hidden, heads))


def _mlp_matmuls(shape: ModelShape, key: LayerKey) -> tuple[_Matmul, ...]:
    tokens, hidden, middle = key.num_tokens, shape.hidden_size, shape.ffn_hidden_size // key.tensor
    first = middle * (2 if shape.traits.gated else 1)
    if not shape.num_experts:
        return (_Matmul(tokens, first, hidden, gathers=True), _Matmul(tokens, hidden, middle))
    local = shape.num_experts // key.expert
    rows = max(tokens * shape.experts_per_token // local, 1)  # as if the router spread the tokens evenly
    return (
        _Matmul(tokens // (key.tensor if key.sequence_parallel else 1), shape.num_experts, hidden),
        _Matmul(rows, first, hidden, count=local, gathers=True),
        _Matmul(rows, hidden, middle, count=local),
    )


def _forward(
    shape: ModelShape, key: LayerKey, machine: Machine, kernels: Kernels, matmuls: tuple[_Matmul, ...], *, is_attention: bool
) -> Seconds:
    moved = _moved_forward(shape, key, kernels, is_attention=is_attention)
    core = _core_attention(shape, key, machine, kernels, backward=False) if is_attention else 0.0
    routed = 0.0 if is_attention else _expert_exchange(shape, key, machine)
    return Seconds(
        matmul=sum(one.forward(machine, fp8=key.fp8) for one in matmuls),
        attention=core,
        elementwise=machine.memory_seconds(moved),
        tensor=2 * _gather(shape, key, machine),
        context=_context_exposed(shape, key, machine, core) if is_attention else 0.0,
        expert=routed,
    )


def _backward(
    shape: ModelShape, key: LayerKey, machine: Machine, kernels: Kernels, matmuls: tuple[_Matmul, ...], *, is_attention: bool
) -> Seconds:
    moved = _moved_backward(shape, key, kernels, is_attention=is_attention)
    core = _core_attention(shape, key, machine, kernels, backward=True) if is_attention else 0.0
    return Seconds(
        matmul=sum(one.of_input(machine, fp8=key.fp8) + one.of_weight(machine, fp8=key.fp8) for one in matmuls),
        attention=core,
        elementwise=machine.memory_seconds(moved),
        tensor=_tensor_backward(shape, key, machine, kernels, matmuls),
        context=_context_exposed(shape, key, machine, core, times=2) if is_attention else 0.0,
        expert=0.0 if is_attention else _expert_exchange(shape, key, machine),
    )


def _gather(shape: ModelShape, key: LayerKey, machine: Machine) -> float:
    """Return the seconds in which the tensor ranks gather a micro-batch's hidden states, or reduce and scatter them."""
    return gather_seconds(machine, key.element_bytes * key.num_tokens * shape.hidden_size, group=key.tensor)


def _tensor_backward(shape: ModelShape, key: LayerKey, machine: Machine, kernels: Kernels, matmuls: tuple[_Matmul, ...]) -> float:
    """Return what attention or MLP waits for its tensor ranks in the backward pass.

    Gradients of the input are reduced beside the product for the weight's gradient. With sequence parallelism the output's gradient
    is gathered before everything, and the input once more, beside the product for its gradient (Korthikanti et al. 2022, section 4.2.2).
    """
    if key.tensor == 1:
        return 0.0
    one = _gather(shape, key, machine)
    gathering = next(matmul for matmul in matmuls if matmul.gathers)
    of_weight, of_input = gathering.of_weight(machine, fp8=key.fp8), gathering.of_input(machine, fp8=key.fp8)
    if not key.sequence_parallel:
        reduced = all_reduce_seconds(machine, key.element_bytes * key.num_tokens * shape.hidden_size, group=key.tensor)
        return max(0.0, reduced - of_weight) if kernels.overlap_tensor else reduced
    if not kernels.overlap_tensor:
        return 3 * one
    return one + max(0.0, one - of_weight) + max(0.0, one - of_input)


def _context_exposed(shape: ModelShape, key: LayerKey, machine: Machine, core: float, times: int = 1) -> float:
    """Return what attention waits for keys and values, which go round the context ranks beside it; backward their gradients too."""
    if key.context == 1:
        return 0.0
    sent = times * 2 * key.element_bytes * key.num_tokens * max(shape.num_query_groups // key.tensor, 1) * shape.head_dim
    leaves = key.context * key.tensor > machine.devices_per_node
    return max(0.0, (key.context - 1) * send_seconds(machine, sent, leaves_node=leaves) - core)


def _expert_exchange(shape: ModelShape, key: LayerKey, machine: Machine) -> float:
    """Return the seconds in which tokens go to the ranks of their experts and come back."""
    if not shape.num_experts:
        return 0.0
    tokens = key.num_tokens // (key.tensor if key.sequence_parallel else 1)
    sent = float(key.element_bytes * tokens * shape.experts_per_token * shape.hidden_size)
    between = all_to_all_seconds(machine, sent, group=key.expert, stride=key.tensor)
    return 2 * (between + gather_seconds(machine, sent * key.tensor, group=key.tensor))


def _core_attention(shape: ModelShape, key: LayerKey, machine: Machine, kernels: Kernels, *, backward: bool) -> float:
    """Return the seconds of the products of queries, keys and values, with all that happens to the scores between them.

    Unfused, every score is computed, and each step reads and writes them all: masked softmax, dropout and its mask, and the products.
    """
    seen = tokens_seen(shape, sequence_length=key.sequence_length, causal=True) / shape.num_layers
    heads = shape.num_attention_heads // key.tensor
    if kernels.flash_attention:
        return flash_seconds(machine, 4.0 * key.num_tokens * seen * heads * shape.head_dim, backward=backward)
    length, count = key.sequence_length, heads * key.micro_batch_size // key.context
    scores = matmul_seconds(machine, length, length, shape.head_dim, count=count)
    values = matmul_seconds(machine, length, shape.head_dim, length, count=count)
    products = (scores + values) * (2 if backward else 1)
    size = float(length) * length * count * key.element_bytes
    steps = 3 if backward else 2  # softmax reads and writes; its gradient reads two
    steps_of_dropout = (2.5 if kernels.dropout else 0.0) if key.element_bytes == 2 else 2.25 * kernels.dropout
    return products + machine.memory_seconds(size * (steps + steps_of_dropout))


def _moved_forward(shape: ModelShape, key: LayerKey, kernels: Kernels, *, is_attention: bool) -> float:
    """Count the bytes that attention or MLP reads and writes outside its products, forward.

    Norm: its input and output. Residual: output, input and sum, and a mask of one byte with dropout. Positions turn queries and keys
    in place. The activation reads the middle (twice as wide when gated) and writes it.
    """
    tokens, hidden, width = key.num_tokens, shape.hidden_size, key.element_bytes
    held = tokens // (key.tensor if key.sequence_parallel else 1)
    moved = held * hidden * (2 * width + 3 * width + (1 if kernels.dropout else 0))
    if shape.traits.gemma:
        moved += held * hidden * 2 * width
    if is_attention:
        turned = (shape.num_attention_heads + shape.num_query_groups) * shape.head_dim // key.tensor
        moved += 2 * width * tokens * turned * ((shape.traits.positions != "learned") + shape.traits.qk_norm)
    else:
        moved += _mlp_middle_moved(shape, key, 3 if shape.traits.gated else 2)
    return float(moved + _cast_moved(shape, key, is_attention=is_attention))


def _moved_backward(shape: ModelShape, key: LayerKey, kernels: Kernels, *, is_attention: bool) -> float:
    """Count the bytes that attention or MLP reads and writes outside its products, backward.

    Norm: input, gradient and result. Residual: the gradient is read and written, masked with dropout, and added to the other branch's
    (three more). Biases read the gradients that they sum. The activation reads input and gradient and writes a gradient.
    """
    tokens, hidden, width = key.num_tokens, shape.hidden_size, key.element_bytes
    held = tokens // (key.tensor if key.sequence_parallel else 1)
    moved = held * hidden * (3 * width + 3 * width + ((2 * width + 1) if kernels.dropout else 0))
    if shape.traits.gemma:
        moved += held * hidden * 3 * width
    if shape.traits.bias:
        moved += width * tokens * (hidden + (0 if is_attention else shape.ffn_hidden_size // key.tensor))
    if is_attention:
        turned = (shape.num_attention_heads + shape.num_query_groups) * shape.head_dim // key.tensor
        moved += 2 * width * tokens * turned * ((shape.traits.positions != "learned") + shape.traits.qk_norm)
    else:
        moved += _mlp_middle_moved(shape, key, 5 if shape.traits.gated else 3)
    return float(moved + 2 * _cast_moved(shape, key, is_attention=is_attention))


def _mlp_middle_moved(shape: ModelShape, key: LayerKey, steps: int) -> int:
    """Count `steps` readings or writings of the middle; tokens of experts are also sorted by expert and back, both ways."""
    copies = max(shape.experts_per_token, 1)
    moved = steps * key.element_bytes * key.num_tokens * copies * shape.ffn_hidden_size // key.tensor
    if shape.num_experts:
        held = key.num_tokens // (key.tensor if key.sequence_parallel else 1)
        moved += 8 * key.element_bytes * held * copies * shape.hidden_size
    return moved


def _cast_moved(shape: ModelShape, key: LayerKey, *, is_attention: bool) -> int:
    """Count what FP8 adds: the input of each product is read and written twice at one byte, straight and transposed."""
    if not key.fp8:
        return 0
    copies = 1 if is_attention else max(shape.experts_per_token, 1)
    middle = shape.num_attention_heads * shape.head_dim if is_attention else shape.ffn_hidden_size
    return 4 * key.num_tokens * copies * (shape.hidden_size + middle // key.tensor)
