"""The table of names, checked against a layout written out by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from megatron_cpt.model.names import DERIVED_SUFFIXES, TABLES, expected_shapes, fuse_qkv, rules_for_chunk, split_qkv
from megatron_cpt.plan.model_shape import ModelShape


def shape_of(*, num_heads: int, num_groups: int, head_dim: int, tied: bool = True) -> ModelShape:
    return ModelShape(
        hidden_size=8, num_layers=3, num_attention_heads=num_heads, num_query_groups=num_groups, head_dim=head_dim, ffn_hidden_size=12,
        num_base_ids=10, max_position=16, norm_epsilon=1e-5, rotary_base=1e4, tied_embeddings=tied,
    )  # fmt: skip


def labelled(prefix: int, num_rows: int) -> torch.Tensor:
    """Return rows that each carry their own number: 100 * prefix + row."""
    return (100 * prefix + torch.arange(num_rows, dtype=torch.float32))[:, None].expand(-1, 8)


def test_rows_of_two_groups_with_two_heads_each_lie_as_core_wants_them() -> None:
    shape = shape_of(num_heads=4, num_groups=2, head_dim=2)
    fused = fuse_qkv([labelled(1, 8), labelled(2, 4), labelled(3, 4)], shape)
    group_0 = [100, 101, 102, 103, 200, 201, 300, 301]
    group_1 = [104, 105, 106, 107, 202, 203, 302, 303]
    assert fused[:, 0].tolist() == group_0 + group_1


@pytest.mark.parametrize(("num_heads", "num_groups"), [(4, 4), (4, 2), (4, 1), (9, 3)])
def test_split_undoes_fuse(num_heads: int, num_groups: int) -> None:
    shape = shape_of(num_heads=num_heads, num_groups=num_groups, head_dim=2)
    parts = [torch.randn(rows * 2, 8) for rows in (num_heads, num_groups, num_groups)]
    for before, after in zip(parts, split_qkv(fuse_qkv(parts, shape), shape), strict=True):
        assert torch.equal(before, after)


def test_the_tensors_of_a_llama_are_these() -> None:
    shapes = expected_shapes(shape_of(num_heads=4, num_groups=2, head_dim=3, tied=False), num_rows=10)
    assert {name: size for name, size in shapes.items() if "layers.0" in name or "layers" not in name} == {
        "model.embed_tokens.weight": (10, 8),
        "model.layers.0.input_layernorm.weight": (8,),
        "model.layers.0.self_attn.q_proj.weight": (12, 8),
        "model.layers.0.self_attn.k_proj.weight": (6, 8),
        "model.layers.0.self_attn.v_proj.weight": (6, 8),
        "model.layers.0.self_attn.o_proj.weight": (8, 12),
        "model.layers.0.post_attention_layernorm.weight": (8,),
        "model.layers.0.mlp.gate_proj.weight": (12, 8),
        "model.layers.0.mlp.up_proj.weight": (12, 8),
        "model.layers.0.mlp.down_proj.weight": (8, 12),
        "model.norm.weight": (8,),
        "lm_head.weight": (10, 8),
    }


@pytest.mark.parametrize("family", TABLES)
def test_no_tensor_that_counts_is_taken_for_one_that_follows_from_the_config(family: str) -> None:
    shape = dataclasses.replace(shape_of(num_heads=4, num_groups=4, head_dim=2), family=family, num_experts=TABLES[family].experts != ())
    assert not [name for name in expected_shapes(shape, num_rows=10) if name.endswith(DERIVED_SUFFIXES)]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("stages", [[[0, 1], [2]], [[0], [1], [2]]])
def test_pipeline_ranks_cover_the_model_once(tied: bool, stages: list[list[int]]) -> None:
    shape = shape_of(num_heads=4, num_groups=2, head_dim=2, tied=tied)
    chunks = [
        rules_for_chunk(shape, layer_ids=layers, expert_ids=range(0), has_embedding=layers[0] == 0, has_output=layers[-1] == 2)
        for layers in stages
    ]
    names = [name for chunk in chunks for _, _, hf_names in chunk for name in hf_names]
    expected = list(expected_shapes(shape, num_rows=10))
    if tied:  # the last rank computes logits with its own copy of the embedding
        expected.append("model.embed_tokens.weight")
    assert sorted(names) == sorted(expected)
