"""The CPU backend: megatron-core over gloo, without a GPU driver."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from megatron_cpt.backend import adam, kernels, shim
from megatron_cpt.backend.base import Backend
from megatron_cpt.backend.layers import FUSIONS_OFF, LOCAL_EXPERTS, load_megatron_quietly, local_layer_spec
from megatron_cpt.plan.run_plan import Layout

# Warnings that megatron and torch repeat on every rank and that a user of the CPU backend can do nothing about.
_ABOUT_OTHER_MACHINES = (
    "When using sequence parallelism it is recommended to set the environment variable CUDA_DEVICE_MAX_CONNECTIONS",
    r"`torch\.distributed\.(reduce_scatter_tensor|all_gather_into_tensor)` is deprecated",
    "`load_state_dict` is deprecated and will be removed",
    "Please use DTensor instead and we are deprecating ShardedTensor",
    "The .grad attribute of a Tensor that is not a leaf Tensor is being accessed",
)


class CpuBackend(Backend):
    """Installs the shim, then loads megatron; see `choose`."""

    kind = "cpu"
    dist_backend = "gloo"

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        shim.install()
        with shim.uncompiled():
            load_megatron_quietly()
        for message in _ABOUT_OTHER_MACHINES:
            warnings.filterwarnings("ignore", message=message)
        shim.redirect_rng_tracker()
        shim.stand_in_for_fsdp()
        adam.put_into_megatron()
        kernels.put_into_megatron()

    def describe(self) -> dict[str, str]:
        return {
            "transformer_engine": "not used on cpu: megatron's linear layers, torch's rms_norm and scaled_dot_product_attention",
            "apex": "not used on cpu: torch's fused AdamW",
            "flash_attn": "not used on cpu: torch's scaled_dot_product_attention",
        }

    def layer_spec(self, config: Any) -> Any:
        return local_layer_spec(config)

    def problems_of(self, layout: Layout) -> list[str]:
        return [] if layout.fp8 == "none" else [f"parallel.fp8={layout.fp8}: no CPU kernel multiplies FP8 matrices."]

    def use_local_device(self, local_rank: int) -> None:
        pass  # every rank of a host shares its one CPU

    def device_name(self) -> str | None:
        return None

    def config_overrides(self, *, has_experts: bool = False) -> dict[str, Any]:
        return {**FUSIONS_OFF, "use_cpu_initialization": True, **(LOCAL_EXPERTS if has_experts else {})}
