"""Seconds of collectives, from bytes, bandwidth and hops: rings for reductions and gathers, direct exchange for all-to-all.

A ring over n ranks passes (n - 1) pieces of 1/n of the data for a gather or a reduce-scatter, and twice that for an all-reduce
(Thakur, Rabenseifner and Gropp 2005, "Optimization of collective communication operations in MPICH", section 4).
"""

from __future__ import annotations

from megatron_cpt.plan.machine import HOP_SECONDS, NETWORK_SHARE, Machine
from megatron_cpt.plan.run_plan import Layout

_BUCKET_PARAMS = 40_000_000  # megatron-core: max(40 million, 1 million x data-parallel ranks) parameters are sent together


def bucket_params(layout: Layout, num_params: int) -> int:
    """Return how many of a rank's parameters are reduced together: all, unless gradients go beside the backward pass."""
    if not layout.overlap_grad_reduce:
        return num_params
    return min(layout.bucket_size or max(_BUCKET_PARAMS, 1_000_000 * layout.data * layout.context), num_params)


def gather_seconds(machine: Machine, num_bytes: float, *, group: int, stride: int = 1) -> float:
    """Return the seconds of an all-gather to, or a reduce-scatter from, `num_bytes` on each of `group` ranks."""
    if group == 1:
        return 0.0
    return (group - 1) * (num_bytes / group / machine.bus_bytes_per_second(group=group, stride=stride) + HOP_SECONDS)


def all_reduce_seconds(machine: Machine, num_bytes: float, *, group: int, stride: int = 1) -> float:
    """Return the seconds of a reduce-scatter and the all-gather after it."""
    return 2 * gather_seconds(machine, num_bytes, group=group, stride=stride)


def all_to_all_seconds(machine: Machine, num_bytes: float, *, group: int, stride: int = 1) -> float:
    """Return the seconds in which each of `group` ranks sends `num_bytes` away, the same to each rank.

    What stays in the node and what leaves it go side by side.
    """
    if group == 1:
        return 0.0
    members = min(group, max(1, machine.devices_per_node // stride))
    inside, outside = (members - 1) / group, (group - members) / group
    link, network = machine.link_gb_per_second * 1e9, machine.network_gb_per_second * NETWORK_SHARE * 1e9
    return max(num_bytes * inside / link, num_bytes * outside / network) + HOP_SECONDS


def send_seconds(machine: Machine, num_bytes: float, *, leaves_node: bool) -> float:
    """Return the seconds of one message between two neighbours of a pipeline or of a ring of sequences."""
    if leaves_node:
        return num_bytes / (machine.network_gb_per_second * NETWORK_SHARE * 1e9) + HOP_SECONDS
    return num_bytes / (machine.link_gb_per_second * 1e9) + HOP_SECONDS
