"""What ZeRO keeps on each GPU and in the host's memory: bytes of model states, by stage and by what is offloaded.

Sources: Rajbhandari et al. 2020 (arXiv 1910.02054, section 5 and figure 1) for what must be kept, DeepSpeed's own estimators
(`estimate_zero2_model_states_mem_needs`, `estimate_zero3_model_states_mem_needs`; docs/code-docs/source/memory.rst) for what it says
that it takes. Activations come on top.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Stage = Literal[0, 1, 2, 3]
Offload = Literal["none", "optimizer", "optimizer and weights"]
_HOST_BUFFERS = 1.5  # DeepSpeed's additional_buffer_factor, its estimators' default


@dataclass(frozen=True)
class StateBytes:
    """Bytes of one parameter's weight, gradient and optimizer state: 2, 2 and 12 in mixed precision with Adam (K = 12)."""

    weight: int = 2
    gradient: int = 2
    optimizer: int = 12


MIXED_ADAM = StateBytes()
FULL_ADAM = StateBytes(weight=4, gradient=4, optimizer=8)


def zero_states_bytes(num_params: float, *, num_gpus: int, stage: Stage, states: StateBytes = MIXED_ADAM) -> float:
    """Return the model states on one GPU: stage 1 shares out the optimizer, 2 the gradients too, 3 the weights too (section 5)."""
    weight = states.weight / (num_gpus if stage >= 3 else 1)
    gradient = states.gradient / (num_gpus if stage >= 2 else 1)
    optimizer = states.optimizer / (num_gpus if stage >= 1 else 1)
    return num_params * (weight + gradient + optimizer)


def deepspeed_gpu_bytes(num_params: float, *, largest_module: float, num_gpus: int, stage: Stage, offload: Offload = "none") -> float:
    """Return what DeepSpeed's estimator says of one GPU at stage 2 or 3, mixed precision with Adam.

    Stage 2 is the formula of release 0.19, 2 P + 18 P / n; the documentation's figures are of the older `documented_zero2_gpu_bytes`.
    """
    if stage == 2:
        return 2 * num_params + (0 if offload != "none" else 18 * num_params / num_gpus)
    gathered = 4 * largest_module
    if offload == "optimizer and weights":
        return gathered
    return gathered + (2 if offload == "optimizer" else 18) * num_params / num_gpus


def documented_zero2_gpu_bytes(num_params: float, *, num_gpus: int) -> float:
    """Return ZeRO-2's 4 P + 16 P / n of DeepSpeed's documentation, where gradients are whole in bf16 on each GPU."""
    return 4 * num_params + 16 * num_params / num_gpus


def deepspeed_host_bytes(
    num_params: float, *, largest_module: float, gpus_per_node: int, num_nodes: int, stage: Stage, offload: Offload
) -> float:
    """Return what DeepSpeed's estimator says of one node's host memory, with the weights of stage 3 sharded when they are made."""
    if stage == 2:
        a_param = 4 * gpus_per_node if offload == "none" else max(4 * gpus_per_node * num_nodes, 16)
        return num_params * a_param * _HOST_BUFFERS
    if offload == "none":
        return largest_module * 4 * gpus_per_node * _HOST_BUFFERS
    return num_params * (16 if offload == "optimizer" else 18) / num_nodes * _HOST_BUFFERS
