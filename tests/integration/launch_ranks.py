"""Runs a function of a test module on N gloo processes, as torchrun would, and re-raises the first failure with its rank."""

from __future__ import annotations

import os
import pickle
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import multiprocessing
from torch.multiprocessing.spawn import ProcessException


class RankFailed(AssertionError):
    """The first rank that failed, with its traceback."""


def launch_ranks(function: Callable[..., Any], num_ranks: int, *args: Any, timeout_s: float = 300.0) -> list[Any]:
    """Return `function(*args)` of each rank, in rank order.

    Args:
        function: importable by name (top level of its module); its result can be pickled.
        timeout_s: all ranks are ended after so many seconds.

    Raises:
        RankFailed: with the rank and traceback of the first failure, or after the timeout.
    """
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        context = multiprocessing.start_processes(
            _run_rank, args=(function, args, _torchrun_variables(num_ranks), folder), nprocs=num_ranks, join=False, start_method="spawn"
        )
        deadline = time.monotonic() + timeout_s
        try:
            while not context.join(timeout=max(0.1, min(1.0, deadline - time.monotonic()))):
                if time.monotonic() > deadline:
                    raise RankFailed(f"{num_ranks} ranks did not finish within {timeout_s} s")
        except ProcessException as error:
            raise RankFailed(f"rank {error.error_index} of {num_ranks} failed: {error.msg}") from None
        finally:
            for process in context.processes:
                if process.is_alive():
                    process.kill()
                process.join()
        return [pickle.loads((Path(folder) / str(rank)).read_bytes()) for rank in range(num_ranks)]


def _torchrun_variables(num_ranks: int) -> dict[str, str]:
    return {
        "WORLD_SIZE": str(num_ranks), "LOCAL_WORLD_SIZE": str(num_ranks),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "OMP_NUM_THREADS": "1",
    }  # fmt: skip


def _run_rank(rank: int, function: Callable[..., Any], args: tuple[Any, ...], variables: dict[str, str], folder: str) -> None:
    os.environ |= {**variables, "RANK": str(rank), "LOCAL_RANK": str(rank)}
    (Path(folder) / str(rank)).write_bytes(pickle.dumps(function(*args)))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
