"""What one layer keeps of one token until its backward pass: a list of tensors with their sizes, and which operations decide it.

The list is Korthikanti et al. 2022's (arXiv 2205.05198, section 4.1), for grouped queries, gated MLPs, experts and latent attention
too, after the functions that megatron-core calls: each entry is a tensor that autograd holds. Under the paper's own operations (GPT-3's
layer with dropout and a score matrix) the sum is the paper's, 34 + 5 a s / h bytes a token and hidden size.
Left out: statistics of norms and of flash attention's softmax (4 bytes a token, a norm or a head), below 0.2 % of a layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from megatron_cpt.plan.model_shape import ModelShape

# How ranks share a tensor: "sequence" is whole on each tensor-parallel rank unless sequence_parallel cuts it by tokens; "tensor" is
# always cut; "expert" are the copies of tokens that experts see, whole on each rank that shares an expert; "expert_tensor" is their middle.
Share = Literal["sequence", "tensor", "expert", "expert_tensor"]


@dataclass(frozen=True)
class Operations:
    """The operations that layers and loss are made of, as far as they decide what is kept.

    Attributes:
        flash_attention: no score matrix is kept.
        fused_activation: the MLP's activation is one operation that keeps its input alone.
        fused_norm: a norm keeps its input in the layers' dtype; torch's RMS norm keeps an fp32 copy, and the normalised value in fp32.
        joint_qkv: values are kept within the joint output of the query/key/value matrix, all of it; else each is a tensor of its own.
        one_rotation: angles are computed once for all layers, and not for queries and keys of each.
        hidden_dropout: the masks behind embedding, attention and MLP are kept, one byte an element.
        attention_dropout: so are the score matrix's mask, and the matrix after it.
        loss_bytes: what the loss keeps of each logit beside the logit itself: its softmax in fp32, in place where the logits are fp32.
        fp8_inputs: matrices of layers keep their input in FP8, which is a copy where something else keeps it too.
        fused_gradient: a weight's gradient is added to the fp32 buffer within the matrix product, without a tensor of its own.
    """

    flash_attention: bool = True
    fused_activation: bool = True
    fused_norm: bool = True
    joint_qkv: bool = False
    one_rotation: bool = True
    hidden_dropout: bool = False
    attention_dropout: bool = False
    loss_bytes: int = 4
    fp8_inputs: bool = False
    fused_gradient: bool = False

    def input_bytes(self, element_bytes: int) -> int:
        """Return the bytes of a number of a matrix's input that nothing else keeps."""
        return 1 if self.fp8_inputs else element_bytes


TRANSFORMER_ENGINE = Operations()
# megatron's own linear layers with torch's norms and attention: the CPU backend, and CUDA without Transformer Engine
TORCH = Operations(fused_activation=False, fused_norm=False, joint_qkv=True, one_rotation=False, fused_gradient=True)


class Kept(NamedTuple):
    """A tensor that is kept: elements of one token over all tensor-parallel ranks, bytes of one, and the modules that recompute it.

    `freed_by` are names of megatron-core's `recompute_modules`.
    """

    name: str
    elements: float
    bytes: int
    share: Share
    freed_by: frozenset[str] = frozenset()


def _by(*modules: str) -> frozenset[str]:
    return frozenset(modules)


def _norm(what: str, shape: ModelShape, operations: Operations, element_bytes: int, freed_by: frozenset[str] = frozenset()) -> list[Kept]:
    """Return what a norm over the hidden size keeps: its input. Its output is the next matrix's input, and counted there."""
    size = shape.hidden_size
    if operations.fused_norm or shape.traits.norm == "layer":
        return [Kept(f"input of the norm before {what}", size, element_bytes, "sequence", freed_by)]
    return [
        Kept(f"fp32 input of the norm before {what}", size, 4, "sequence", freed_by),
        Kept(f"fp32 normalised value before {what}", size, 4, "sequence", freed_by),
    ]


def _usual_attention(shape: ModelShape, operations: Operations, element_bytes: int, *, gathered: int, micro_batch_size: int) -> list[Kept]:
    """Return queries, keys and values, as the matrix, a norm and a rotation leave them."""
    queries, keys = shape.num_attention_heads * shape.head_dim, shape.num_query_groups * shape.head_dim
    rotary = shape.traits.positions == "rotary"
    kept = []
    if not operations.joint_qkv:
        kept += [Kept("queries", queries, element_bytes, "tensor"), Kept("keys and values", 2 * keys * gathered, element_bytes, "tensor")]
    else:
        kept += [Kept("queries, keys and values as the matrix leaves them", queries + 2 * keys, element_bytes, "tensor")]
        if rotary:
            kept += [Kept("queries after rotation", queries, element_bytes, "tensor")]
            kept += [Kept("keys after rotation", keys, element_bytes, "tensor")]
        if gathered > 1:
            kept += [Kept("keys and values of the other ranks", 2 * keys * (gathered - 1), element_bytes, "tensor")]
    if rotary and not operations.one_rotation:  # cosines and sines for queries and for keys, one row for all sequences of a micro-batch
        kept += [Kept("angles of the rotation", 4 * shape.head_dim / micro_batch_size, element_bytes, "sequence")]
    if shape.traits.qk_norm and operations.fused_norm:
        kept += [Kept("inputs of the norms of queries and keys", queries + keys, element_bytes, "tensor")]
    elif shape.traits.qk_norm:  # in fp32 the keys' input lies within the joint tensor
        kept += [Kept("fp32 input and normalised value of queries", 2 * queries, 4, "tensor")]
        kept += [Kept("fp32 normalised value of keys, and input where it is a copy", keys * (2 if element_bytes < 4 else 1), 4, "tensor")]
    return kept


def _latent_attention(shape: ModelShape, element_bytes: int) -> list[Kept]:
    """Return the squeezed vectors (before and after their norms), and queries, keys and values as megatron-core joins them again."""
    latent, heads = shape.latent, shape.num_attention_heads
    assert latent is not None
    squeezed = latent.query_rank + latent.key_value_rank
    up = _by("mla_up_proj")
    return [
        Kept("squeezed queries, keys and values", squeezed, element_bytes, "sequence"),
        Kept("the same after their norms", squeezed, element_bytes, "sequence", up),
        Kept("queries and keys", 2 * heads * latent.query_dim, element_bytes, "tensor", up),
        Kept("values", heads * latent.value_dim, element_bytes, "tensor", up),
    ]


def attention_tensors(
    shape: ModelShape, operations: Operations, *, element_bytes: int, num_keys: int, gathered: int, micro_batch_size: int
) -> list[Kept]:
    """List what attention keeps, its norm included; a query meets `num_keys` keys."""
    heads = shape.num_attention_heads
    out = heads * (shape.latent.value_dim if shape.latent else shape.head_dim)
    kept = _norm("attention", shape, operations, element_bytes)
    kept += [
        Kept("input of the query/key/value matrix", shape.hidden_size, operations.input_bytes(element_bytes), "sequence", _by("layernorm"))
    ]
    if shape.latent is None:
        kept += _usual_attention(shape, operations, element_bytes, gathered=gathered, micro_batch_size=micro_batch_size)
    else:
        kept += _latent_attention(shape, element_bytes)
    if not operations.flash_attention:
        scores, core = heads * num_keys, _by("core_attn")
        kept += [Kept("softmax of the scores", scores, element_bytes, "tensor", core)]
        if operations.attention_dropout:
            kept += [Kept("mask of the scores", scores, 1, "tensor", core), Kept("scores after it", scores, element_bytes, "tensor", core)]
    if shape.window and operations.joint_qkv:  # torch's attention takes the window as a matrix of numbers, one for all sequences and heads
        kept += [Kept("the window as a matrix", num_keys / micro_batch_size, element_bytes, "sequence")]
    kept += [Kept("input of the output matrix", out, element_bytes, "tensor")]
    if operations.fp8_inputs:  # flash attention keeps its output in the layers' dtype too
        kept += [Kept("FP8 copy of the input of the output matrix", out, 1, "tensor")]
    return kept + _behind("attention", shape, operations, element_bytes)


def _behind(what: str, shape: ModelShape, operations: Operations, element_bytes: int) -> list[Kept]:
    kept = []
    if shape.traits.gemma:
        before = _norm(f"the sum behind {what}", shape, operations, element_bytes)
        kept += before
    if operations.hidden_dropout:
        kept += [Kept(f"dropout mask behind {what}", shape.hidden_size, 1, "sequence")]
    return kept


def _middle(
    shape: ModelShape, operations: Operations, ffn: int, element_bytes: int, *, share: Share, by: str, scaled: bool = False
) -> list[Kept]:
    """Return the middle of one MLP: what its first matrix gives, what the activation keeps beside it, and the second one's input.

    Unfused, SiLU's value and the shifted other half are tensors of their own; `scaled` ones are multiplied with the router's weight.
    """
    free = _by(by)
    kept = [Kept("output of the first matrix", (2 if shape.traits.gated else 1) * ffn, element_bytes, share, free)]
    if not operations.fused_activation and shape.traits.gated:
        kept += [Kept("activated gate, and the other half", 2 * ffn, element_bytes, share, free)]
    if not operations.fused_activation and scaled:
        kept += [Kept("product before the router's weight", ffn, element_bytes, share, free)]
    last = free | (_by("moe_act") if by == "moe" else frozenset())
    return [*kept, Kept("input of the second matrix", ffn, operations.input_bytes(element_bytes), share, last)]


def mlp_tensors(shape: ModelShape, operations: Operations, *, element_bytes: int, dense: bool = False) -> list[Kept]:
    """List what the MLP keeps, or the experts that a token is sent to, as if the router spread the tokens evenly."""
    has_experts = shape.num_experts > 0 and not dense
    kept = _norm("the MLP", shape, operations, element_bytes)
    kept += [Kept("input of the MLP", shape.hidden_size, operations.input_bytes(element_bytes), "sequence", _by("layernorm"))]
    if has_experts:
        copies, free = shape.experts_per_token, _by("moe")
        kept += [Kept("router's logits and weights", 2 * shape.num_experts, 4, "sequence", free)]
        kept += [
            Kept("copies of tokens, sorted by expert", copies * shape.hidden_size, operations.input_bytes(element_bytes), "expert", free)
        ]
        middle = _middle(shape, operations, shape.ffn_hidden_size, element_bytes, share="expert_tensor", by="moe", scaled=True)
        kept += [tensor._replace(elements=copies * tensor.elements) for tensor in middle]
        if shape.shared_ffn_hidden_size:
            shared = _middle(shape, operations, shape.shared_ffn_hidden_size, element_bytes, share="tensor", by="moe")
            kept += [tensor._replace(freed_by=_by("moe", "shared_experts")) for tensor in shared]
    else:
        ffn = shape.dense_ffn_hidden_size if dense and shape.num_experts else shape.ffn_hidden_size
        kept += _middle(shape, operations, ffn, element_bytes, share="tensor", by="mlp")
    return kept + _behind("the MLP", shape, operations, element_bytes)


def prediction_tensors(shape: ModelShape, operations: Operations, *, element_bytes: int) -> list[Kept]:
    """List what a layer of multi-token prediction keeps beside its layer: two norms' inputs, what they join to, and its last norm."""
    size = shape.hidden_size
    kept = _norm("joining", shape, operations, element_bytes) * 2
    kept += [Kept("embedding and hidden state side by side", 2 * size, element_bytes, "sequence")]
    return kept + head_tensors(shape, operations, element_bytes=element_bytes)


def head_tensors(shape: ModelShape, operations: Operations, *, element_bytes: int) -> list[Kept]:
    """List what the last norm and the output matrix keep."""
    return [
        *_norm("the output matrix", shape, operations, element_bytes),
        Kept("input of the output matrix", shape.hidden_size, element_bytes, "sequence"),
    ]


def bytes_per_token(kept: list[Kept], *, tensor: int, sequence_parallel: bool, expert_tensor: int) -> float:
    """Sum up tensors as one tensor-parallel rank holds them, for one of the tokens that the ranks share."""
    shares: dict[Share, float] = {
        "sequence": 1 / tensor if sequence_parallel else 1.0,
        "tensor": 1 / tensor,
        "expert": expert_tensor / tensor,
        "expert_tensor": 1 / tensor,
    }
    return sum(entry.elements * entry.bytes * shares[entry.share] for entry in kept)
