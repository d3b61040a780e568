"""The CUDA backend: Transformer Engine and a fused Adam where they are installed, torch's own kernels where they are not."""

from __future__ import annotations

import importlib.util
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from megatron_cpt.backend import adam
from megatron_cpt.backend.base import Backend
from megatron_cpt.backend.layers import FUSIONS_OFF, load_megatron_quietly, local_layer_spec, make_gemma
from megatron_cpt.errors import ConfigError
from megatron_cpt.plan.run_plan import Layout

# Module whose presence proves the package: PyPI's `apex` is another project, and only NVIDIA's compiles `amp_C`.
_PROOF = {"transformer_engine": "transformer_engine", "apex": "amp_C", "flash_attn": "flash_attn"}


def installed_versions() -> dict[str, str | None]:
    """Return the version of each optional CUDA package, `found` where it has none, None where it is not installed."""
    found: dict[str, str | None] = {}
    for package, proof in _PROOF.items():
        if importlib.util.find_spec(proof) is None:
            found[package] = None
            continue
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "found"
    return found


def in_use(found: dict[str, str | None]) -> dict[str, str]:
    """Return, for each optional package, the version in use or what is used instead."""
    engine = found["transformer_engine"]
    instead = {
        "transformer_engine": "not found: megatron's linear layers, torch's rms_norm and scaled_dot_product_attention",
        "apex": "not found: Transformer Engine's fused Adam" if engine else "not found: torch's fused AdamW",
        "flash_attn": "not found: Transformer Engine's fused attention" if engine else "not found: torch's scaled_dot_product_attention",
    }
    named = {package: found[package] or instead[package] for package in found}
    if engine and found["apex"]:
        named["apex"] = f"{found['apex']}, not used: Transformer Engine's fused Adam"
    if found["flash_attn"] and not engine:
        named["flash_attn"] = f"{found['flash_attn']}, not used without Transformer Engine: torch's scaled_dot_product_attention"
    return named


def fp8_problems(found: dict[str, str | None], layout: Layout) -> list[str]:
    """Say why FP8 cannot run with the packages that were found."""
    if layout.fp8 == "none" or found["transformer_engine"]:
        return []
    return [
        f"parallel.fp8={layout.fp8}: Transformer Engine is not installed here, and nothing else multiplies FP8 matrices for megatron-core."
    ]


class CudaBackend(Backend):
    """One process per CUDA device, NCCL between them."""

    kind = "cuda"
    dist_backend = "nccl"

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise ConfigError(
                "No CUDA device can be used here.",
                where="cluster.backend",
                value="cuda",
                rule="torch sees a device: python -c 'import torch; print(torch.cuda.is_available())'",
                next_step="Use cluster.backend=cpu, or install the CUDA build of torch on a machine with a GPU.",
            )
        self.device = torch.device("cuda")
        self.found = installed_versions()
        load_megatron_quietly()
        if not self.found["transformer_engine"] and not self.found["apex"]:
            adam.put_into_megatron()

    def describe(self) -> dict[str, str]:
        return in_use(self.found)

    def layer_spec(self, config: Any) -> Any:
        if not self.found["transformer_engine"]:
            return local_layer_spec(config)
        from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec  # noqa: PLC0415

        layer = get_gpt_layer_with_transformer_engine_spec(
            num_experts=config.num_moe_experts, moe_grouped_gemm=config.moe_grouped_gemm, qk_layernorm=config.qk_layernorm
        )
        if config.layernorm_zero_centered_gamma:
            from megatron.core.extensions.transformer_engine import TENorm  # noqa: PLC0415

            make_gemma(layer, norm=TENorm)
        return layer

    def config_overrides(self, *, has_experts: bool = False) -> dict[str, Any]:
        engine = bool(self.found["transformer_engine"])
        experts = {"moe_grouped_gemm": engine, "moe_token_dispatcher_type": "alltoall"} if has_experts else {}
        return {**({} if engine else FUSIONS_OFF), **experts}

    def problems_of(self, layout: Layout) -> list[str]:
        return fp8_problems(self.found, layout)

    def use_local_device(self, local_rank: int) -> None:
        torch.cuda.set_device(local_rank)
        self.device = torch.device("cuda", local_rank)

    def device_name(self) -> str | None:
        return f"GPU {torch.cuda.get_device_properties(self.device).uuid}"
