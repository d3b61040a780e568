"""What one device and its links can do, in the units of time: the rates that the step-time model divides work by.

Rates are measured ones, by others and none of them in a training run; conf/gpu/*.yaml names the source of each. Of a data sheet's
memory bandwidth nine tenths reach a large kernel, and of a network card's line rate as much reaches a large transfer
(calculon-ai/calculon, systems/a100_80g.json; NVIDIA/nccl-tests issue 119: 96 of 100 GB/s at most, 85 on average).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from megatron_cpt.config.schema import ClusterConfig, GpuConfig
from megatron_cpt.record.unknown import Unavailable

MEMORY_SHARE = 0.9
NETWORK_SHARE = 0.9
FP32_REASON = "a GPU's rates are known for bf16 and FP8 products: set parallel.dtype=bf16"
HOP_SECONDS = 2e-6  # of one step of a collective: nccl-tests' small all-reduces on 8 devices take 25 to 30 us for their 14 steps


@dataclass(frozen=True)
class Machine:
    """Rates of one device.

    Attributes:
        matmul_tflops: what large bf16 products reach (fp32 on a CPU), and `matmul_fp8_tflops` FP8 ones, None where there are none.
        peak_tflops: the data sheet's dense bf16 rate.
        memory_tb_per_second: of the data sheet.
        link_gb_per_second: between two devices of a node, in each direction, as nccl-tests measures it ("bus bandwidth").
        network_gb_per_second: line rate of one device's card to other nodes, in each direction.
        num_multiprocessors: units that work on one tile of a product each; 0 where a product is not tiled (a CPU).
    """

    name: str
    matmul_tflops: float
    matmul_fp8_tflops: float | None
    peak_tflops: float
    memory_tb_per_second: float
    link_gb_per_second: float
    network_gb_per_second: float
    devices_per_node: int
    num_multiprocessors: int = 0

    def bus_bytes_per_second(self, *, group: int, stride: int) -> float:
        """Return the bandwidth of a ring over `group` ranks that are `stride` apart.

        A ring that leaves the node has as many network cards as it has members in a node.
        """
        link = self.link_gb_per_second
        members = min(group, max(1, self.devices_per_node // stride))
        if group <= members:
            return link * 1e9
        return min(link, self.network_gb_per_second * NETWORK_SHARE * members) * 1e9

    def memory_seconds(self, num_bytes: float) -> float:
        """Return how long it takes to read or write so many bytes of the device's memory."""
        return num_bytes / (self.memory_tb_per_second * MEMORY_SHARE * 1e12)


def machine_of(gpu: GpuConfig, cluster: ClusterConfig, *, dtype: str = "bf16") -> Machine | Unavailable:
    """Return the machine of a configuration, or which keys would set it. Nothing is assumed of a device."""
    if cluster.backend == "cuda" and dtype == "fp32":
        return Unavailable(FP32_REASON)
    needed = {
        "gpu.dense_tflops": gpu.dense_tflops,
        "gpu.matmul_tflops": gpu.matmul_tflops,
        "gpu.memory_tb_per_second": gpu.memory_tb_per_second,
        "gpu.link_gb_per_second": gpu.link_gb_per_second,
        "gpu.network_gb_per_second": gpu.network_gb_per_second,
    }
    if cluster.num_nodes == 1:
        del needed["gpu.network_gb_per_second"]  # nothing leaves the node
    missing = [key for key, value in needed.items() if value is None]
    if missing:
        return Unavailable("set " + " and ".join(missing))
    return Machine(
        name=gpu.name,
        matmul_tflops=gpu.matmul_tflops or math.nan,
        matmul_fp8_tflops=gpu.matmul_fp8_tflops,
        peak_tflops=gpu.dense_tflops or math.nan,
        memory_tb_per_second=gpu.memory_tb_per_second or math.nan,
        link_gb_per_second=gpu.link_gb_per_second or math.nan,
        network_gb_per_second=gpu.network_gb_per_second or gpu.link_gb_per_second or math.nan,
        devices_per_node=cluster.ranks_per_node,
        num_multiprocessors=gpu.num_multiprocessors or 0,
    )
