"""The one table between Hugging Face's Llama tensors and megatron-core's parameters, used in both directions.

Every rule first cuts each Hugging Face tensor into equal blocks, one for each tensor-parallel rank, then fuses the
blocks of this rank. Query heads, query groups and MLP columns are contiguous in Hugging Face's layout, so this order is
exact. Letters: H hidden columns, D head columns, G query groups of this rank, R query heads per group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from megatron_cpt.plan.model_shape import ModelShape

EMBEDDING = "model.embed_tokens.weight"
OUTPUT = "lm_head.weight"
# Tensors that old Hugging Face folders carry and that follow from the config.
DERIVED_SUFFIX = ".self_attn.rotary_emb.inv_freq"

Fuse = Callable[[list[torch.Tensor], ModelShape], torch.Tensor]
Split = Callable[[torch.Tensor, ModelShape], list[torch.Tensor]]


@dataclass(frozen=True)
class Rule:
    """One core parameter and the Hugging Face tensors that it is made of.

    Attributes:
        core: parameter name below a layer or the model, first in megatron's own layers, then in Transformer Engine's.
        hf: names in the order that `fuse` takes.
        cut_dim: dimension that tensor parallelism cuts, None for a parameter that every rank holds whole.
    """

    core: tuple[str, ...]
    hf: tuple[str, ...]
    cut_dim: int | None
    fuse: Fuse
    split: Split


def fuse_qkv(parts: list[torch.Tensor], shape: ModelShape) -> torch.Tensor:
    """Return the rows of q, k, v as core orders them: for each query group its R*D query rows, D key rows, D value rows."""
    query, key, value = parts
    num_groups = key.shape[0] // shape.head_dim
    grouped = [part.reshape(num_groups, -1, part.shape[-1]) for part in (query, key, value)]
    return torch.cat(grouped, dim=1).reshape(-1, query.shape[-1])


def split_qkv(fused: torch.Tensor, shape: ModelShape) -> list[torch.Tensor]:
    """Undo `fuse_qkv`."""
    query_rows = shape.num_attention_heads // shape.num_query_groups * shape.head_dim
    grouped = fused.reshape(-1, query_rows + 2 * shape.head_dim, fused.shape[-1])
    return [part.reshape(-1, fused.shape[-1]) for part in torch.split(grouped, [query_rows, shape.head_dim, shape.head_dim], dim=1)]


def fuse_gate_up(parts: list[torch.Tensor], _: ModelShape) -> torch.Tensor:
    return torch.cat(parts, dim=0)


def split_gate_up(fused: torch.Tensor, _: ModelShape) -> list[torch.Tensor]:
    return list(fused.chunk(2, dim=0))


def keep(parts: list[torch.Tensor], _: ModelShape) -> torch.Tensor:
    (only,) = parts
    return only


def keep_one(tensor: torch.Tensor, _: ModelShape) -> list[torch.Tensor]:
    return [tensor]


QKV = ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight")
# fmt: off
LAYER_RULES = (
    Rule(("input_layernorm.weight", "self_attention.linear_qkv.layer_norm_weight"), ("input_layernorm.weight",), None, keep, keep_one),
    Rule(("self_attention.linear_qkv.weight",), QKV, 0, fuse_qkv, split_qkv),
    Rule(("self_attention.linear_proj.weight",), ("self_attn.o_proj.weight",), 1, keep, keep_one),
    Rule(("pre_mlp_layernorm.weight", "mlp.linear_fc1.layer_norm_weight"), ("post_attention_layernorm.weight",), None, keep, keep_one),
    Rule(("mlp.linear_fc1.weight",), ("mlp.gate_proj.weight", "mlp.up_proj.weight"), 0, fuse_gate_up, split_gate_up),
    Rule(("mlp.linear_fc2.weight",), ("mlp.down_proj.weight",), 1, keep, keep_one),
)
EMBEDDING_RULE = Rule(("embedding.word_embeddings.weight",), (EMBEDDING,), 0, keep, keep_one)
OUTPUT_RULE = Rule(("output_layer.weight",), (OUTPUT,), 0, keep, keep_one)
NORM_RULE = Rule(("decoder.final_layernorm.weight",), ("model.norm.weight",), None, keep, keep_one)
# fmt: on


def hf_layer_name(layer_id: int, name: str) -> str:
    return f"model.layers.{layer_id}.{name}"


def expected_shapes(shape: ModelShape, *, num_rows: int) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor of a Hugging Face Llama, `num_rows` rows in its embedding."""
    hidden, ffn = shape.hidden_size, shape.ffn_hidden_size
    query, key = shape.num_attention_heads * shape.head_dim, shape.num_query_groups * shape.head_dim
    in_layer = {
        "input_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (query, hidden),
        "self_attn.k_proj.weight": (key, hidden),
        "self_attn.v_proj.weight": (key, hidden),
        "self_attn.o_proj.weight": (hidden, query),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (ffn, hidden),
        "mlp.up_proj.weight": (ffn, hidden),
        "mlp.down_proj.weight": (hidden, ffn),
    }
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (num_rows, hidden)}
    for layer_id in range(shape.num_layers):
        shapes |= {hf_layer_name(layer_id, name): size for name, size in in_layer.items()}
    shapes["model.norm.weight"] = (hidden,)
    if not shape.tied_embeddings:
        shapes[OUTPUT] = (num_rows, hidden)
    return shapes


def rules_for_chunk(
    *, layer_ids: list[int], has_embedding: bool, has_output: bool, tied: bool
) -> Iterator[tuple[Rule, tuple[str, ...], tuple[str, ...]]]:
    """Yield (rule, possible core names, Hugging Face names) for every parameter of one pipeline rank's chunk.

    Args:
        layer_ids: global number of each layer of the chunk, counted from 0.
        has_embedding: the chunk begins the model.
        has_output: the chunk ends the model; when it does not also begin it, tied rows appear a second time in it.
    """
    if has_embedding:
        yield EMBEDDING_RULE, EMBEDDING_RULE.core, EMBEDDING_RULE.hf
    for local_id, layer_id in enumerate(layer_ids):
        for rule in LAYER_RULES:
            core = tuple(f"decoder.layers.{local_id}.{name}" for name in rule.core)
            yield rule, core, tuple(hf_layer_name(layer_id, name) for name in rule.hf)
    if has_output:
        yield NORM_RULE, NORM_RULE.core, NORM_RULE.hf
        if not tied:
            yield OUTPUT_RULE, OUTPUT_RULE.core, OUTPUT_RULE.hf
        elif not has_embedding:
            yield OUTPUT_RULE, OUTPUT_RULE.core, (EMBEDDING,)
