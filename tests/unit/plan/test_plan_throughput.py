"""FLOPs and days against figures that NVIDIA and the papers print."""

from __future__ import annotations

import dataclasses

import pytest
from plan_examples import LLAMA2_7B, LLAMA2_13B, LLAMA3_8B, LLAMA3_70B, LLAMA31_405B, ONE_RANK

from megatron_cpt.errors import ConfigError
from megatron_cpt.plan.model_shape import ModelShape
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
