"""FLOPs and days against figures that NVIDIA and the papers print."""

from __future__ import annotations

import dataclasses

import pytest
from plan_examples import DEEPSEEK_V2, DEEPSEEK_V3, LLAMA2_7B, LLAMA2_13B, LLAMA3_8B, LLAMA3_70B, LLAMA31_405B, ONE_RANK

from megatron_cpt.errors import ConfigError
from megatron_cpt.plan.model_shape import ModelShape
from megatron_cpt.plan.parameters import active_matrix_params, num_params
from megatron_cpt.plan.throughput import flops_per_token, model_flops_utilization, training_seconds
from megatron_cpt.record.unknown import Interval, Unavailable


@pytest.mark.parametrize(("model", "published_gflop"), [(LLAMA3_8B, 51.47), (LLAMA3_70B, 449.2), (LLAMA31_405B, 2524.0)])
def test_causal_flops_per_token_agree_with_megatron_bridges_tables(model: ModelShape, published_gflop: float) -> None:
    # published TFLOP/s over published tokens/s, docs/performance-summary.md of Megatron-Bridge; its own rounding is 0.3 %
    found = flops_per_token(model, num_rows=128256, sequence_length=8192)
    assert found / 1e9 == pytest.approx(published_gflop, rel=3e-3)


@pytest.mark.parametrize(
    ("model", "sequence_length", "published_gflop"), [(LLAMA3_8B, 8192, 57.91), (LLAMA2_7B, 4096, 46.06), (LLAMA2_13B, 4096, 87.21)]
)
def test_non_causal_flops_per_token_agree_with_nemo_24_07(model: ModelShape, sequence_length: int, published_gflop: float) -> None:
    found = flops_per_token(model, num_rows=model.num_base_ids, sequence_length=sequence_length, causal=False)
    assert found / 1e9 == pytest.approx(published_gflop, rel=1e-3)


@pytest.mark.parametrize(("model", "total", "active", "gflop"), [(DEEPSEEK_V3, 671, 37, 250), (DEEPSEEK_V2, 236, 21, 155)])
def test_deepseeks_parameters_and_flops_are_the_published_ones(model: ModelShape, total: float, active: float, gflop: float) -> None:
    # totals and active parameters: the reports' abstracts, whole billions; FLOPs a token: arXiv 2505.09343, table 2, at 4,096 tokens
    rows = model.num_base_ids
    assert round(num_params(model, num_rows=rows) / 1e9) == total
    assert (active_matrix_params(model) + 2 * rows * model.hidden_size) / 1e9 == pytest.approx(active, rel=0.02)
    assert flops_per_token(model, num_rows=rows, sequence_length=4096) / 1e9 == pytest.approx(gflop, rel=3e-3)


def test_a_dense_layer_a_shared_expert_and_a_prediction_add_what_they_are_by_hand() -> None:
    def flops(**change: int) -> float:
        return flops_per_token(dataclasses.replace(DEEPSEEK_V3, **change), num_rows=129280, sequence_length=4096)

    # 6 FLOPs a weight: three matrices of 7168 x 2048 in each of 58 layers
    assert flops() - flops(shared_ffn_hidden_size=0) == 6 * 58 * 3 * 7168 * 2048
    # a dense layer in the place of one of experts: 3 x 7168 x 18432 for 9 x 3 x 7168 x 2048 and a router of 256 x 7168
    assert flops() - flops(num_dense_layers=2) == 6 * (3 * 7168 * 18432 - 9 * 3 * 7168 * 2048 - 256 * 7168)
    # a prediction: a layer of experts with its attention, a matrix of 2 x 7168 x 7168, and an output layer
    squeezed = 7168 * (1536 + 512 + 64) + 1536 * 128 * 192 + 512 * 128 * 256 + 128 * 128 * 7168
    layer = squeezed + 9 * 3 * 7168 * 2048 + 256 * 7168
    attention = 3 * 128 * (2 * 192 + 2 * 128) * 2048
    assert flops(num_mtp_layers=1) - flops() == pytest.approx(6 * (layer + 2 * 7168**2 + 129280 * 7168) + attention, rel=1e-12)


def test_the_two_conventions_differ_by_an_eighth_for_8b_at_8192_tokens() -> None:
    # 3 x 32 layers x 4 x 8192 x 4096 / 2 = 6.442e9 more without the causal half, by hand
    causal = flops_per_token(LLAMA3_8B, num_rows=128256, sequence_length=8192)
    assert flops_per_token(LLAMA3_8B, num_rows=128256, sequence_length=8192, causal=False) - causal == 6_442_450_944


def test_1024_gpus_at_nemos_rate_take_the_days_that_nemo_prints() -> None:
    # NeMo 24.07, Llama 2 13B: 8646 tokens/s/GPU (H100, 4,096 tokens) -> 10e12 tokens in 13 days on 1,024 GPUs, rounded to a day
    flops = flops_per_token(LLAMA2_13B, num_rows=32000, sequence_length=4096, causal=False)
    layout = dataclasses.replace(ONE_RANK, data=1024, global_batch_size=2048)
    share = 8646 * flops / 989e12
    found = training_seconds(total_flops=10e12 * flops, layout=layout, dense_tflops=989.0, utilization=Interval(share, share, share))
    assert isinstance(found, Interval)
    assert found.likely / 86400 == pytest.approx(13, abs=0.5)


def test_a_pipeline_of_four_with_eight_micro_batches_is_three_eighths_slower() -> None:
    flat = dataclasses.replace(ONE_RANK, data=4, global_batch_size=32)
    piped = dataclasses.replace(ONE_RANK, pipeline=4, global_batch_size=8)
    share = Interval(0.3, 0.4, 0.5)
    seconds = [training_seconds(total_flops=1e18, layout=layout, dense_tflops=100.0, utilization=share) for layout in (flat, piped)]
    assert isinstance(seconds[0], Interval)
    assert isinstance(seconds[1], Interval)
    assert seconds[0].likely == pytest.approx(1e18 / (4 * 100e12 * 0.4))
    assert seconds[1].likely / seconds[0].likely == pytest.approx(1 + 3 / 8)  # (p - 1) / m, Narayanan et al. 2021
    assert seconds[0].low < seconds[0].likely < seconds[0].high


def test_two_chunks_a_rank_halve_the_pipelines_idle_time() -> None:
    share = Interval(0.4, 0.4, 0.4)
    piped = dataclasses.replace(ONE_RANK, pipeline=4, virtual_pipeline=2, global_batch_size=8)
    found = training_seconds(total_flops=1e18, layout=piped, dense_tflops=100.0, utilization=share)
    assert isinstance(found, Interval)
    assert found.likely == pytest.approx(1e18 / (4 * 100e12 * 0.4) * (1 + 3 / 8 / 2))  # (p - 1) / (v m), Narayanan et al. 2021


def test_an_unknown_peak_gives_an_unknown_time_and_its_reason() -> None:
    found = training_seconds(
        total_flops=1e18, layout=ONE_RANK, dense_tflops=Unavailable("set gpu.dense_tflops"), utilization=Interval(0.3, 0.4, 0.5)
    )
    assert found == Unavailable("set gpu.dense_tflops")


@pytest.mark.parametrize(
    ("gpus", "seconds", "batch", "published"), [(256, 40.0, 768, 0.53), (3072, 29.02, 6144, 0.487), (12288, 8.57, 6144, 0.412)]
)
def test_utilization_of_megascales_175b_runs_is_the_published_one(gpus: int, seconds: float, batch: int, published: float) -> None:
    # MegaScale (arXiv 2402.15627) table 2, its Megatron-LM rows on A100; FLOPs by Narayanan et al. 2021, equation 3 without recompute
    layers, hidden, length, vocabulary = 96, 12288, 2048, 64000
    flops = 72 * batch * length * layers * hidden**2 * (1 + length / (6 * hidden) + vocabulary / (12 * layers * hidden))
    assert model_flops_utilization(flops=flops, seconds=seconds, num_devices=gpus, dense_tflops=312) == pytest.approx(published, abs=0.008)


def test_utilization_over_one_is_an_error_and_not_a_figure() -> None:
    with pytest.raises(ConfigError, match="dense"):
        model_flops_utilization(flops=2e15, seconds=1, num_devices=1, dense_tflops=989)
