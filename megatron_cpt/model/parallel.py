"""Starts and ends the ranks: torch.distributed, megatron's process groups and the generator seeds."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Literal

import torch
from torch import distributed
from torch._C._distributed_c10d import HashStore
from torch.distributed import distributed_c10d

from megatron_cpt.backend import Backend
from megatron_cpt.errors import ConfigError
from megatron_cpt.model.places import check_places, place_here
from megatron_cpt.plan.run_plan import Layout

# A rank that waits longer for the others fails: a dead peer must not hold an allocation for hours. It is above the
# longest honest wait, the write of a checkpoint to a slow shared disk.
COLLECTIVE_TIMEOUT = timedelta(minutes=10)


def start_ranks(layout: Layout, *, backend: Backend, seed: int, timeout: timedelta = COLLECTIVE_TIMEOUT) -> None:
    """Join this process to the others of the layout: under torchrun as the rank it was given, otherwise as the only one.

    Args:
        layout: sizes; `num_ranks` must be the number of processes that were started.
        seed: every rank seeds torch with it; megatron derives the seeds that differ by tensor- and pipeline-parallel rank.
        timeout: longest wait in one collective.

    Raises:
        ConfigError: the number of started processes is not the layout's, or two of them have one device.
    """
    from megatron.core import parallel_state  # noqa: PLC0415  # only after the backend was chosen
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed  # noqa: PLC0415

    assert not distributed.is_initialized(), "the ranks were started before"
    num_started = int(os.environ.get("WORLD_SIZE", "1"))
    if num_started != layout.num_ranks:
        raise ConfigError(
            "The number of started processes is not the layout's.",
            where="parallel",
            value=f"{num_started} processes",
            rule=f"tensor {layout.tensor} x pipeline {layout.pipeline} x context {layout.context} x data {layout.data}"
            f" = {layout.num_ranks}",
            next_step=f"Start {layout.num_ranks} with torchrun --nproc-per-node, or plan for {num_started}.",
        )
    torch.set_num_threads(max(1, layout.threads_per_rank))
    backend.use_local_device(int(os.environ.get("LOCAL_RANK", "0")))
    if "RANK" in os.environ:
        distributed.init_process_group(backend.dist_backend, timeout=timeout)
        place = place_here(backend.device_name(), threads=layout.threads_per_rank)
        check_places(distributed_c10d._get_default_store(), rank=distributed.get_rank(), num_ranks=num_started, place=place)
    else:
        # A store inside the process needs no port, so that two single-rank runs on one host cannot collide.
        distributed.init_process_group(backend.dist_backend, store=HashStore(), rank=0, world_size=1, timeout=timeout)
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        virtual_pipeline_model_parallel_size=layout.virtual_pipeline if layout.virtual_pipeline > 1 else None,
        context_parallel_size=layout.context,
        expert_model_parallel_size=layout.expert,
        distributed_timeout_minutes=max(1, round(timeout.total_seconds() / 60)),
    )
    torch.manual_seed(seed)
    model_parallel_cuda_manual_seed(seed)


def shutdown(*, after_failure: bool = False) -> None:
    """Leave the process groups, without any collective: a rank that failed must not wait for the others.

    Args:
        after_failure: leave NCCL's communicators to the end of the process, because closing them may wait for kernels
            that never finish.
    """
    from megatron.core import parallel_state  # noqa: PLC0415

    if not distributed.is_initialized():
        return
    if after_failure and distributed.get_backend() != "gloo":
        return
    parallel_state.destroy_model_parallel()
    distributed.destroy_process_group()


@contextlib.contextmanager
def ranks(layout: Layout, *, backend: Backend, seed: int, timeout: timedelta = COLLECTIVE_TIMEOUT) -> Iterator[None]:
    """Run a block between `start_ranks` and `shutdown`."""
    start_ranks(layout, backend=backend, seed=seed, timeout=timeout)
    try:
        yield
    except BaseException:
        shutdown(after_failure=True)
        raise
    shutdown()


def single_rank_layout(sequence_length: int, *, dtype: Literal["fp32", "bf16"], threads: int = 1) -> Layout:
    """Return the layout of one process that holds the whole model, for conversion and export."""
    return Layout(
        tensor=1, pipeline=1, data=1, micro_batch_size=1, global_batch_size=1, sequence_length=sequence_length, sequence_parallel=False,
        distributed_optimizer=False, dtype=dtype, num_nodes=1, threads_per_rank=threads,
    )  # fmt: skip
