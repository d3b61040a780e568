"""What writing and reading a checkpoint takes beside the model's state, on the device and in the host's memory.

megatron-core reads weights, and the state of an optimizer that every rank holds whole, into the tensors that are there
(core/dist_checkpointing/strategies/torch.py). The distributed optimizer's checkpoint (`fully_reshardable`) goes through whole fp32
tensors of the rank's tensor and pipeline part in the host's memory: master weights and both moments
(core/optimizer/distrib_optimizer.py, `get_parameter_state_dp_zero`).
"""

from __future__ import annotations

from megatron_cpt.plan.communication import bucket_params
from megatron_cpt.plan.run_plan import Layout

_PARTS, _FP32_BYTES = 3, 4  # master weights and two moments


def gathered_bytes(layout: Layout, *, num_params: int) -> float:
    """Return what a device adds for a save: one part of one bucket, whole, beside the rank's own shard of it."""
    if not layout.distributed_optimizer or layout.fsdp:
        return 0.0
    sharers = layout.data * layout.context
    return _FP32_BYTES * bucket_params(layout, num_params) * (1 + 1 / sharers)


def host_load_bytes(layout: Layout, *, num_params: int) -> float:
    """Return what one rank takes of the host's memory to read a checkpoint: every rank asks for the whole tensors."""
    return float(_PARTS * _FP32_BYTES * num_params) if layout.distributed_optimizer or layout.fsdp else 0.0


def host_save_bytes(layout: Layout, *, num_params: int) -> float:
    """Return what one rank takes of the host's memory to write one: the whole tensors, its shards, and a bucket in pieces and joined.

    Fully sharded, the whole tensors are spread over the ranks.
    """
    sharers = layout.data * layout.context
    if layout.fsdp:
        return _PARTS * _FP32_BYTES * num_params / sharers
    if not layout.distributed_optimizer:
        return 0.0
    bucket = bucket_params(layout, num_params)
    return _FP32_BYTES * (_PARTS * num_params + _PARTS * bucket / sharers + 2 * bucket)
