"""Runs a function of a test module on N gloo processes, as torchrun would, and re-raises the first failure with its rank."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from megatron_cpt.launch_ranks import tie_helpers_to_this_process

# What the others report when one rank leaves: a consequence, never the cause.
CONSEQUENCES = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting")
PORTS = (12000, 32000)  # below Linux's ephemeral range, which starts at 32768
_given: set[int] = set()
GRACE_S = 5.0  # for the cause to be written when a consequence was written first


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
    with tempfile.TemporaryDirectory(prefix="ranks-") as name:
        folder, variables = Path(name), _torchrun_variables(num_ranks)
        spawn = multiprocessing.get_context("spawn")
        processes = [spawn.Process(target=_run_rank, args=(rank, function, args, variables, folder)) for rank in range(num_ranks)]
        try:
            for process in processes:
                process.start()
            if not _wait(processes, timeout_s):
                raise RankFailed(f"{num_ranks} ranks did not finish within {timeout_s} s")
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()
                process.join()
        _raise_first_failure(processes, folder)
        return [pickle.loads((folder / f"{rank}.result").read_bytes()) for rank in range(num_ranks)]


def _wait(processes: Sequence[BaseProcess], timeout_s: float) -> bool:
    """Return True when all ranks ended, or one failed and the others had time to fail too; False at the timeout."""
    deadline = time.monotonic() + timeout_s
    failed_at: float | None = None
    while any(process.is_alive() for process in processes):
        now = time.monotonic()
        if failed_at is None and any(process.exitcode not in (None, 0) for process in processes):
            failed_at = now
        if failed_at is not None and now > failed_at + GRACE_S:
            return True
        if now > deadline:
            return False
        time.sleep(0.02)
    return True


def _raise_first_failure(processes: Sequence[BaseProcess], folder: Path) -> None:
    failures = []
    for rank, process in enumerate(processes):
        report = folder / f"{rank}.failure"
        if report.exists():
            when, text = pickle.loads(report.read_bytes())
            failures.append((any(mark in text for mark in CONSEQUENCES), when, rank, text))
        elif process.exitcode and process.exitcode != -9:  # -9: ended above, after another rank's failure
            failures.append((False, 0.0, rank, f"the process ended with exit code {process.exitcode}"))
    if not failures and any(process.exitcode for process in processes):
        killed = [rank for rank, process in enumerate(processes) if process.exitcode]
        failures.append((False, 0.0, killed[0], "the process was killed"))
    if failures:
        _, _, rank, text = min(failures)
        raise RankFailed(f"rank {rank} of {len(processes)} failed: {text}")


def _torchrun_variables(num_ranks: int) -> dict[str, str]:
    return {
        "WORLD_SIZE": str(num_ranks), "LOCAL_WORLD_SIZE": str(num_ranks),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1",
    }  # fmt: skip


def _run_rank(rank: int, function: Callable[..., Any], args: tuple[Any, ...], variables: dict[str, str], folder: Path) -> None:
    os.environ |= {**variables, "RANK": str(rank), "LOCAL_RANK": str(rank)}
    tie_helpers_to_this_process()  # megatron's checkpoint writer leaves a manager, which would outlive the end below and hold the terminal
    try:
        result = function(*args)
    except BaseException:
        (folder / f"{rank}.failure").write_bytes(pickle.dumps((time.monotonic(), traceback.format_exc())))
        raise
    (folder / f"{rank}.result").write_bytes(pickle.dumps(result))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # after a failed collective gloo's threads may abort an interpreter that takes itself apart; the result is on disk


def free_port() -> int:
    """Return a port that nobody listens on now, never the same one twice.

    It lies below the ephemeral range: a port of that range, free now, may be the near end of somebody's connection when the ranks bind it.
    """
    while True:
        port = random.SystemRandom().randrange(*PORTS)  # not the generator that tests seed
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        if port not in _given:
            _given.add(port)
            return port
