"""Measures the link between two ranks of this machine, and on a GPU its matrix rate and memory bandwidth, in a process of its own.

`python -m megatron_cpt.line.link_rate link FILE RANK` or `... cuda`. One line of JSON on standard output.
"""

from __future__ import annotations

import json
import statistics
import sys
import time

_BYTES = 64_000_000  # of an all-reduce, near a layer's gradients
_ROUNDS = 8


def link_gb_per_second(store: str, rank: int) -> float:
    """All-reduce between two gloo ranks; return the bus bandwidth, which between two ranks is bytes over seconds."""
    import torch  # noqa: PLC0415
    import torch.distributed as dist  # noqa: PLC0415

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    numbers = torch.ones(_BYTES // 4)
    rates = []
    for _ in range(_ROUNDS):
        dist.barrier()
        begin = time.perf_counter()
        dist.all_reduce(numbers)
        rates.append(_BYTES / (time.perf_counter() - begin) / 1e9)
    dist.destroy_process_group()
    return statistics.median(rates[1:])


def cuda_rates(seconds: float = 3.0) -> dict[str, float | str]:
    """Multiply large bf16 matrices for about `seconds` on the first GPU, so that its clock settles, and copy its memory."""
    import torch  # noqa: PLC0415

    size = 8192
    left = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
    right = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
    end, begin, rounds = time.perf_counter() + seconds, 0.0, 0
    while time.perf_counter() < end:
        torch.cuda.synchronize()
        begin, rounds = time.perf_counter(), 20
        for _ in range(rounds):
            torch.matmul(left, right)
        torch.cuda.synchronize()
        took = time.perf_counter() - begin
    source = torch.empty(2_000_000_000, device="cuda", dtype=torch.uint8)
    target = torch.empty_like(source)
    target.copy_(source)
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(rounds):
        target.copy_(source)
    torch.cuda.synchronize()
    return {
        "name": torch.cuda.get_device_name(),
        "matmul_tflops": 2 * size**3 * rounds / took / 1e12,
        "memory_tb_per_second": 2 * source.numel() * rounds / (time.perf_counter() - begin) / 1e12,
        "num_multiprocessors": torch.cuda.get_device_properties(0).multi_processor_count,
    }


if __name__ == "__main__":
    answer = link_gb_per_second(sys.argv[2], int(sys.argv[3])) if sys.argv[1] == "link" else cuda_rates()
    sys.stdout.write(json.dumps(answer) + "\n")
