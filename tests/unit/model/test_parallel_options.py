"""What the options that need CUDA, or Transformer Engine, become in megatron-core's own configuration. Checked without either."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_cpt.backend import choose
from megatron_cpt.errors import ConfigError
from megatron_cpt.plan.model_shape import ModelShape
from megatron_cpt.record.vocab_layout import VocabLayout

BACKEND = choose("cpu")

from megatron_cpt.backend.cuda import fp8_problems  # noqa: E402
from megatron_cpt.model.build import build_chunks, check_layout, transformer_config  # noqa: E402
from megatron_cpt.model.parallel import single_rank_layout  # noqa: E402
from megatron_cpt.train.optimizer import ddp_config, set_overlap  # noqa: E402

ONE = single_rank_layout(64, dtype="bf16")
VOCAB = VocabLayout(100, 100, 128, 0, "")
SHAPE = ModelShape(
    hidden_size=64, num_layers=4, num_attention_heads=4, num_query_groups=2, head_dim=16, ffn_hidden_size=96, num_base_ids=100,
    max_position=64, norm_epsilon=1e-5, rotary_base=1e4, tied_embeddings=True,
)  # fmt: skip
FOUND = {"transformer_engine": "2.9", "apex": None, "flash_attn": None}


@pytest.mark.parametrize(("kind", "recipe"), [("hybrid", "delayed"), ("e4m3", "blockwise"), ("hybrid", "tensorwise"), ("e4m3", "mxfp8")])
def test_fp8_is_the_format_and_recipe_of_megatron_cores_configuration(kind: Any, recipe: Any) -> None:
    config = transformer_config(SHAPE, replace(ONE, fp8=kind, fp8_recipe=recipe), backend=BACKEND)
    assert (config.fp8, config.fp8_recipe, config.bf16) == (kind, recipe, True)
    assert not config.fp8_param  # weights stay bf16, and so does a checkpoint


def test_without_fp8_nothing_of_it_is_set() -> None:
    assert not transformer_config(SHAPE, ONE, backend=BACKEND).fp8


def test_fp8_needs_transformer_engine_where_the_ranks_run() -> None:
    layout = replace(ONE, fp8="hybrid")
    assert fp8_problems(FOUND, layout) == []
    assert fp8_problems({**FOUND, "transformer_engine": None}, ONE) == []
    (problem,) = fp8_problems({**FOUND, "transformer_engine": None}, layout)
    assert "parallel.fp8=hybrid: Transformer Engine is not installed here" in problem
    with pytest.raises(ConfigError, match=r"parallel.fp8=hybrid: no CPU kernel multiplies FP8 matrices"):
        build_chunks(SHAPE, VOCAB, layout, backend=BACKEND)


def test_ranks_that_share_a_sequence_send_keys_and_values_round_as_transformer_engine_names_it() -> None:
    config = transformer_config(SHAPE, replace(ONE, context=2), backend=BACKEND)
    assert (config.context_parallel_size, config.cp_comm_type) == (2, "p2p")
    config = transformer_config(SHAPE, ONE, backend=BACKEND)
    assert (config.context_parallel_size, config.cp_comm_type) == (1, None)


def test_a_plan_that_was_edited_by_hand_meets_the_check_of_the_sequence_on_the_ranks() -> None:
    check_layout(SHAPE, VOCAB, replace(ONE, context=2))
    with pytest.raises(ConfigError, match=r"sequence_length=62 does not divide into two pieces .* Nearest legal: 60 or 64"):
        check_layout(SHAPE, VOCAB, replace(ONE, context=2, sequence_length=62))


@pytest.mark.parametrize(
    ("changes", "gradients", "weights", "aligned"),
    [
        ({}, False, False, False),
        ({"overlap_grad_reduce": True}, True, False, False),
        ({"overlap_grad_reduce": True, "overlap_param_gather": True}, True, True, False),
        ({"overlap_grad_reduce": True, "overlap_param_gather": True, "virtual_pipeline": 2, "pipeline": 2}, True, True, True),
    ],
)
def test_overlap_sets_what_megatrons_own_loop_sets(changes: dict[str, Any], gradients: bool, weights: bool, aligned: bool) -> None:
    layout = replace(ONE, distributed_optimizer=True, bucket_size=1234, **changes)
    ddp = ddp_config(layout)
    assert (ddp.overlap_grad_reduce, ddp.overlap_param_gather, ddp.align_param_gather) == (gradients, weights, aligned)
    assert (ddp.bucket_size, ddp.use_distributed_optimizer, ddp.grad_reduce_in_fp32) == (1234, True, True)
    config = SimpleNamespace(no_sync_func=None, grad_sync_func=None, param_sync_func=None)
    chunks = [
        SimpleNamespace(no_sync=f"no-sync {number}", start_grad_sync=f"reduce {number}", start_param_sync=f"gather {number}")
        for number in range(layout.virtual_pipeline)
    ]
    set_overlap(config, chunks, layout)
    several = layout.virtual_pipeline > 1
    assert config.no_sync_func == (None if not gradients else ["no-sync 0", "no-sync 1"] if several else "no-sync 0")
    assert config.grad_sync_func == (None if not gradients else ["reduce 0", "reduce 1"] if several else "reduce 0")
    assert config.param_sync_func == (["gather 0", "gather 1"] if aligned else None)
