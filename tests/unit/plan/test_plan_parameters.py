"""Counts against the totals that the model cards and the checkpoints' own indices give."""

from __future__ import annotations

import pytest
from plan_examples import LLAMA2_7B, LLAMA2_13B, LLAMA3_8B, LLAMA3_70B, SMOLLM2_135M, TINYLLAMA_1B

from megatron_cpt.plan.model_shape import ModelShape
from megatron_cpt.plan.parameters import num_params, rank_params


@pytest.mark.parametrize(
    ("shape", "published"),
    [
        (SMOLLM2_135M, 134_515_008),
        (TINYLLAMA_1B, 1_100_048_384),
        (LLAMA2_7B, 6_738_415_616),
        (LLAMA2_13B, 13_015_864_320),
        (LLAMA3_8B, 8_030_261_248),
        (LLAMA3_70B, 70_553_706_496),
    ],
)
def test_the_count_equals_the_published_one(shape: ModelShape, published: int) -> None:
    assert num_params(shape, num_rows=shape.num_base_ids) == published


def test_an_extended_row_adds_one_hidden_vector_or_two_when_untied() -> None:
    assert num_params(SMOLLM2_135M, num_rows=49152 + 128) - 134_515_008 == 128 * 576
    assert num_params(LLAMA3_8B, num_rows=128256 + 128) - 8_030_261_248 == 2 * 128 * 4096


@pytest.mark.parametrize(("tensor", "pipeline"), [(1, 1), (2, 1), (4, 4), (8, 2)])
def test_ranks_of_an_untied_model_hold_every_parameter_once_and_the_norms_on_each_tensor_rank(tensor: int, pipeline: int) -> None:
    held = tensor * sum(
        rank_params(LLAMA3_8B, num_rows=128256, tensor=tensor, pipeline=pipeline, pipeline_rank=rank) for rank in range(pipeline)
    )
    norms = (2 * 32 + 1) * 4096
    assert held == 8_030_261_248 + (tensor - 1) * norms


def test_a_tied_model_copies_its_embedding_to_the_last_stage_only_when_the_stages_differ() -> None:
    whole = rank_params(SMOLLM2_135M, num_rows=49152, tensor=1, pipeline=1, pipeline_rank=0)
    first, last = (rank_params(SMOLLM2_135M, num_rows=49152, tensor=1, pipeline=2, pipeline_rank=rank) for rank in (0, 1))
    assert whole == 134_515_008
    assert first + last == 134_515_008 + 49152 * 576
