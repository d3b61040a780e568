"""The tables between Hugging Face's tensors and megatron-core's parameters, one a family, each used in both directions.

Every rule first cuts each Hugging Face tensor into equal blocks, one for each tensor-parallel rank, then fuses the
blocks of this rank. Query heads, query groups and MLP columns are contiguous in Hugging Face's layout, so this order is
exact. Letters: V rows of the vocabulary, P positions, H hidden columns, D head columns, Q all query columns, K all key columns,
F columns of the MLP's middle, E experts, T = Q + 2K; in the functions G query groups of this rank, R query heads per group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from megatron_cpt.plan.model_shape import ModelShape

EMBEDDING = "model.embed_tokens.weight"
OUTPUT = "lm_head.weight"
# Tensors that old Hugging Face folders carry and that follow from the config: rotary frequencies, and GPT-2's causal masks.
DERIVED_SUFFIXES = (".self_attn.rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")

Fuse = Callable[[list[torch.Tensor], ModelShape], torch.Tensor]
Split = Callable[[torch.Tensor, ModelShape], list[torch.Tensor]]


@dataclass(frozen=True)
class Tensor:
    """A Hugging Face tensor: its name below a layer or the model, and its shape in this module's letters."""

    name: str
    shape: str


@dataclass(frozen=True)
class Rule:
    """One core parameter and the Hugging Face tensors that it is made of.

    Attributes:
        core: parameter name below a layer or the model, first in megatron's own layers, then in Transformer Engine's.
        hf: tensors in the order that `fuse` takes.
        cut_dim: dimension that tensor parallelism cuts, None for a parameter that every rank holds whole.
        stacked: how many matrices lie one behind the other in `cut_dim` of the tensor; each is cut by itself.
    """

    core: tuple[str, ...]
    hf: tuple[Tensor, ...]
    cut_dim: int | None
    fuse: Fuse
    split: Split
    stacked: int = 1


@dataclass(frozen=True)
class Table:
    """The rules of one family. In names `{}` is the layer's number; in `experts`, `{expert}` is the expert's."""

    embedding: tuple[Rule, ...]
    layer_prefix: str
    layer: tuple[Rule, ...]
    experts: tuple[Rule, ...]
    final: tuple[Rule, ...]


def fuse_qkv(parts: list[torch.Tensor], shape: ModelShape) -> torch.Tensor:
    """Return the rows of q, k, v as core orders them: for each query group its R*D query rows, D key rows, D value rows."""
    query, key, value = parts
    num_groups = key.shape[0] // shape.head_dim
    grouped = [part.reshape(num_groups, -1, *part.shape[1:]) for part in (query, key, value)]
    return torch.cat(grouped, dim=1).flatten(0, 1)


def split_qkv(fused: torch.Tensor, shape: ModelShape) -> list[torch.Tensor]:
    """Undo `fuse_qkv`."""
    query_rows = shape.num_attention_heads // shape.num_query_groups * shape.head_dim
    grouped = fused.reshape(-1, query_rows + 2 * shape.head_dim, *fused.shape[1:])
    return [part.flatten(0, 1) for part in torch.split(grouped, [query_rows, shape.head_dim, shape.head_dim], dim=1)]


def fuse_columns_qkv(parts: list[torch.Tensor], shape: ModelShape) -> torch.Tensor:
    """Return the rows of core for the columns [q | k | v] of one matrix that is multiplied from the right, or for its bias."""
    (only,) = parts
    return fuse_qkv(list(only.T.chunk(3) if only.dim() > 1 else only.chunk(3)), shape)


def split_columns_qkv(fused: torch.Tensor, shape: ModelShape) -> list[torch.Tensor]:
    """Undo `fuse_columns_qkv`."""
    rows = torch.cat(split_qkv(fused, shape))
    return [rows.T if rows.dim() > 1 else rows]


def fuse_gate_up(parts: list[torch.Tensor], _: ModelShape) -> torch.Tensor:
    return torch.cat(parts, dim=0)


def split_gate_up(fused: torch.Tensor, _: ModelShape) -> list[torch.Tensor]:
    return list(fused.chunk(2, dim=0))


def keep(parts: list[torch.Tensor], _: ModelShape) -> torch.Tensor:
    (only,) = parts
    return only


def keep_one(tensor: torch.Tensor, _: ModelShape) -> list[torch.Tensor]:
    return [tensor]


def turn(parts: list[torch.Tensor], _: ModelShape) -> torch.Tensor:
    (only,) = parts
    return only.T


def turn_one(tensor: torch.Tensor, _: ModelShape) -> list[torch.Tensor]:
    return [tensor.T]


def _same(core: str | tuple[str, ...], hf: str, shape: str, *, cut_dim: int | None = None) -> Rule:
    return Rule((core,) if isinstance(core, str) else core, (Tensor(hf, shape),), cut_dim, keep, keep_one)


def _turned(core: str, hf: str, shape: str, *, cut_dim: int) -> Rule:
    return Rule((core,), (Tensor(hf, shape),), cut_dim, turn, turn_one)


def _gated(core: str | tuple[str, ...], gate: str, up: str) -> Rule:
    return Rule((core,) if isinstance(core, str) else core, (Tensor(gate, "FH"), Tensor(up, "FH")), 0, fuse_gate_up, split_gate_up)


def _experts(prefix: str, *, gate: str, up: str, down: str) -> tuple[Rule, ...]:
    """Return the rules of one expert; core's experts are modules of their own, Transformer Engine's are numbered weights of one."""
    first = ("mlp.experts.local_experts.{expert}.linear_fc1.weight", "mlp.experts.linear_fc1.weight{expert}")
    second = ("mlp.experts.local_experts.{expert}.linear_fc2.weight", "mlp.experts.linear_fc2.weight{expert}")
    return (_gated(first, f"{prefix}.{gate}", f"{prefix}.{up}"), _same(second, f"{prefix}.{down}", "HF", cut_dim=1))


# fmt: off
_INPUT_NORM = ("input_layernorm.weight", "self_attention.linear_qkv.layer_norm_weight")
_MLP_NORM = ("pre_mlp_layernorm.weight", "mlp.linear_fc1.layer_norm_weight")
_ATTENTION = (
    _same(_INPUT_NORM, "input_layernorm.weight", "H"),
    Rule(("self_attention.linear_qkv.weight",),
         (Tensor("self_attn.q_proj.weight", "QH"), Tensor("self_attn.k_proj.weight", "KH"), Tensor("self_attn.v_proj.weight", "KH")),
         0, fuse_qkv, split_qkv),
    _same("self_attention.linear_proj.weight", "self_attn.o_proj.weight", "HQ", cut_dim=1),
)
_QKV_BIAS = (
    Rule(("self_attention.linear_qkv.bias",),
         (Tensor("self_attn.q_proj.bias", "Q"), Tensor("self_attn.k_proj.bias", "K"), Tensor("self_attn.v_proj.bias", "K")),
         0, fuse_qkv, split_qkv),
)
_QK_NORM = (
    _same("self_attention.q_layernorm.weight", "self_attn.q_norm.weight", "D"),
    _same("self_attention.k_layernorm.weight", "self_attn.k_norm.weight", "D"),
)
_GATED_MLP = (
    _same(_MLP_NORM, "post_attention_layernorm.weight", "H"),
    _gated("mlp.linear_fc1.weight", "mlp.gate_proj.weight", "mlp.up_proj.weight"),
    _same("mlp.linear_fc2.weight", "mlp.down_proj.weight", "HF", cut_dim=1),
)
_EXPERTS_NORM = _same("pre_mlp_layernorm.weight", "post_attention_layernorm.weight", "H")
_ROWS = (_same("embedding.word_embeddings.weight", EMBEDDING, "VH", cut_dim=0),)
_NORM = (_same("decoder.final_layernorm.weight", "model.norm.weight", "H"),)
OUTPUT_RULE = _same("output_layer.weight", OUTPUT, "VH", cut_dim=0)


def _llama_like(layer: tuple[Rule, ...], experts: tuple[Rule, ...] = ()) -> Table:
    return Table(_ROWS, "model.layers.{}.", layer, experts, _NORM)


TABLES = {
    "llama": _llama_like(_ATTENTION + _GATED_MLP),
    "mistral": _llama_like(_ATTENTION + _GATED_MLP),
    "qwen2": _llama_like(_ATTENTION + _QKV_BIAS + _GATED_MLP),
    "qwen3": _llama_like(_ATTENTION + _QK_NORM + _GATED_MLP),
    "qwen3_moe": _llama_like(
        (*_ATTENTION, *_QK_NORM, _EXPERTS_NORM, _same("mlp.router.weight", "mlp.gate.weight", "EH")),
        _experts("mlp.experts.{expert}", gate="gate_proj.weight", up="up_proj.weight", down="down_proj.weight"),
    ),
    "mixtral": _llama_like(
        (*_ATTENTION, _EXPERTS_NORM, _same("mlp.router.weight", "block_sparse_moe.gate.weight", "EH")),
        _experts("block_sparse_moe.experts.{expert}", gate="w1.weight", up="w3.weight", down="w2.weight"),
    ),
    "gemma3": _llama_like((
        *_ATTENTION, *_QK_NORM,
        _same("self_attention.linear_proj.post_layernorm.weight", "post_attention_layernorm.weight", "H"),
        _same(_MLP_NORM, "pre_feedforward_layernorm.weight", "H"),
        *_GATED_MLP[1:],
        _same("mlp.linear_fc2.post_layernorm.weight", "post_feedforward_layernorm.weight", "H"),
    )),
    # Every matrix of GPT-2 is stored for a multiplication from the right: (inputs, outputs).
    "gpt2": Table(
        (
            _same("embedding.word_embeddings.weight", "transformer.wte.weight", "VH", cut_dim=0),
            _same("embedding.position_embeddings.weight", "transformer.wpe.weight", "PH"),
        ),
        "transformer.h.{}.",
        (
            _same(_INPUT_NORM, "ln_1.weight", "H"),
            _same(("input_layernorm.bias", "self_attention.linear_qkv.layer_norm_bias"), "ln_1.bias", "H"),
            Rule(("self_attention.linear_qkv.weight",), (Tensor("attn.c_attn.weight", "HT"),), 1, fuse_columns_qkv, split_columns_qkv, 3),
            Rule(("self_attention.linear_qkv.bias",), (Tensor("attn.c_attn.bias", "T"),), 0, fuse_columns_qkv, split_columns_qkv, 3),
            _turned("self_attention.linear_proj.weight", "attn.c_proj.weight", "QH", cut_dim=0),
            _same("self_attention.linear_proj.bias", "attn.c_proj.bias", "H"),
            _same(_MLP_NORM, "ln_2.weight", "H"),
            _same(("pre_mlp_layernorm.bias", "mlp.linear_fc1.layer_norm_bias"), "ln_2.bias", "H"),
            _turned("mlp.linear_fc1.weight", "mlp.c_fc.weight", "HF", cut_dim=1),
            _same("mlp.linear_fc1.bias", "mlp.c_fc.bias", "F", cut_dim=0),
            _turned("mlp.linear_fc2.weight", "mlp.c_proj.weight", "FH", cut_dim=0),
            _same("mlp.linear_fc2.bias", "mlp.c_proj.bias", "H"),
        ),
        (),
        (
            _same("decoder.final_layernorm.weight", "transformer.ln_f.weight", "H"),
            _same("decoder.final_layernorm.bias", "transformer.ln_f.bias", "H"),
        ),
    ),
}
# fmt: on


def embedding_name(shape: ModelShape) -> str:
    """Return the name of the family's embedding rows."""
    return TABLES[shape.family].embedding[0].hf[0].name


def row_names(shape: ModelShape) -> tuple[str, ...]:
    """Return the names of the tensors with one row an id: the embedding, and the output matrix when it is not tied."""
    return (embedding_name(shape),) if shape.tied_embeddings else (embedding_name(shape), OUTPUT)


def _lengths(shape: ModelShape, *, num_rows: int) -> dict[str, int]:
    query, key = shape.num_attention_heads * shape.head_dim, shape.num_query_groups * shape.head_dim
    return {
        "V": num_rows, "P": shape.max_position, "H": shape.hidden_size, "D": shape.head_dim, "Q": query, "K": key, "T": query + 2 * key,
        "F": shape.ffn_hidden_size, "E": shape.num_experts,
    }  # fmt: skip


def expected_shapes(shape: ModelShape, *, num_rows: int) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor of the Hugging Face model, `num_rows` rows in its embedding."""
    lengths = _lengths(shape, num_rows=num_rows)
    found: dict[str, tuple[int, ...]] = {}
    for rule, _, names in rules_for_chunk(
        shape, layer_ids=range(shape.num_layers), expert_ids=range(shape.num_experts), has_embedding=True, has_output=True
    ):
        for name, tensor in zip(names, rule.hf, strict=True):
            assert name not in found, f"two rules for {name}"
            found[name] = tuple(lengths[letter] for letter in tensor.shape)
    return found


def rules_for_chunk(
    shape: ModelShape, *, layer_ids: range | list[int], expert_ids: range, has_embedding: bool, has_output: bool
) -> Iterator[tuple[Rule, tuple[str, ...], tuple[str, ...]]]:
    """Yield (rule, possible core names, Hugging Face names) for every parameter of one pipeline rank's chunk.

    Args:
        layer_ids: global number of each layer of the chunk, counted from 0.
        expert_ids: global number of each expert that this rank holds.
        has_embedding: the chunk begins the model.
        has_output: the chunk ends the model; when it does not also begin it, tied rows appear a second time in it.
    """
    table = TABLES[shape.family]
    if has_embedding:
        for rule in table.embedding:
            yield rule, rule.core, tuple(tensor.name for tensor in rule.hf)
    for local_id, layer_id in enumerate(layer_ids):
        core_prefix, prefix = f"decoder.layers.{local_id}.", table.layer_prefix.format(layer_id)
        for rule in table.layer:
            yield rule, tuple(core_prefix + name for name in rule.core), tuple(prefix + tensor.name for tensor in rule.hf)
        for local_expert, expert in enumerate(expert_ids):
            for rule in table.experts:
                core = tuple(core_prefix + name.format(expert=local_expert) for name in rule.core)
                yield rule, core, tuple(prefix + tensor.name.format(expert=expert) for tensor in rule.hf)
    if has_output:
        for rule in table.final:
            yield rule, rule.core, tuple(tensor.name for tensor in rule.hf)
        if not shape.tied_embeddings:
            yield OUTPUT_RULE, OUTPUT_RULE.core, (OUTPUT,)
        elif not has_embedding:
            yield OUTPUT_RULE, OUTPUT_RULE.core, (embedding_name(shape),)
