"""The table of names, checked against a layout written out by hand."""

from __future__ import annotations

import pytest
import torch

from megatron_cpt.model.names import LAYER_RULES, expected_shapes, fuse_qkv, rules_for_chunk, split_qkv
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


def test_every_tensor_of_a_layer_is_made_by_exactly_one_rule() -> None:
    made = [name for rule in LAYER_RULES for name in rule.hf]
    shapes = expected_shapes(shape_of(num_heads=4, num_groups=2, head_dim=2), num_rows=10)
    in_layer = [name.removeprefix("model.layers.0.") for name in shapes]
    assert sorted(made) == sorted(name for name in in_layer if not name.startswith(("model.", "lm_head")))


@pytest.mark.parametrize("tied", [True, False])
def test_two_pipeline_ranks_cover_the_model_once(tied: bool) -> None:
    shape = shape_of(num_heads=4, num_groups=2, head_dim=2, tied=tied)
    first = rules_for_chunk(layer_ids=[0, 1], has_embedding=True, has_output=False, tied=tied)
    last = rules_for_chunk(layer_ids=[2], has_embedding=False, has_output=True, tied=tied)
    names = [name for chunk in (first, last) for _, _, hf_names in chunk for name in hf_names]
    expected = list(expected_shapes(shape, num_rows=10))
    if tied:  # the last rank computes logits with its own copy of the embedding
        expected.append("model.embed_tokens.weight")
    assert sorted(names) == sorted(expected)
