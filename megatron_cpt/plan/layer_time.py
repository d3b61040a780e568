"""Seconds of one transformer layer on one rank for one micro-batch, itemised: a list of its kernels and collectives, none fitted.

Letters of the formulas: T tokens of a rank's micro-batch, h hidden size, f the MLP's middle, a heads of d numbers, g key/value heads,
t tensor-parallel ranks, c context-parallel ranks, E experts of which a token is sent to k.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import lru_cache

from megatron_cpt.plan.communication import all_reduce_seconds, all_to_all_seconds, gather_seconds, send_seconds
from megatron_cpt.plan.elementwise import moved_backward, moved_forward
from megatron_cpt.plan.kernels import Kernels, flash_seconds, matmul_seconds
from megatron_cpt.plan.layer_key import LayerKey
from megatron_cpt.plan.machine import Machine
from megatron_cpt.plan.model_shape import ModelShape
from megatron_cpt.plan.throughput import head_columns, tokens_seen


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


@lru_cache(maxsize=64)
def dense_layer(shape: ModelShape) -> ModelShape:
    """Return a model of layers like the first ones of a mixture of experts that have one MLP in the experts' place."""
    return replace(
        shape,
        num_experts=0,
        experts_per_token=0,
        shared_ffn_hidden_size=0,
        num_dense_layers=0,
        ffn_hidden_size=shape.dense_ffn_hidden_size or shape.ffn_hidden_size,
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
    tokens, hidden, latent = key.num_tokens, shape.hidden_size, shape.latent
    if latent is None:
        heads = shape.num_attention_heads * shape.head_dim // key.tensor
        groups = max(shape.num_query_groups // key.tensor, 1) * shape.head_dim
        return (_Matmul(tokens, heads + 2 * groups, hidden, gathers=True), _Matmul(tokens, hidden, heads))
    heads = shape.num_attention_heads // key.tensor
    squeezed = latent.query_rank + latent.key_value_rank + latent.rotary_dim
    return (
        _Matmul(key.num_held_tokens, squeezed, hidden),
        _Matmul(tokens, heads * latent.query_dim, latent.query_rank or hidden, gathers=True),
        _Matmul(tokens, heads * (latent.plain_dim + latent.value_dim), latent.key_value_rank),
        _Matmul(tokens, hidden, heads * latent.value_dim),
    )


def _mlp_matmuls(shape: ModelShape, key: LayerKey) -> tuple[_Matmul, ...]:
    tokens, hidden, middle = key.num_tokens, shape.hidden_size, shape.ffn_hidden_size // key.tensor
    wide = 2 if shape.traits.gated else 1
    if not shape.num_experts:
        return (_Matmul(tokens, wide * middle, hidden, gathers=True), _Matmul(tokens, hidden, middle))
    local = shape.num_experts // key.expert
    rows = max(tokens * shape.experts_per_token // local, 1)  # as if the router spread the tokens evenly
    matmuls = (
        _Matmul(key.num_held_tokens, shape.num_experts, hidden),
        _Matmul(rows, wide * middle, hidden, count=local, gathers=True),
        _Matmul(rows, hidden, middle, count=local),
    )
    shared = shape.shared_ffn_hidden_size // key.tensor
    return matmuls + ((_Matmul(tokens, wide * shared, hidden), _Matmul(tokens, hidden, shared)) if shared else ())


def _forward(
    shape: ModelShape, key: LayerKey, machine: Machine, kernels: Kernels, matmuls: tuple[_Matmul, ...], *, is_attention: bool
) -> Seconds:
    moved = moved_forward(shape, key, kernels, is_attention=is_attention)
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
    moved = moved_backward(shape, key, kernels, is_attention=is_attention)
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
    tokens = key.num_held_tokens
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
        return flash_seconds(machine, 2.0 * key.num_tokens * seen * heads * head_columns(shape), backward=backward)
    length, count = key.sequence_length, heads * key.micro_batch_size // key.context
    of_key, of_value = (shape.latent.query_dim, shape.latent.value_dim) if shape.latent else (shape.head_dim, shape.head_dim)
    scores = matmul_seconds(machine, length, length, of_key, count=count)
    values = matmul_seconds(machine, length, of_value, length, count=count)
    products = (scores + values) * (2 if backward else 1)
    size = float(length) * length * count * key.element_bytes
    steps = 3 if backward else 2  # softmax reads and writes; its gradient reads two
    steps_of_dropout = (2.5 if kernels.dropout else 0.0) if key.element_bytes == 2 else 2.25 * kernels.dropout
    return products + machine.memory_seconds(size * (steps + steps_of_dropout))
