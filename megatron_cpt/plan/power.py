"""What a device draws with its part of the node and of the network: from the node's parts, or from a measured node.

Rated power is not used as it stands: a node of eight H100s is rated at 10.2 kW, was seen at 8.4 kW at most while training (arXiv
2412.08602), and draws less than that on average. Cooling comes with the site's PUE, not here.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_cpt.config.schema import GpuConfig
from megatron_cpt.record.unknown import Interval, Range, Unavailable

SPREAD_OF_NODES = 0.114  # mean absolute error of the best published power model over training nodes (arXiv 2506.14551)


@dataclass(frozen=True)
class NodePower:
    """Watts of one device with its part of the rest; `parts` says in words what they are made of."""

    watts: Range
    parts: str


def node_power(gpu: GpuConfig, *, num_nodes: int) -> NodePower:
    """Return what one device draws while training, as an interval.

    A measured `node_watts_per_device` stands for device and node, with the published spread between training runs around it; else both
    are added up: rated watts x share of them in training + rest of the node. Switches are added for runs over several nodes where known.
    """
    own, parts = _of_node(gpu)
    if isinstance(own, Unavailable) or num_nodes == 1:
        return NodePower(own, parts)
    if gpu.network_watts is None:
        return NodePower(own, f"{parts}; network switches are not counted (set gpu.network_watts)")
    watts = gpu.network_watts
    return NodePower(Interval(own.low + watts, own.likely + watts, own.high + watts), f"{parts} + {watts:g} W of network switches")


def _of_node(gpu: GpuConfig) -> tuple[Range, str]:
    measured = gpu.node_watts_per_device
    if measured is not None:
        wide = SPREAD_OF_NODES * measured
        return Interval(
            measured - wide, measured, measured + wide
        ), f"{measured:g} W a device of a measured node, and {SPREAD_OF_NODES:.1%} each way"
    rated, rest = gpu.device_watts, gpu.rest_of_node_watts
    shares = (gpu.watts_share_low, gpu.watts_share_likely, gpu.watts_share_high)
    low, likely, high = shares
    if rated is None or rest is None or low is None or likely is None or high is None:
        missing = [
            key
            for key, value in (
                ("gpu.device_watts", rated),
                ("gpu.watts_share_low, _likely and _high", None if None in shares else 0),
                ("gpu.rest_of_node_watts", rest),
            )
            if value is None
        ]
        of_parts = f", or {' and '.join(missing)}" if rated is not None else ""
        return Unavailable(f"set gpu.node_watts_per_device{of_parts}"), ""
    watts = Interval(*(rated * share + rest for share in (low, likely, high)))
    return watts, f"{rated:g} W rated x {likely:g} ({low:g} to {high:g}) in training + {rest:g} W for the rest of the node"
