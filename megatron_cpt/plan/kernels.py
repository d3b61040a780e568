"""Seconds of the kernels of a transformer layer: matrix products by tiles and waves, everything else by the bytes that it moves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from megatron_cpt.plan.machine import Machine

# The two largest tiles of cuBLAS: those that reach the rate of large products (docs.nvidia.com, matrix multiplication guide, section 3).
_TILES = ((256, 128), (128, 256))
_SPLITS = (1, 2, 4)  # the inner side may be cut for products with few tiles
# Share of the dense peak that fused attention reaches: 50 to 73 % forward on an A100 (Dao 2023, arXiv 2307.08691), up to 75 % on an
# H100 (Shah et al. 2024, arXiv 2407.08608); backward is slower in both papers' figures.
_FLASH_FORWARD, _FLASH_BACKWARD = 0.6, 0.5


@dataclass(frozen=True)
class Kernels:
    """What the training code does, where published runs differ from this project's.

    Attributes:
        flash_attention: attention keeps no score matrix; else its scores are written, masked, normalised and read.
        dropout: masks are drawn and kept.
        selective: what selective recomputation repeats.
        overlap_tensor: in the backward pass tensor-parallel collectives run beside the product for the weights' gradient.
        loss_scaling: gradients are divided by the scale of an fp16 loss before the update.
        gradient_bytes: of one number in the reduction of gradients.
    """

    flash_attention: bool = True
    dropout: bool = False
    selective: Literal["mlp", "core_attention"] = "mlp"
    overlap_tensor: bool = True
    loss_scaling: bool = False
    gradient_bytes: int = 4


DEFAULT_KERNELS = Kernels()


@lru_cache(maxsize=65536)
def matmul_seconds(
    machine: Machine, rows: int, columns: int, inner: int, *, count: int = 1, fp8: bool = False, output_bytes: int = 2
) -> float:
    """Return the seconds of `count` products of (rows x inner) and (inner x columns), which run as one launch.

    A product is cut in tiles, each multiprocessor works on one at a time, and the last wave leaves some idle; a tile is written when
    its inner loop is done, so the time to write the product comes on top (`output_bytes` a number). None is faster than its reading.
    """
    rate = (machine.matmul_fp8_tflops if fp8 and machine.matmul_fp8_tflops else machine.matmul_tflops) * 1e12
    read = machine.memory_seconds(count * (rows * inner + inner * columns) * (1 if fp8 else 2))
    written = machine.memory_seconds(output_bytes * count * rows * columns)
    units = machine.num_multiprocessors
    if not units:
        return max(2.0 * count * rows * columns * inner / rate, 2 * (read + written))
    best = math.inf
    for tall, wide in _TILES:
        tiles = count * math.ceil(rows / tall) * math.ceil(columns / wide)
        for split in _SPLITS:
            best = min(best, math.ceil(tiles * split / units) / split * tall * wide)
    return max(2.0 * best * inner * units / rate, read) + written


def flash_seconds(machine: Machine, flops: float, *, backward: bool = False) -> float:
    """Return the seconds of fused attention whose forward pass takes `flops`; the backward pass makes five products for two."""
    share = _FLASH_BACKWARD if backward else _FLASH_FORWARD
    return flops * (2.5 if backward else 1.0) / (share * machine.peak_tflops * 1e12)
