"""What a backend offers to the code above it."""

from __future__ import annotations

import abc
from typing import Any, Literal

import torch

from megatron_cpt.plan.run_plan import Layout


class Backend(abc.ABC):
    """A kind of device, the collectives that fit it, and the layers and optimizer that megatron builds on it.

    Attributes:
        kind: `cpu` or `cuda`.
        device: where parameters and batches live.
        dist_backend: name of the collectives' implementation for `torch.distributed`.
    """

    kind: Literal["cpu", "cuda"]
    device: torch.device
    dist_backend: str

    @abc.abstractmethod
    def describe(self) -> dict[str, str]:
        """Return, for transformer_engine, apex and flash_attn, the version in use or what is used instead."""

    @abc.abstractmethod
    def layer_spec(self, config: Any) -> Any:
        """Return megatron's block submodules for this pipeline rank (`config` is a TransformerConfig)."""

    @abc.abstractmethod
    def config_overrides(self, *, has_experts: bool = False) -> dict[str, Any]:
        """Return the TransformerConfig fields that this backend decides; with experts also how tokens reach them."""

    @abc.abstractmethod
    def problems_of(self, layout: Layout) -> list[str]:
        """Return what of a layout this backend cannot do here, each as one sentence that names the key."""

    @abc.abstractmethod
    def use_local_device(self, local_rank: int) -> None:
        """Bind this process to the device of its number on this host."""

    @abc.abstractmethod
    def device_name(self) -> str | None:
        """Return what tells this rank's device from every other; None where ranks share one."""
