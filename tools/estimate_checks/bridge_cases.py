"""Peaks that NVIDIA's Megatron Bridge prints for its recipes, and what of a recipe is not printed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from estimate_checks import Check, published
from estimate_checks.golden_cases import layout, model
from megatron_cpt.plan.activations import TRANSFORMER_ENGINE
from megatron_cpt.plan.memory import Build, memory_of_stages
from megatron_cpt.plan.model_shape import LatentAttention, ModelShape
from megatron_cpt.plan.run_plan import Layout

_LLAMA_70B = model("llama", hidden=8192, layers=80, heads=64, groups=8, ffn=28672, positions=8192)
# Moonlight-16B-A3B's config.json: 27 layers, the first dense; 64 experts, 6 a token, and 2 shared ones
_MOONLIGHT = model(
    "deepseek", hidden=2048, layers=27, heads=16, ffn=1408, positions=8192, num_experts=64, experts_per_token=6, num_dense_layers=1,
    dense_ffn_hidden_size=11264, shared_ffn_hidden_size=2816, latent=LatentAttention(0, 512, 128, 64, 128),
)  # fmt: skip
_MAMBA = "most of its layers are Mamba's, which the planner does not describe"
_NOT_PRINTED = "neither its sequence length nor its batch is printed, and its optimizer state moves to the host"
# llama3_70b_sft_config_h100: FP8 weights alone and without a cached transpose, gradients in bf16; moonlight_16b_pretrain_config: gradients
# and both moments in bf16, of the master weights the 16 bits that the weights lack, the loss fused (NVIDIA-NeMo/Megatron-Bridge)
_SFT = Build(gradient_bytes=2, fp8_weights=True)
_PRECISION_AWARE = Build(operations=replace(TRANSFORMER_ENGINE, loss_bytes=0), gradient_bytes=2, optimizer_bytes=6, expert_tensor=1)
_TOLERANCES = {
    ("4", "4", "core_attn"): "BM-70b-sft-baseline-tp4pp4vpp5dp2",
    ("8", "4", "core_attn"): "BM-70b-sft-tp8pp4vpp5dp1",
    ("4", "4", "mlp"): "BM-70b-sft-mlp-recompute",
}


def _layout(row: dict[str, str]) -> Layout:
    tensor, pipeline = int(row["tp"]), int(row["pp"])
    return layout(
        tensor=tensor, pipeline=pipeline, gpus=int(row["dp"]) * tensor * pipeline, micro=int(row["mbs"]), batch=int(row["gbs"]),
        sequence=int(row["seq"]), virtual_pipeline=int(row["vpp"] or 1), sequence_parallel=tensor > 1, expert=int(row["ep"] or 1),
        fp8="hybrid" if row["precision"].startswith("FP8") else "none", recompute="selective",
    )  # fmt: skip


def _case(row: dict[str, str]) -> tuple[ModelShape, int, Build, str]:
    if row["model"].startswith("Llama3-70B"):
        return _LLAMA_70B, 128256, _SFT, ""
    if row["model"].startswith("Moonlight"):
        return _MOONLIGHT, 163840, _PRECISION_AWARE, ""
    return _MOONLIGHT, 163840, _PRECISION_AWARE, _MAMBA if row["model"].startswith("Nemotron") else _NOT_PRINTED


def bridge_checks() -> Iterator[Check]:
    """Yield one row per printed peak: the largest rank's."""
    for row in published("bridge_measured_memory.csv"):
        shape, num_rows, build, excluded = _case(row)
        name = _TOLERANCES.get((row["tp"], row["pp"], row["recompute"]), "BM")
        what = f"{row['model']}, TP {row['tp']} PP {row['pp']} VPP {row['vpp']} EP {row['ep']}, recompute {row['recompute']}"
        if excluded:
            yield Check(name, what, float(row["peak_alloc_gb"]), float("nan"), "GB", row["source"], excluded=excluded)
            continue
        modules = frozenset(row["recompute"].strip("[]").replace("core_attn", "").split("+"))
        stages = memory_of_stages(shape, _layout(row), num_rows=num_rows, build=replace(build, recompute_modules=modules))
        ours = max(rank.allocated_peak for rank in stages) / 1e9
        yield Check(name, what, float(row["peak_alloc_gb"]), ours, "GB", row["source"], 0.10 if name != "BM" else None)
