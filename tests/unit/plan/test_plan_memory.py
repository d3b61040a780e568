"""Memory against Megatron-core's table of bytes per parameter, Korthikanti's list of activations and hand counts."""

from __future__ import annotations

import dataclasses

import pytest
from plan_examples import LLAMA3_8B, ONE_RANK, SMOLLM2_135M, shape

from megatron_cpt.plan.activations import Operations
from megatron_cpt.plan.memory import (
    FRAGMENTATION,
    ON_CPU,
    ON_CUDA,
    OUTSIDE_TORCH,
    Build,
    kept_bytes_per_layer,
    largest_rank,
    memory_of_stages,
)
from megatron_cpt.plan.model_shape import LatentAttention, ModelShape
from megatron_cpt.plan.parameters import num_params
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
    (rank,) = memory_of_stages(SMOLLM2_135M, layout, num_rows=49152)
    assert state_bytes(rank) == pytest.approx(bytes_per_param * 134_515_008)


def test_zero_stage_one_state_of_7_5_billion_parameters_on_64_ranks_is_31_4_gb_less_the_fp32_gradients() -> None:
    # Rajbhandari et al. 2020, figure 1: 31.4 GB for P_os with fp16 gradients (2 bytes); Megatron keeps 4-byte gradients: + 2 x 7.5e9
    params = 7.5e9
    assert params * (6 + 12 / 64) == pytest.approx(31.4e9 + 2 * params, rel=2e-3)
    layout = dataclasses.replace(ONE_RANK, distributed_optimizer=True, data=64)
    (rank,) = memory_of_stages(LLAMA3_8B, layout, num_rows=128256)
    assert state_bytes(rank) / rank.num_params == pytest.approx(31.4e9 / params + 2, rel=2e-3)


def layer_bytes(model: ModelShape, *, tokens: int = 100, build: Build = ON_CUDA, **changes: object) -> float:
    """Return what one layer keeps of so many tokens in one micro-batch."""
    layout = dataclasses.replace(ONE_RANK, sequence_length=tokens, **changes)  # type: ignore[arg-type]
    return kept_bytes_per_layer(model, layout, build=build)[0]


FOUR_TIMES_WIDE = shape(hidden=1024, layers=2, heads=16, groups=16, ffn=4096, vocabulary=1024)


def test_multi_head_attention_with_a_four_times_wide_mlp_keeps_28_hidden_sizes_of_bytes_beside_the_mlp_middle() -> None:
    # Korthikanti et al. 2022, section 4.1, bf16, per token and hidden size: QKV input 2, Q 2, K and V 4, projection input 2, MLP input 2,
    # norms 4 = 16; then the middle: gate, up and product are 3 x ffn x 2 bytes = 24 at ffn = 4h
    assert layer_bytes(FOUR_TIMES_WIDE) == 100 * 1024 * (16 + 24)


@pytest.mark.parametrize("tensor", [1, 2, 8])
@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_gpt3s_layer_with_dropout_and_a_score_matrix_keeps_what_korthikantis_table_2_says(tensor: int, sequence_parallel: bool) -> None:
    hidden, heads, length = 2048, 16, 512
    gpt = dataclasses.replace(shape(hidden=hidden, layers=2, heads=heads, groups=heads, ffn=4 * hidden, vocabulary=1024), family="gpt2")
    paper = Build(operations=Operations(flash_attention=False, hidden_dropout=True, attention_dropout=True))
    found = layer_bytes(gpt, tokens=length, build=paper, tensor=tensor, sequence_parallel=sequence_parallel)
    scores = 5 * heads * length / hidden
    coefficient = (34 + scores) / tensor if sequence_parallel else 10 + 24 / tensor + scores / tensor
    assert found == pytest.approx(length * hidden * coefficient, rel=1e-12)
    selective = dataclasses.replace(paper, recompute_modules=frozenset({"core_attn"}))
    found = layer_bytes(gpt, tokens=length, build=selective, tensor=tensor, sequence_parallel=sequence_parallel, recompute="selective")
    assert found == pytest.approx(length * hidden * (34 / tensor if sequence_parallel else 10 + 24 / tensor), rel=1e-12)


def test_tensor_parallelism_splits_the_middle_and_sequence_parallelism_also_the_rest() -> None:
    # 8 of 40 hidden sizes (norm inputs 4, QKV input 2, MLP input 2) are whole on every tensor rank: Korthikanti's "10" less 2 of dropout
    assert layer_bytes(FOUR_TIMES_WIDE, tokens=1, tensor=4) == 1024 * (8 + 32 / 4)
    assert layer_bytes(FOUR_TIMES_WIDE, tokens=1, tensor=4, sequence_parallel=True) == 1024 * 40 / 4


def test_grouped_query_attention_saves_four_bytes_for_each_missing_key_value_head() -> None:
    grouped = dataclasses.replace(FOUR_TIMES_WIDE, num_query_groups=4)
    assert layer_bytes(FOUR_TIMES_WIDE, tokens=1) - layer_bytes(grouped, tokens=1) == 1024 * 4 * (1 - 4 / 16)


def test_a_layer_of_experts_keeps_each_of_a_tokens_copies_on_the_ranks_that_see_it() -> None:
    mixture = dataclasses.replace(FOUR_TIMES_WIDE, family="mixtral", num_experts=8, experts_per_token=2)
    attention = 8 + 8  # as above: norm and matrix input 4, MLP's 4; then Q, K, V and projection input 8
    router = 2 * 8 * 4  # logits and weights of 8 experts in fp32
    assert layer_bytes(mixture, tokens=1) == 1024 * attention + router + 2 * (1024 * 2 + 3 * 4096 * 2)
    # tensor ranks that share an expert all see its tokens; those with experts of their own see a part of the tokens each
    shared = layer_bytes(mixture, tokens=1, tensor=2, sequence_parallel=True)
    alone = layer_bytes(mixture, build=dataclasses.replace(ON_CUDA, expert_tensor=1), tokens=1, tensor=2, sequence_parallel=True)
    assert shared - alone == 2 * 1024 * 2 / 2


def test_latent_attention_keeps_squeezed_vectors_and_the_heads_that_grow_out_of_them() -> None:
    latent = LatentAttention(query_rank=96, key_value_rank=32, plain_dim=64, rotary_dim=16, value_dim=48)
    squeezed = dataclasses.replace(FOUR_TIMES_WIDE, family="deepseek", latent=latent)
    heads = 16 * (2 * (64 + 16) + 48 + 48)  # queries and keys, values, output
    assert layer_bytes(squeezed, tokens=1) == 2 * (4 * 1024 + 2 * (96 + 32) + heads + 3 * 4096)


def test_parameters_of_deepseek_v3_are_the_671_billion_that_its_report_counts() -> None:
    # arXiv 2412.19437, section 4.2: 61 layers, the first 3 dense, hidden 7168, 256 experts of 2048 and a shared one, 128 heads; 671B in all
    latent = LatentAttention(query_rank=1536, key_value_rank=512, plain_dim=128, rotary_dim=64, value_dim=128)
    model = dataclasses.replace(
        shape(hidden=7168, layers=61, heads=128, groups=128, ffn=2048, vocabulary=129280), family="deepseek", latent=latent,
        num_experts=256, experts_per_token=8, num_dense_layers=3, dense_ffn_hidden_size=18432, shared_ffn_hidden_size=2048,
    )  # fmt: skip
    assert num_params(model, num_rows=129280) == pytest.approx(671e9, rel=1e-3)
    assert model.training_problems()[0] == "multi-head latent attention can be planned for, and is not trained yet"


def test_the_first_stage_keeps_more_micro_batches_and_the_last_one_the_logits() -> None:
    layout = dataclasses.replace(ONE_RANK, pipeline=4)
    stages = memory_of_stages(LLAMA3_8B, layout, num_rows=128256)
    assert [rank.pipeline_rank for rank in stages] == [0, 1, 2, 3]
    assert stages[0].activations == pytest.approx(4 * stages[2].activations / 2)  # 4 and 2 micro-batches in flight
    # bf16 logits, and the output matrix's gradient in bf16 beside them: more than the loss's fp32 copy of so few tokens
    assert [rank.logits for rank in stages] == [0, 0, 0, 2 * 512 * 128256 + 2 * 4096 * 128256]


@pytest.mark.parametrize(("layers", "pipeline", "virtual"), [(96, 8, 3), (105, 35, 3)])  # GPT-3 175B and MT-NLG 530B of their table 3
def test_interleaving_adds_korthikantis_factor_on_the_first_stage(layers: int, pipeline: int, virtual: int) -> None:
    # Korthikanti et al. 2022, section 4.2.3: the first stage holds L (1 + (p - 1)/(p v)) layers' activations
    model = shape(hidden=1024, layers=layers, heads=16, groups=16, ffn=4096, vocabulary=1024)
    layout = dataclasses.replace(ONE_RANK, pipeline=pipeline, virtual_pipeline=virtual, global_batch_size=10 * pipeline)
    one_layer = layer_bytes(model, tokens=512)
    first, *_, last = memory_of_stages(model, layout, num_rows=1024)
    assert first.activations == pytest.approx(layers * (1 + (pipeline - 1) / (pipeline * virtual)) * one_layer)
    # and the last one (v - 1) p + 1 chunks: the warm-up of Megatron-core's schedule (get_pp_rank_microbatches) and one more
    head_input = 2 * 2 * 512 * 1024
    chunk = layers // (pipeline * virtual)
    assert last.activations == pytest.approx(((virtual - 1) * pipeline + 1) * chunk * one_layer + head_input)


def test_no_interleaved_stage_holds_more_chunks_than_a_step_has() -> None:
    layout = dataclasses.replace(ONE_RANK, pipeline=4, virtual_pipeline=4, global_batch_size=4)
    plain = dataclasses.replace(layout, virtual_pipeline=1)
    found, wanted = (memory_of_stages(LLAMA3_8B, each, num_rows=128256)[0] for each in (layout, plain))
    assert found.activations == wanted.activations  # all 4 micro-batches of all 8 layers of the stage


def test_full_recompute_keeps_two_bytes_per_token_and_hidden_size_and_one_layer_at_work() -> None:
    # Korthikanti et al. 2022, table 2: 2sbh a layer; LLAMA3_8B on one rank: 512 tokens, 4,096 hidden sizes, 32 layers
    def activations(**changes: object) -> float:
        layout = dataclasses.replace(ONE_RANK, **changes)  # type: ignore[arg-type]
        (rank,) = memory_of_stages(LLAMA3_8B, layout, num_rows=128256)
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
        return memory_of_stages(LLAMA3_8B, layout, num_rows=128256)[0].activations

    def one_layer(*, sequence_parallel: bool) -> float:
        return layer_bytes(LLAMA3_8B, tokens=512, tensor=4, sequence_parallel=sequence_parallel)

    layer_input = 2 * 512 * 4096
    # two micro-batches in flight of 16 layers, and one layer at work beside its input
    assert first_stage(sequence_parallel=False) == 31 * layer_input + one_layer(sequence_parallel=False)
    assert first_stage(sequence_parallel=True) == 31 * layer_input / 4 + one_layer(sequence_parallel=True)


def test_no_stage_keeps_more_micro_batches_than_a_step_has() -> None:
    layout = dataclasses.replace(ONE_RANK, pipeline=4, global_batch_size=1)
    stages = memory_of_stages(LLAMA3_8B, layout, num_rows=128256)
    assert stages[0].activations == stages[2].activations


def test_the_loss_keeps_six_bytes_of_a_bf16_logit_and_works_in_place_on_an_fp32_one() -> None:
    # 4,096 tokens of 32,000 logits: megatron-core's loss copies bf16 logits to fp32 (core/tensor_parallel/cross_entropy.py)
    model = shape(hidden=64, layers=2, heads=4, groups=4, ffn=256, vocabulary=32000)
    layout = dataclasses.replace(ONE_RANK, sequence_length=4096)
    (half,) = memory_of_stages(model, layout, num_rows=32000)
    assert half.logits == 6 * 4096 * 32000
    (single,) = memory_of_stages(model, dataclasses.replace(layout, dtype="fp32"), num_rows=32000)
    assert single.logits == 4 * 4096 * 32000 + 4 * 32000 * 64  # and the output matrix's gradient, once the loss is through


def test_a_rank_is_charged_for_workspaces_messages_and_a_named_allowance_and_for_reading_a_checkpoint() -> None:
    layout = dataclasses.replace(ONE_RANK, tensor=2, pipeline=2, sequence_parallel=True)
    first, last = memory_of_stages(LLAMA3_8B, layout, num_rows=128256)
    hidden = 2 * 512 * 4096
    # a gathered hidden state, and a neighbour's next input and gradient, each cut over two ranks
    assert first.communication == last.communication == hidden + 2 * hidden / 2
    assert first.workspaces == 3 * 32 * 2**20
    assert last.stage_inputs == 2 * hidden / 2  # its last input and that one's gradient; the first stage has none
    assert first.stage_inputs == 0
    assert last.allowance == FRAGMENTATION * (last.activations + last.logits + last.communication)
    assert first.outside_torch == OUTSIDE_TORCH
    assert first.checkpoint_load == first.state + first.workspaces  # every rank holds the optimizer, and reads into what is there
    assert first.total == first.allocated_peak + first.allowance + OUTSIDE_TORCH
    assert first.host_checkpoint == 0
    (on_cpu,) = memory_of_stages(LLAMA3_8B, ONE_RANK, num_rows=128256, build=ON_CPU)
    assert on_cpu.workspaces == on_cpu.outside_torch == 0


def test_a_sharded_optimizers_checkpoint_goes_through_whole_tensors_on_the_host() -> None:
    # 8 ranks share the optimizer: 12 bytes of every parameter on the host, a bucket of all of them gathered and joined (4 + 4), and the own
    # shard's three parts (12 / 8); the device gathers one of the three parts at a time, beside its own eighth.
    layout = dataclasses.replace(ONE_RANK, data=8, distributed_optimizer=True, recompute="full")
    (rank,) = memory_of_stages(LLAMA3_8B, layout, num_rows=128256)
    params = rank.num_params
    assert rank.checkpoint_load == rank.state + rank.workspaces
    assert rank.checkpoint_save == pytest.approx(rank.state + rank.workspaces + 4 * params * (1 + 1 / 8))
    assert rank.total == rank.checkpoint_save + OUTSIDE_TORCH > rank.allocated_peak + rank.allowance + OUTSIDE_TORCH
    assert rank.host_checkpoint == pytest.approx((12 + 4 + 4 + 12 / 8) * params)
    # with gradients beside the backward pass a bucket holds 40 million parameters
    (beside,) = memory_of_stages(LLAMA3_8B, dataclasses.replace(layout, overlap_grad_reduce=True), num_rows=128256)
    assert beside.checkpoint_save - beside.checkpoint_load == pytest.approx(4 * 40e6 * (1 + 1 / 8))
    (on_host,) = memory_of_stages(LLAMA3_8B, layout, num_rows=128256, build=ON_CPU)
    assert on_host.checkpoint_load == pytest.approx(on_host.state + 12 * params)
    (whole,) = memory_of_stages(LLAMA3_8B, dataclasses.replace(layout, distributed_optimizer=False), num_rows=128256)
    assert (whole.host_checkpoint, whole.checkpoint_save) == (0, whole.checkpoint_load)


@pytest.mark.parametrize("pipeline", [2, 4, 16])
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("tied", [False, True])
def test_the_largest_rank_is_the_largest_of_all_stages(pipeline: int, recompute: str, tied: bool) -> None:
    model = dataclasses.replace(LLAMA3_8B, tied_embeddings=tied)
    for chunks in (1, 2):
        layout = dataclasses.replace(ONE_RANK, pipeline=pipeline, recompute=recompute, virtual_pipeline=chunks, global_batch_size=32)
        stages = memory_of_stages(model, layout, num_rows=128256)
        assert largest_rank(model, layout, num_rows=128256).total == max(rank.total for rank in stages)


def test_stages_of_unequal_chunks_keep_the_layers_that_they_have() -> None:
    layout = dataclasses.replace(ONE_RANK, pipeline=2)
    uneven = dataclasses.replace(ON_CUDA, chunk_layers=(20, 12))
    first, last = memory_of_stages(LLAMA3_8B, layout, num_rows=128256, build=uneven)
    even_first, even_last = memory_of_stages(LLAMA3_8B, layout, num_rows=128256)
    one_layer = (even_first.num_params - 128256 * 4096) // 16
    assert (first.num_params - even_first.num_params, even_last.num_params - last.num_params) == (4 * one_layer, 4 * one_layer)
    assert first.activations == pytest.approx(even_first.activations * 20 / 16)
