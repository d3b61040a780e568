"""What this host can do, measured: its matrix rate, memory bandwidth and free memory. No data sheet says them of a CPU."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from megatron_cpt.config.schema import ClusterConfig
from megatron_cpt.record.unknown import Figure, Unavailable

_SIZE = 768  # rows of the square fp32 factors: 7 MB in all, near the size of a layer of a small model
_COPIED_BYTES = 128_000_000  # more than any cache holds
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class HostFacts:
    """Figures of the host that the plan is made on, for CPU clusters.

    Attributes:
        matrix_tflops: fp32 matrix rate of one rank, with all ranks of the node busy.
        memory_available_bytes: free memory of the node.
    """

    matrix_tflops: Figure
    memory_available_bytes: Figure


def measure_host(cluster: ClusterConfig, *, seconds: float = 1.0) -> HostFacts:
    """Measure this host for `seconds` when the run's ranks will be on CPUs like its own; for GPUs return why nothing is measured."""
    if cluster.backend != "cpu":
        reason = Unavailable("not measured: the run is not on this host's CPU")
        return HostFacts(matrix_tflops=reason, memory_available_bytes=reason)
    return HostFacts(
        matrix_tflops=measure_matrix_tflops(cluster.threads_per_rank, num_processes=cluster.ranks_per_node, seconds=seconds),
        memory_available_bytes=memory_available_bytes(),
    )


def measure_matrix_tflops(num_threads: int, *, num_processes: int = 1, seconds: float = 1.0) -> Figure:
    """Measure the fp32 matrix rate of one process, in TFLOP/s, while `num_processes` of them compute side by side.

    Each process is a fresh interpreter, because a BLAS library reads its number of threads when it is loaded.
    """
    return _in_processes("matrix", num_threads, num_processes=num_processes, seconds=seconds, what="the matrix rate")


def measure_memory_tb_per_second(num_threads: int, *, num_processes: int = 1, seconds: float = 1.0) -> Figure:
    """Measure what one process reads and writes, in TB/s, while `num_processes` of them copy side by side."""
    return _in_processes("memory", num_threads, num_processes=num_processes, seconds=seconds, what="the memory bandwidth")


def _in_processes(kind: str, num_threads: int, *, num_processes: int, seconds: float, what: str) -> Figure:
    environment = os.environ | dict.fromkeys(_THREAD_VARIABLES, str(num_threads))
    command = [sys.executable, "-m", "megatron_cpt.plan.calibrate", kind, str(seconds)]
    running = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(num_processes)
    ]
    rates = []
    try:
        for process in running:
            output, complaint = process.communicate(timeout=60 + 10 * seconds)
            if process.returncode != 0:
                return Unavailable(f"{what} could not be measured: {complaint.strip()[-200:]}")
            rates.append(float(output))
    except subprocess.TimeoutExpired:
        return Unavailable(f"{what} could not be measured in time")
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
                process.wait()
    return statistics.fmean(rates)


def matrix_tflops_here(seconds: float) -> float:
    """Multiply fp32 matrices for about `seconds` in this process and return the median rate in TFLOP/s."""
    import numpy as np  # noqa: PLC0415 - its BLAS reads the thread count on import, so only the measuring process loads it

    factor = np.random.default_rng(0).standard_normal((_SIZE, _SIZE), dtype=np.float32)
    product = factor @ factor
    rates: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not rates:
        begin = time.perf_counter()
        np.matmul(factor, factor, out=product)
        rates.append(2 * _SIZE**3 / (time.perf_counter() - begin) / 1e12)
    return statistics.median(rates)


def memory_tb_per_second_here(seconds: float) -> float:
    """Copy 128 MB again and again for about `seconds` in this process and return the median of bytes read and written in TB/s."""
    import numpy as np  # noqa: PLC0415

    source = np.ones(_COPIED_BYTES // 4, dtype=np.float32)
    target = np.zeros_like(source)
    np.copyto(target, source)  # the first writing of a page asks the kernel for it
    rates: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not rates:
        begin = time.perf_counter()
        np.copyto(target, source)
        rates.append(2 * _COPIED_BYTES / (time.perf_counter() - begin) / 1e12)
    return statistics.median(rates)


def memory_available_bytes(path: Path = Path("/proc/meminfo")) -> Figure:
    """Read the memory that new processes can have without swapping, in bytes."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError as error:
        return Unavailable(f"{path}: {error.strerror}")
    for line in lines:
        if line.startswith("MemAvailable:"):
            return float(int(line.split()[1]) * 1024)
    return Unavailable(f"{path} has no MemAvailable")


if __name__ == "__main__":
    measure = {"matrix": matrix_tflops_here, "memory": memory_tb_per_second_here}[sys.argv[1]]
    sys.stdout.write(f"{measure(float(sys.argv[2]))}\n")
