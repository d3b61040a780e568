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


@pytest.mark.parametrize(("layers", "pipeline", "virtual"), [(96, 8, 3), (105, 35, 3)])  # GPT-3 175B and MT-NLG 530B of their table 3
def test_interleaving_adds_korthikantis_factor_on_the_first_stage(layers: int, pipeline: int, virtual: int) -> None:
    # Korthikanti et al. 2022, section 4.2.3: the first stage holds L (1 + (p - 1)/(p v)) layers' activations
    model = shape(hidden=1024, layers=layers, heads=16, groups=16, ffn=4096, vocabulary=1024)
    layout = dataclasses.replace(ONE_RANK, pipeline=pipeline, virtual_pipeline=virtual, global_batch_size=10 * pipeline)
    one_layer = activation_bytes_per_layer(
        model, num_tokens=512, tensor=1, sequence_parallel=False, element_bytes=2, fused_swiglu=True
    )  # fmt: skip
    first, *_, last = memory_of_stages(model, layout, num_rows=1024, fused_swiglu=True)
    assert first.activations == pytest.approx(layers * (1 + (pipeline - 1) / (pipeline * virtual)) * one_layer)
    # and the last one (v - 1) p + 1 chunks: the warm-up of Megatron-core's schedule (get_pp_rank_microbatches) and one more
    head_input = 2 * 2 * 512 * 1024
    chunk = layers // (pipeline * virtual)
    assert last.activations == pytest.approx(((virtual - 1) * pipeline + 1) * chunk * one_layer + head_input)


def test_no_interleaved_stage_holds_more_chunks_than_a_step_has() -> None:
    layout = dataclasses.replace(ONE_RANK, pipeline=4, virtual_pipeline=4, global_batch_size=4)
    plain = dataclasses.replace(layout, virtual_pipeline=1)
    found, wanted = (memory_of_stages(LLAMA3_8B, each, num_rows=128256, fused_swiglu=True)[0] for each in (layout, plain))
    assert found.activations == wanted.activations  # all 4 micro-batches of all 8 layers of the stage


def test_full_recompute_keeps_two_bytes_per_token_and_hidden_size_and_one_layer_at_work() -> None:
    # Korthikanti et al. 2022, table 2: 2sbh a layer; LLAMA3_8B on one rank: 512 tokens, 4,096 hidden sizes, 32 layers
    def activations(**changes: object) -> float:
        layout = dataclasses.replace(ONE_RANK, **changes)  # type: ignore[arg-type]
        (rank,) = memory_of_stages(LLAMA3_8B, layout, num_rows=128256, fused_swiglu=True)
        return rank.activations

    token, head_input = 512 * 2, 2 * 2 * 512 * 4096
    # by hand, per token in bf16: 4 hidden sizes, 2 x 32 query and 2 x 8 key/value heads of 128, 3 x 14,336 of the MLP's middle
    one_layer = token * (4 * 4096 + 2 * 4096 + 2 * 1024 + 3 * 14336)
    assert activations() == 32 * one_layer + head_input
    assert activations(recompute="full") == 32 * token * 4096 + (one_layer - token * 4096) + head_input
    middle = token * 3 * 14336
    assert activations(recompute="selective") == 32 * (one_layer - middle) + middle + head_input


def test_sequence_parallelism_also_splits_what_full_recompute_keeps() -> None:
    def first_stage(*, sequence_parallel: bool) -> float:
        layout = dataclasses.replace(ONE_RANK, tensor=4, pipeline=2, recompute="full", sequence_parallel=sequence_parallel)
        return memory_of_stages(LLAMA3_8B, layout, num_rows=128256, fused_swiglu=True)[0].activations

    def one_layer(*, sequence_parallel: bool) -> float:
        return activation_bytes_per_layer(
            LLAMA3_8B, num_tokens=512, tensor=4, sequence_parallel=sequence_parallel, element_bytes=2, fused_swiglu=True
        )

    layer_input = 2 * 512 * 4096
    # two micro-batches in flight of 16 layers, and one layer at work beside its input
    assert first_stage(sequence_parallel=False) == 31 * layer_input + one_layer(sequence_parallel=False)
    assert first_stage(sequence_parallel=True) == 31 * layer_input / 4 + one_layer(sequence_parallel=True)


def test_no_stage_keeps_more_micro_batches_than_a_step_has() -> None:
    layout = dataclasses.replace(ONE_RANK, pipeline=4, global_batch_size=1)
    stages = memory_of_stages(LLAMA3_8B, layout, num_rows=128256, fused_swiglu=True)
    assert stages[0].activations == stages[2].activations
