"""Context parallelism, overlap, FP8 and FSDP in a plan: what is refused and why, and what they do to memory, time and the page."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml
from plan_examples import LLAMA3_8B, ONE_RANK, SMOLLM2_135M, experiment, facts, shape

from megatron_cpt.config.schema import ExperimentConfig
from megatron_cpt.errors import ConfigError
from megatron_cpt.plan.derive import derive
from megatron_cpt.plan.memory import ON_CPU, memory_of_stages
from megatron_cpt.plan.page import page
from megatron_cpt.plan.run_plan import RunPlan
from megatron_cpt.record.unknown import Unavailable


def with_parallel(**changes: object) -> ExperimentConfig:
    config = experiment()  # Llama 3 8B on 8 ranks: tensor 4, sequence parallel, 128 sequences of 8,192 tokens a step, bf16
    for key, value in changes.items():
        assert hasattr(config.parallel, key)
        setattr(config.parallel, key, value)
    return config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context": 0}, r"parallel.context=0 is below 1"),
        ({"context": 3}, r"8 ranks \(1 nodes x 8\), which do not divide by .* x parallel.context = 12"),
        ({"context": 2, "sequence_length": 8188}, r"it must divide by 8. Nearest legal: 8184 or 8192"),
        (
            {"context": 2, "tensor": 2, "sequence_parallel": False, "sequence_length": 8190},
            r"sequence_length=8190 does not divide into two pieces for each of parallel.context=2 ranks: it must divide by 4",
        ),
        ({"overlap_param_gather": True}, r"overlap_param_gather needs parallel.overlap_grad_reduce=true"),
        (
            {"overlap_param_gather": True, "overlap_grad_reduce": True, "distributed_optimizer": False},
            r"overlap_param_gather needs parallel.distributed_optimizer=true: a replicated optimizer gathers no weights",
        ),
        ({"bucket_size": 1000}, r"bucket_size=1000 has no effect without parallel.overlap_grad_reduce"),
        ({"bucket_size": 0, "overlap_grad_reduce": True}, r"parallel.bucket_size=0 is below 1"),
        ({"fp8": "fp8"}, r"parallel.fp8='fp8' is not one of none, hybrid, e4m3"),
        ({"fp8": "hybrid", "fp8_recipe": "fast"}, r"fp8_recipe='fast' is not one of delayed, tensorwise, blockwise, mxfp8"),
        ({"fp8_recipe": "mxfp8"}, r"fp8_recipe='mxfp8' has no effect with parallel.fp8=none"),
        ({"fp8": "hybrid", "dtype": "fp32"}, r"fp8=hybrid needs parallel.dtype=bf16 \(it is fp32\)"),
        ({"fsdp": True, "tensor": 1, "pipeline": 2}, r"fsdp=true does not go with parallel.pipeline=2: every micro-batch of every stage"),
        ({"fsdp": True, "fp8": "hybrid"}, r"fsdp=true does not go with parallel.fp8=hybrid"),
        ({"fsdp": True, "distributed_optimizer": False}, r"fsdp=true needs parallel.distributed_optimizer=true"),
        ({"fsdp": True, "overlap_grad_reduce": True, "bucket_size": 9}, r"overlap_grad_reduce has no effect with parallel.fsdp=true"),
    ],
)
def test_an_option_that_cannot_be_is_refused_with_its_reason(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        derive(with_parallel(**changes), **facts())


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        ({"window": 4096}, {"context": 2}, r"parallel.context=2 is not proven with a window of attention"),
        ({"num_experts": 8, "experts_per_token": 2}, {"context": 2}, r"parallel.context=2 is not proven with experts"),
        ({"num_experts": 8, "experts_per_token": 2}, {"fsdp": True}, r"parallel.fsdp=true is not proven with experts"),
        (
            {"num_experts": 8, "experts_per_token": 2},
            {"overlap_grad_reduce": True},
            r"parallel.overlap_grad_reduce cannot be had with experts",
        ),
    ],
)
def test_a_pair_that_nobody_has_proven_is_refused(model: dict[str, int], changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        derive(with_parallel(**changes), **{**facts(), "shape": dataclasses.replace(LLAMA3_8B, **model)})


def test_fp8_on_a_cpu_is_refused_when_the_plan_is_made() -> None:
    config = with_parallel(fp8="e4m3")
    config.cluster.backend = "cpu"
    with pytest.raises(ConfigError, match=r"parallel.fp8=e4m3 needs cluster.backend=cuda and Transformer Engine: no CPU kernel"):
        derive(config, **facts())


def test_sizes_that_fp8_kernels_do_not_take_are_named() -> None:
    odd = shape(hidden=1000, layers=2, heads=10, groups=10, ffn=2728, vocabulary=128256)
    config = with_parallel(tensor=1, sequence_parallel=False, fp8="hybrid", sequence_length=8184)
    with pytest.raises(ConfigError) as caught:
        derive(config, **{**facts(), "shape": odd})
    said = str(caught.value)
    for size in ("hidden_size (1000)", "ffn_hidden_size (2728)", "attention heads x their size (1000)", "micro-batch (8184)"):
        assert f"{size} is no multiple of 16 (parallel.fp8_recipe=delayed)" in said  # none of them is: 8 is left over each time
    assert "query, key and value columns (3000) is no multiple of 16" in said


@pytest.mark.parametrize(("recipe", "fits"), [("tensorwise", True), ("mxfp8", False)])
def test_block_scales_need_multiples_of_32(recipe: str, fits: bool) -> None:
    model = shape(hidden=1024, layers=2, heads=16, groups=16, ffn=16 * 171, vocabulary=128256)
    config = with_parallel(tensor=1, sequence_parallel=False, fp8="hybrid", fp8_recipe=recipe)
    if fits:
        derive(config, **{**facts(), "shape": model})
        return
    with pytest.raises(ConfigError, match=r"ffn_hidden_size \(2736\) is no multiple of 32"):
        derive(config, **{**facts(), "shape": model})


def test_ranks_that_share_a_sequence_leave_fewer_for_data_and_change_no_flops() -> None:
    plain = derive(with_parallel(), **facts())
    plan = derive(with_parallel(context=2), **facts())
    assert (plain.layout.data, plan.layout.data, plan.layout.num_ranks) == (2, 1, 8)
    assert plan.layout.num_microbatches == 128
    assert (plan.estimate.flops_per_token, plan.estimate.seconds) == (plain.estimate.flops_per_token, plain.estimate.seconds)
    assert "tensor 4 x pipeline 1 x context 2 x data 1" in " ".join(page(plan).split())


def test_context_parallelism_divides_what_a_rank_keeps_of_its_tokens() -> None:
    whole = dataclasses.replace(ONE_RANK, sequence_length=8192, distributed_optimizer=True)
    shared = dataclasses.replace(whole, context=4)
    (one,), (quarter,) = (memory_of_stages(LLAMA3_8B, layout, num_rows=128256) for layout in (whole, shared))
    gradient = 2 * 128256 * 4096  # of the output matrix: with 2,048 tokens more than what the loss adds to their logits
    assert quarter.activations == one.activations / 4
    assert (one.logits, quarter.logits) == (6 * 8192 * 128256, 2 * 2048 * 128256 + gradient)
    assert (quarter.weights, quarter.gradients, quarter.optimizer) == (one.weights, one.gradients, one.optimizer / 4)
    # the CPU's attention keeps the keys and values of the whole sequence: 8 groups x 128 columns, twice, in bf16, in each of 32 layers
    (one,), (quarter,) = (memory_of_stages(LLAMA3_8B, layout, num_rows=128256, build=ON_CPU) for layout in (whole, shared))
    others = 8192 * 3 / 4 * 2 * 8 * 128 * 2 * 32
    assert quarter.activations == pytest.approx(one.activations / 4 + others)


def test_fp8_copies_of_the_layers_matrices_are_counted() -> None:
    plain, fp8 = (memory_of_stages(LLAMA3_8B, dataclasses.replace(ONE_RANK, fp8=kind), num_rows=128256)[0] for kind in ("none", "hybrid"))
    # Llama 3 8B: 218,103,808 weights in a layer's matrices, once as they are and once transposed, a byte each
    assert fp8.weights - plain.weights == 32 * 2 * 218_103_808


def test_the_time_of_fp8_is_unknown_without_an_fp8_peak_and_shares_of_it() -> None:
    config = with_parallel(fp8="hybrid")
    config.gpu.name = "a device that nobody published a run on"
    estimate = derive(config, **facts()).estimate
    for figure in (estimate.seconds, estimate.dense_tflops):
        assert isinstance(figure, Unavailable)
        assert "set gpu.dense_fp8_tflops" in figure.reason
    config.gpu.dense_fp8_tflops = 1979.0
    estimate = derive(config, **facts()).estimate
    assert estimate.dense_tflops == 1979.0  # the peak that utilization is measured by
    assert isinstance(estimate.seconds, Unavailable)
    assert "gpu.fp8_mfu_low" in estimate.seconds.reason  # bf16's share of its peak says nothing about FP8's
    config.gpu.fp8_mfu_low, config.gpu.fp8_mfu_likely, config.gpu.fp8_mfu_high = 0.2, 0.25, 0.3
    plan = derive(config, **facts())
    bf16 = derive(with_parallel(), **facts()).estimate.seconds
    assert plan.estimate.seconds == pytest.approx(bf16 * (989 * 0.4) / (1979 * 0.25))  # type: ignore[operator]
    said = " ".join(page(plan).split())
    assert "1979 TFLOP/s in FP8" in said
    assert "share of peak: 0.2 low, 0.25 likely, 0.3 high" in said
    assert "FP8 hybrid (delayed)" in said


def test_a_wrong_interval_of_fp8_shares_is_refused() -> None:
    config = with_parallel()
    config.gpu.fp8_mfu_low = 0.3
    with pytest.raises(ConfigError, match=r"gpu.fp8_mfu_low, fp8_mfu_likely, fp8_mfu_high = \(0.3, None, None\) are not an interval"):
        derive(config, **facts())


def test_overlap_is_in_the_plan_and_on_its_page_and_changes_no_result() -> None:
    plain = derive(with_parallel(), **facts())
    plan = derive(with_parallel(overlap_grad_reduce=True, overlap_param_gather=True, bucket_size=10_000_000), **facts())
    layout = plan.layout
    assert (layout.overlap_grad_reduce, layout.overlap_param_gather, layout.bucket_size) == (True, True, 10_000_000)
    assert "gradients overlapped, weights overlapped" in " ".join(page(plan).split())
    assert plan.fingerprint == plain.fingerprint == derive(with_parallel(context=2), **facts()).fingerprint
    assert derive(with_parallel(fp8="hybrid"), **facts()).fingerprint != plain.fingerprint


def test_a_plan_from_before_these_options_means_none_of_them(tmp_path: Path) -> None:
    plan = derive(with_parallel(), **facts())
    data = yaml.safe_load(plan.save(tmp_path).read_text(encoding="utf-8"))
    for key in ("context", "overlap_grad_reduce", "overlap_param_gather", "bucket_size", "fp8", "fp8_recipe"):
        del data["layout"][key]
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
    assert RunPlan.load(tmp_path / "plan.yaml") == plan


def test_fully_sharded_state_is_divided_by_the_ranks_but_for_two_layers_and_what_is_in_no_layer() -> None:
    plan = derive(with_parallel(fsdp=True), **facts())
    assert plan.layout.fsdp
    assert "weights in shards (FSDP)" in " ".join(page(plan).split())
    layout = dataclasses.replace(ONE_RANK, fsdp=True, distributed_optimizer=True, data=4, context=2)
    (rank,) = memory_of_stages(SMOLLM2_135M, layout, num_rows=49152)
    # SmolLM2-135M: 134,515,008 parameters, of which 49,152 rows of 576 and the last norm are in no layer, the rest in 30 equal ones
    params, outside = 134_515_008, 49_152 * 576 + 576
    whole = outside + 2 * (params - outside) / 30
    # Rajbhandari et al. 2020, section 5: states of 2 + 4 + 12 bytes a parameter here, each divided by the number of ranks
    assert rank.weights == pytest.approx(2 * params / 8 + 2 * whole)
    assert rank.gradients == pytest.approx(4 * params / 8 + 4 * whole)
    assert rank.optimizer == pytest.approx(12 * params / 8)
