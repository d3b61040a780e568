"""FLOPs, shares of the peak, days and step times against what others published; and how often the interval of shares holds."""

from __future__ import annotations

import dataclasses

from estimate_checks import Check, Group, Mean, published
from megatron_cpt.plan.kernels import Kernels
from megatron_cpt.plan.machine import Machine
from megatron_cpt.plan.model_shape import LatentAttention, ModelShape
from megatron_cpt.plan.run_plan import Layout
from megatron_cpt.plan.step_time import step_time
from megatron_cpt.plan.throughput import flops_per_token, model_flops_utilization
from megatron_cpt.plan.utilization import coverage, published_runs, spread_of_runs

# As in conf/gpu/, which names the sources.
MACHINES = {
    "A100": Machine("A100", 248.0, None, 312, 2.039, 204, 25, 8, 108),
    "H100": Machine("H100", 698.6, 1278, 989, 3.35, 370, 50, 8, 132),
}
# Before fused attention: scores are written; half precision with a scaled loss, dropout as in GPT-3.
KERNELS_2021 = Kernels(flash_attention=False, dropout=True, selective="core_attention", loss_scaling=True)
_ROUNDED = {"26.04.01": "tokens/s are rounded to multiples of 32", "26.06.01": "tokens/s are rounded to multiples of 32"}


def shape_of(layers: int, hidden: int, heads: int, vocabulary: int, length: int, **other: object) -> ModelShape:
    """Return a model in the style of GPT-3, or what `other` makes of it."""
    plain = ModelShape(
        hidden_size=hidden,
        num_layers=layers,
        num_attention_heads=heads,
        num_query_groups=heads,
        head_dim=hidden // heads,
        ffn_hidden_size=4 * hidden,
        num_base_ids=vocabulary,
        max_position=length,
        norm_epsilon=1e-5,
        rotary_base=0.0,
        tied_embeddings=True,
        family="gpt2",
    )
    return dataclasses.replace(plain, **other)  # type: ignore[arg-type]


def _llama(layers: int, hidden: int, heads: int, groups: int, *, ffn: int, vocabulary: int) -> ModelShape:
    return shape_of(layers, hidden, heads, vocabulary, 8192, num_query_groups=groups, ffn_hidden_size=ffn, family="llama")


def _qwen3(layers: int, hidden: int, heads: int, ffn: int, experts: int) -> ModelShape:
    mixture = {"num_query_groups": 4, "head_dim": 128, "ffn_hidden_size": ffn, "num_experts": experts, "experts_per_token": 8}
    return shape_of(layers, hidden, heads, 151936, 4096, family="qwen3_moe", **mixture)


def _nemotron(layers: int, hidden: int, heads: int, groups: int) -> ModelShape:
    return shape_of(layers, hidden, heads, 256000, 4096, family="nemotron", num_query_groups=groups, tied_embeddings=False)


def _deepseek(
    layers: int, hidden: int, vocabulary: int, *, experts: tuple[int, int, int], dense: tuple[int, int], **other: int
) -> ModelShape:
    """Return a model of the reports' sections on hyperparameters (arXiv 2405.04434, 3.1.2; 2412.19437, 4.2).

    Args:
        experts: how many, how many a token is sent to, and the middle of one.
        dense: first layers without experts, and their middle.
    """
    count, chosen, middle = experts
    return shape_of(
        layers, hidden, 128, vocabulary, 4096, family="deepseek", latent=LatentAttention(1536, 512, 128, 64, 128), num_experts=count,
        experts_per_token=chosen, ffn_hidden_size=middle, num_dense_layers=dense[0], dense_ffn_hidden_size=dense[1],
        tied_embeddings=False, **other,
    )  # fmt: skip


_DEEPSEEK_V3 = _deepseek(61, 7168, 129280, experts=(256, 8, 2048), dense=(3, 18432), shared_ffn_hidden_size=2048)
MODELS = {
    "LLAMA3_8B": _llama(32, 4096, 32, 8, ffn=14336, vocabulary=128256),
    "LLAMA3_70B": _llama(80, 8192, 64, 8, ffn=28672, vocabulary=128256),
    "LLAMA3.1_405B": _llama(126, 16384, 128, 8, ffn=53248, vocabulary=128256),
    "LLAMA3-8B": _llama(32, 4096, 32, 8, ffn=14336, vocabulary=128256),
    "LLAMA3-70B": _llama(80, 8192, 64, 8, ffn=28672, vocabulary=128256),
    "LLAMA2-7B": _llama(32, 4096, 32, 32, ffn=11008, vocabulary=32000),
    "LLAMA2-13B": _llama(40, 5120, 40, 40, ffn=13824, vocabulary=32000),
    "LLAMA2-70B": _llama(80, 8192, 64, 8, ffn=28672, vocabulary=32000),
    "GPT3-175B": shape_of(96, 12288, 96, 51200, 2048),
    "Qwen3_30B_a3B": _qwen3(48, 2048, 32, 768, 128),
    "Qwen3_235B_a22B": _qwen3(94, 4096, 64, 1536, 128),
    "DeepSeekV3": dataclasses.replace(_DEEPSEEK_V3, num_mtp_layers=1),
    "DeepSeekV3-noMTP": _DEEPSEEK_V3,
    "DeepSeekV2": _deepseek(60, 5120, 102400, experts=(160, 6, 1536), dense=(1, 12288), shared_ffn_hidden_size=3072),
    "GPT-OSS-120B": shape_of(
        36, 2880, 64, 201088, 4096, family="qwen3_moe", num_query_groups=8, head_dim=64, ffn_hidden_size=2880, num_experts=128,
        experts_per_token=4, window=128, full_every=2, tied_embeddings=False,
    ),
    "GPT3-5B": shape_of(24, 4096, 32, 51200, 2048),
    "Nemotron-8B": _nemotron(32, 4096, 32, 32),
    "Nemotron-22B": _nemotron(40, 6144, 48, 48),
    "Nemotron-340B": _nemotron(96, 18432, 96, 8),
}  # fmt: skip
_NARAYANAN = {"174.6": shape_of(96, 12288, 96, 51200, 2048), "529.6": shape_of(105, 20480, 128, 51200, 2048)}


def hardware_flops_per_token(shape: ModelShape, *, num_rows: int, sequence_length: int) -> float:
    """Count as Narayanan et al. 2021, equation 3: attention in full, and every layer's forward pass twice."""
    counted = {"sequence_length": sequence_length, "causal": False}
    return flops_per_token(shape, num_rows=num_rows, **counted) + flops_per_token(shape, num_rows=0, **counted) / 3


def _excluded(row: dict[str, str]) -> str:
    if row["model"] == "GPT-OSS-120B" and row["release"] < "26.06":
        return "27.2 GFLOP a token, where later releases of the same summary count 32.6 for the same model: it contradicts itself"
    return _ROUNDED.get(row["release"], "")


def flops_checks() -> list[Check]:
    checks = []
    for row in published("flops.csv"):
        shape, causal = MODELS[row["model"]], row["causal"] == "true"
        tolerance = 0.0065 if shape.num_experts else 0.003  # Megatron-LM's count leaves the router out, 0.3 % of DeepSeek-V3
        ours = flops_per_token(shape, num_rows=shape.num_base_ids, sequence_length=int(row["sequence"]), causal=causal) / 1e9
        checks.append(
            Check(
                id=row["id"],
                what=f"FLOPs a token at {row['sequence']} tokens, {'causal' if causal else 'attention in full'}",
                published=float(row["tflops_gpu"]) / float(row["tokens_s_gpu"]) * 1e3,
                ours=ours,
                unit="GFLOP",
                source=row["source"],
                tolerance=tolerance,
                excluded=_excluded(row),
            )
        )
    return checks


def days_checks() -> list[Check]:
    """Days from published rates: what the planner's arithmetic makes of tokens, devices and FLOPs."""
    checks = []
    for row in published("days.csv"):
        if row["tflops_gpu"]:
            shape = _NARAYANAN[row["model"]]
            seconds = hardware_flops_per_token(shape, num_rows=51200, sequence_length=2048) / (float(row["tflops_gpu"]) * 1e12)
            what, tolerance, absolute = f"{row['gpus']} GPUs at {row['tflops_gpu']} TFLOP/s", 0.015, False
        else:
            seconds = 1 / float(row["tokens_s_gpu"])
            what, tolerance, absolute = f"{row['gpus']} GPUs at {row['tokens_s_gpu']} tokens/s each", 0.5, True
        ours = float(row["tokens"]) * seconds / int(row["gpus"]) / 86400
        checks.append(Check(row["id"], what, float(row["days"]), ours, "days", row["source"], tolerance=tolerance, absolute=absolute))
    return checks


def utilization_checks() -> list[Check]:
    """Shares of an A100's peak from published seconds; attention is counted in full, as those papers do."""
    checks = []
    for row in published("utilization.csv"):
        layers, hidden, length = int(row["layers"]), int(row["hidden"]), int(row["sequence"])
        shape = shape_of(layers, hidden, 128, int(row["vocabulary"]), length)
        tokens = int(row["global_batch"]) * length
        flops = flops_per_token(shape, num_rows=int(row["vocabulary"]), sequence_length=length, causal=False)
        given = {"seconds": float(row["seconds"]), "num_devices": int(row["gpus"]), "dense_tflops": 312.0}
        tolerance, source = float(row["tolerance_points"]), row["source"]
        share = 100 * model_flops_utilization(flops=flops * tokens, **given)
        checks.append(Check(f"{row['id']}-mfu", "model FLOPs", float(row["mfu_pct"]), share, "%", source, tolerance, absolute=True))
        if row["hfu_pct"]:  # its appendix A counts s/(3h) for attention in place of s/(6h): 12 s h a layer more
            repeated = 12 * layers * length * hidden
            share = 100 * model_flops_utilization(flops=(flops + repeated) * tokens, **given)
            checks.append(Check(f"{row['id']}-hfu", "hardware FLOPs", float(row["hfu_pct"]), share, "%", source, tolerance, absolute=True))
    for row in published("torchtitan_mfu.csv"):
        shape = MODELS[row["model"]]
        flops = flops_per_token(shape, num_rows=shape.num_base_ids, sequence_length=int(row["sequence"]), causal=False)
        share = 100 * model_flops_utilization(flops=flops * float(row["tokens_s_gpu"]), seconds=1.0, num_devices=1, dense_tflops=989.0)
        checks.append(Check(row["id"], "model FLOPs", float(row["mfu_pct"]), share, "%", row["source"], 0.5, absolute=True))
    return checks


def predicted_seconds(row: dict[str, str]) -> float:
    """Predict a published step; of what the source does not print (micro-batch, chunks) the best is taken, as its authors say they did."""
    number = {key: int(value) for key, value in row.items() if value.isdigit()}
    shape = shape_of(number["layers"], number["hidden"], number["heads"], number["vocabulary"], number["sequence"])
    data = number["gpus"] // (number["tensor"] * number["pipeline"])
    modern = row["gpu"] == "H100" or row["id"].startswith("MS")
    kernels = Kernels() if modern else dataclasses.replace(KERNELS_2021, overlap_tensor=row["id"].startswith("K22"))
    per_rank = number["global_batch"] // data
    micro = [number["micro_batch"]] if row["micro_batch"] else [size for size in (1, 2, 4, 8, 16) if per_rank % size == 0]
    layers = number["layers"] // number["pipeline"]
    chunks = [number["chunks"]] if row["chunks"] else [1] + [size for size in range(2, layers + 1) if layers % size == 0]
    chunks = chunks if number["pipeline"] > 1 else [1]
    return min(
        step_time(
            shape,
            Layout(
                tensor=number["tensor"],
                pipeline=number["pipeline"],
                data=data,
                micro_batch_size=size,
                global_batch_size=number["global_batch"],
                sequence_length=number["sequence"],
                sequence_parallel=row["sequence_parallel"] == "true",
                distributed_optimizer=modern,
                dtype="bf16",
                num_nodes=max(number["gpus"] // 8, 1),
                threads_per_rank=1,
                virtual_pipeline=virtual,
                recompute="selective" if row["recompute"] == "core_attention" else "full" if row["recompute"] == "full" else "none",
                overlap_grad_reduce=modern,
                overlap_param_gather=modern,
            ),
            MACHINES[row["gpu"]],
            num_rows=number["vocabulary"],
            kernels=kernels,
        ).total
        for size in micro
        for virtual in chunks
        if virtual == 1 or per_rank // size % number["pipeline"] == 0
    )


def step_checks() -> list[Check]:
    calculon = {
        "K22-full-22B": "-1.4 %", "K22-sp-22B": "+3.6 %", "K22-full-175B": "-0.6 %", "K22-sp-175B": "-0.8 %", "K22-full-530B": "+1.7 %",
        "K22-sp-530B": "-8.9 %", "K22-full-1T": "-4.6 %", "K22-sp-1T": "-7.6 %",
    }  # fmt: skip
    return [
        Check(
            id=row["id"],
            what=f"a step on {row['gpus']} {row['gpu']}, tp {row['tensor']}, pp {row['pipeline']}, recompute {row['recompute']}",
            published=float(row["seconds"]),
            ours=predicted_seconds(row),
            unit="s",
            source=row["source"],
            tolerance=0.10 if row["id"].startswith("K22") else None,
            other=f"calculon {calculon[row['id']]}" if row["id"] in calculon else "",
        )
        for row in published("step_times.csv")
    ]


def group() -> Group:
    steps = step_checks()
    inside, judged, outside = coverage()
    missed = ", ".join(f"{run.id} ({run.share:.3f})" for run in outside)
    return Group(
        title="FLOPs, shares of the peak, days and step times",
        order=20,
        intro="FLOPs are model FLOPs in the convention that each row names. Step times come from the step model"
        " ([planning](../reference/planning.md)) on the rates of `conf/gpu/`, none of which was measured in a training run."
        " Rows without a tolerance are reported.",
        checks=(*flops_checks(), *utilization_checks(), *days_checks(), *steps),
        means=(
            Mean("step time, Korthikanti 2022", tuple(step for step in steps if step.id.startswith("K22"))),
            Mean("step time, Narayanan 2021", tuple(step for step in steps if step.id.startswith("N21"))),
            Mean("step time, Megatron-Core on H100", tuple(step for step in steps if step.id.startswith("MC"))),
            Mean("step time, MegaScale's Megatron-LM rows", tuple(step for step in steps if step.id.startswith("MS"))),
        ),
        closing="Interval of the share of the peak, each published run left out in turn:"
        f" {inside} of {judged} runs fell inside ({inside / judged:.0%}, 90 % wanted; {len(published_runs())} runs, spread of the logarithm"
        f" {spread_of_runs():.3f}). Outside: {missed}.",
    )
