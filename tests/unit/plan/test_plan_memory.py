"""Memory against Megatron-core's table of bytes per parameter, Korthikanti's list of activations and hand counts."""

from __future__ import annotations

import dataclasses

import pytest
from plan_examples import LLAMA3_8B, ONE_RANK, SMOLLM2_135M, shape

from megatron_cpt.plan.memory import activation_bytes_per_layer, memory_of_stages
from megatron_cpt.plan.run_plan import RankMemory


def state_bytes(rank: RankMemory) -> float:
    return rank.weights + rank.gradients + rank.optimizer


@pytest.mark.parametrize(
    ("dtype", "distributed", "data", "bytes_per_param"),
    [
        ("bf16", False, 4, 18),  # the rows of Megatron-core's docs/user-guide/features/dist_optimizer.md
        ("bf16", True, 4, 6 + 12 / 4),
        ("fp32", False, 4, 16),
        ("fp32", True, 4, 8 + 8 / 4),
    ],
)
def test_bytes_per_parameter_are_those_of_megatron_cores_table(dtype: str, distributed: bool, data: int, bytes_per_param: float) -> None:
    layout = dataclasses.replace(ONE_RANK, dtype=dtype, distributed_optimizer=distributed, data=data)  # type: ignore[arg-type]
    (rank,) = memory_of_stages(SMOLLM2_135M, layout, num_rows=49152, fused_swiglu=True)
    assert state_bytes(rank) == pytest.approx(bytes_per_param * 134_515_008)


def test_zero_stage_one_state_of_7_5_billion_parameters_on_64_ranks_is_31_4_gb_less_the_fp32_gradients() -> None:
    # Rajbhandari et al. 2020, figure 1: 31.4 GB for P_os with fp16 gradients (2 bytes); Megatron keeps 4-byte gradients: + 2 x 7.5e9
    params = 7.5e9
    assert params * (6 + 12 / 64) == pytest.approx(31.4e9 + 2 * params, rel=2e-3)
    layout = dataclasses.replace(ONE_RANK, distributed_optimizer=True, data=64)
    (rank,) = memory_of_stages(LLAMA3_8B, layout, num_rows=128256, fused_swiglu=True)
    assert state_bytes(rank) / rank.num_params == pytest.approx(31.4e9 / params + 2, rel=2e-3)


def test_multi_head_attention_with_a_four_times_wide_mlp_keeps_28_hidden_sizes_of_bytes_beside_the_mlp_middle() -> None:
    # Korthikanti et al. 2022, section 4.1, bf16, per token and hidden size: QKV input 2, Q 2, K and V 4, projection input 2, MLP input 2,
    # norms 4 = 16; then the middle: gate, up and product are 3 x ffn x 2 bytes = 24 at ffn = 4h
    model = shape(hidden=1024, layers=2, heads=16, groups=16, ffn=4096, vocabulary=1024)
    found = activation_bytes_per_layer(model, num_tokens=100, tensor=1, sequence_parallel=False, element_bytes=2, fused_swiglu=True)
    assert found == 100 * 1024 * (16 + 24)


def test_tensor_parallelism_splits_the_middle_and_sequence_parallelism_also_the_rest() -> None:
    model = shape(hidden=1024, layers=2, heads=16, groups=16, ffn=4096, vocabulary=1024)

    def found(*, tensor: int, sequence_parallel: bool) -> float:
        return activation_bytes_per_layer(
            model, num_tokens=1, tensor=tensor, sequence_parallel=sequence_parallel, element_bytes=2, fused_swiglu=True
        )

    # 8 of 40 hidden sizes (norm inputs 4, QKV input 2, MLP input 2) are whole on every tensor rank: Korthikanti's "10" less 2 of dropout
    assert found(tensor=4, sequence_parallel=False) == 1024 * (8 + 32 / 4)
    assert found(tensor=4, sequence_parallel=True) == 1024 * 40 / 4


def test_grouped_query_attention_saves_four_bytes_for_each_missing_key_value_head() -> None:
    full = shape(hidden=1024, layers=2, heads=16, groups=16, ffn=4096, vocabulary=1024)
    grouped = dataclasses.replace(full, num_query_groups=4)
    sizes = [
        activation_bytes_per_layer(model, num_tokens=1, tensor=1, sequence_parallel=False, element_bytes=2, fused_swiglu=True)
        for model in (full, grouped)
    ]
    assert sizes[0] - sizes[1] == 1024 * 4 * (1 - 4 / 16)


def test_the_first_stage_keeps_more_micro_batches_and_the_last_one_the_logits() -> None:
    layout = dataclasses.replace(ONE_RANK, pipeline=4)
    stages = memory_of_stages(LLAMA3_8B, layout, num_rows=128256, fused_swiglu=True)
    assert [rank.pipeline_rank for rank in stages] == [0, 1, 2, 3]
    assert stages[0].activations == pytest.approx(4 * stages[2].activations / 2)  # 4 and 2 micro-batches in flight
    assert [rank.logits for rank in stages] == [0, 0, 0, 4 * 512 * 128256]


def test_no_stage_keeps_more_micro_batches_than_a_step_has() -> None:
    layout = dataclasses.replace(ONE_RANK, pipeline=4, global_batch_size=1)
    stages = memory_of_stages(LLAMA3_8B, layout, num_rows=128256, fused_swiglu=True)
    assert stages[0].activations == stages[2].activations
