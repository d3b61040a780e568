"""Adds up numbers over all ranks of a job, before training does: `torchrun -m megatron_cpt.train.link_check FOLDER cpu|cuda`.

Each node leaves a file when it has come, and the first rank writes the bandwidth. The bus bandwidth is what each rank's link carried:
2 (n - 1) / n times the bytes over the time (the convention of nccl-tests, doc/PERFORMANCE.md).
"""

from __future__ import annotations

import datetime
import os
import socket
import statistics
import sys
import time
from pathlib import Path

from megatron_cpt.errors import CptError
from megatron_cpt.record.store import write_json

BYTES_CUDA, BYTES_CPU = 256_000_000, 16_000_000
ROUNDS = 5
PATIENCE = datetime.timedelta(seconds=120)


def main(arguments: list[str]) -> int:
    """Measure on this rank; 1 where the sum is wrong.

    Raises:
        CptError: the sum that came back is not that of all ranks.
    """
    import torch  # noqa: PLC0415
    import torch.distributed as dist  # noqa: PLC0415

    folder, device = Path(arguments[0]), arguments[1]
    (folder / "arrived" / os.environ.get("SLURMD_NODENAME", socket.gethostname())).touch()
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.set_num_threads(1)
    dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=PATIENCE)
    num_ranks, num_bytes = dist.get_world_size(), BYTES_CUDA if device == "cuda" else BYTES_CPU
    numbers = torch.empty(num_bytes // 4, device=device)
    rates = []
    for _ in range(ROUNDS):
        numbers.fill_(1.0)
        dist.barrier()
        begin = time.perf_counter()
        dist.all_reduce(numbers)
        if device == "cuda":
            torch.cuda.synchronize()
        rates.append(2 * (num_ranks - 1) / num_ranks * num_bytes / (time.perf_counter() - begin) / 1e9)
        if not bool((numbers == num_ranks).all()):
            raise CptError(f"Rank {dist.get_rank()} got a wrong sum from the all-reduce.", where=socket.gethostname())
    if dist.get_rank() == 0:
        record = {"gb_per_second": statistics.median(rates[1:]), "bytes": num_bytes, "ranks": num_ranks}
        write_json(folder / "link.json", record)
    dist.barrier()
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
