"""What a job asks for of a node's memory: a cluster's default, per core, is often far below what a training job needs, and kills it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from megatron_cpt.config.schema import ClusterConfig
from megatron_cpt.plan.run_plan import RunPlan

# Assumptions, on the side of too much: what a rank's process takes beside tensors. Of a rank on a CPU that is Python, torch and
# megatron-core; on a GPU the CUDA libraries, NCCL's and pinned buffers come to it.
PROCESS_BYTES = {"cpu": 1.0e9, "cuda": 6.0e9}


@dataclass(frozen=True)
class Memory:
    """What is known of a job on ranks: bytes that it needs of a node, and what the cluster gives by default (None: all, or unknown)."""

    need_bytes: float
    default_mib: int | None = None

    @property
    def is_short(self) -> bool:
        return self.default_mib is not None and self.need_bytes > self.default_mib * 2**20


def node_bytes(plan: RunPlan) -> float:
    """Return what the ranks of a plan need of one node's memory at their peak: tensors on a CPU, checkpoint buffers beside a GPU."""
    ranks = plan.layout.num_ranks // plan.layout.num_nodes
    most = max(rank.total if plan.backend == "cpu" else rank.host_checkpoint for rank in plan.estimate.memory)
    return ranks * (most + PROCESS_BYTES[plan.backend])


def memory_options(cluster: ClusterConfig, *, on_ranks: bool, memory: Memory | None) -> list[str]:
    """Return the options of sbatch on memory; none where the cluster's default does."""
    options = ["--exclusive"] if cluster.exclusive and on_ranks else []
    if cluster.memory_gb is not None:
        return [*options, f"--mem={_mib(cluster.memory_gb * 1e9)}"]
    if options:
        return [*options, "--mem=0"]  # else a job alone on its node has the default per core all the same
    return [f"--mem={_mib(memory.need_bytes)}"] if on_ranks and memory is not None and memory.is_short else []


def _mib(num_bytes: float) -> str:
    return f"{math.ceil(num_bytes / 2**20)}M" if num_bytes else "0"


def default_memory_mib(partition: str | None, *, num_cpus: int, partitions: str, settings: str) -> int | None:
    """Return the MiB that a job of so many cores has on a node when it asks for none; None where that is all of it, or not known.

    Args:
        partition: None is the cluster's default one.
        partitions: what `scontrol show partition --oneliner` prints, and `settings` what `scontrol show config` does.
    """
    own = next((text for text in partitions.splitlines() if _is(text, partition)), "")
    if "DefMemPerGPU" in own:
        return None
    for text in (own, settings):
        found = re.search(r"\bDefMemPer(CPU|Node)\s*=\s*(\d+)", text)
        if found:
            return int(found[2]) * (num_cpus if found[1] == "CPU" else 1)
    return None


def _is(record: str, partition: str | None) -> bool:
    return f"PartitionName={partition} " in f"{record} " if partition else "Default=YES" in record
