"""Child processes of the command line: torchrun for the ranks of one machine, and one spawned process for heavy stages.

The parent never imports torch. A child dies with its parent (Linux), so a killed command leaves no orphan that trains on.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import spawn
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from megatron_cpt.errors import EXIT_STOPPED
from megatron_cpt.meter.here import boot_id
from megatron_cpt.meter.nodes import metered_node

T = TypeVar("T")
PR_SET_PDEATHSIG = 1  # linux/prctl.h
PARENT_VARIABLE = "MEGATRON_CPT_PARENT"
ATTEMPT_VARIABLE = "MEGATRON_CPT_ATTEMPT"
METERED_VARIABLE = "MEGATRON_CPT_METERED_BOOT"  # the boot id of the machine whose energy the command itself reads
TORCHRUN_GRACE_SECONDS = 30  # torchrun's own, whatever a save takes (pytorch/pytorch#119856)
# Activations and gradients of some megabytes come and go in every step. By default glibc maps each anew from the kernel, which fills it
# with zeros page by page: 3 to 12 % of a step on a CPU. These keep the freed memory, for about 3 % more of it
# (docs/measured/benchmarks.md).
KEEP_FREED_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),  # the highest that mallopt(3) takes
    "MALLOC_TRIM_THRESHOLD_": str(10**9),
    "MALLOC_TOP_PAD_": str(256 * 2**20),
}


def die_with_parent(parent: int | None = None) -> None:
    """Have the kernel kill this process when its parent ends, so that no orphan trains on beside a restarted run (Linux).

    Args:
        parent: the parent's process id as the parent itself gave it (default: the environment's `MEGATRON_CPT_PARENT`, if any).
            A parent that ended while this process was still importing is known by it: the process ends at once. Started by
            torchrun itself, without that word, a process ends whose parent is not a Python process any more.
    """
    is_told = parent is not None or PARENT_VARIABLE in os.environ
    if parent is None:
        parent = int(os.environ.get(PARENT_VARIABLE, os.getppid()))
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent or (not is_told and _torchrun_is_gone()):
        os._exit(EXIT_STOPPED)


def _torchrun_is_gone() -> bool:
    """Say whether torchrun started this process and is its parent no more: an orphan belongs to init, which is not Python."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return False
    try:
        command = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().split(b"\0")[0]
    except OSError:
        return False
    return b"python" not in os.path.basename(command)


def tie_helpers_to_this_process() -> None:
    """Have each process that this one forks, or that `multiprocessing` spawns from here, die with the one that started it.

    megatron-core's checkpoint writer spawns a manager, and an asynchronous save forks a writer. They would outlive a rank that is
    killed in a save, hold its terminal and the run's lock, and write on into a checkpoint that the next attempt removes.
    """
    if sys.platform == "linux":
        prctl = ctypes.CDLL(None).prctl  # looked up before a fork: the loader's lock may be held by another thread in its middle
        forking = [os.getpid()]

        def tie_to_forking_process() -> None:
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != forking[0]:
                os._exit(EXIT_STOPPED)

        os.register_at_fork(before=lambda: forking.__setitem__(0, os.getpid()), after_in_child=tie_to_forking_process)
    plain = spawn.get_command_line

    def tied(**arguments: Any) -> list[str]:
        command = plain(**arguments)
        code = command.index("-c") + 1
        command[code] = f"from {__name__} import die_with_parent; die_with_parent({os.getpid()}); {command[code]}"
        return command

    spawn.get_command_line = tied


def run_in_child(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Return `function(*args, **kwargs)` computed in a fresh process; its exception is raised here."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context, initializer=die_with_parent, initargs=(os.getpid(),)) as pool:
        return pool.submit(function, *args, **kwargs).result()


def torchrun_argv(module: str, arguments: Sequence[str], *, num_ranks: int) -> list[str]:
    """Return the command that starts `num_ranks` ranks of a module on this machine, on a free port."""
    return [
        sys.executable, "-m", "megatron_cpt.launch_ranks", "--standalone", f"--nproc-per-node={num_ranks}", "--module", module, *arguments,
    ]  # fmt: skip


@contextlib.contextmanager
def _relayed_to(stop_file: Path | None) -> Iterator[None]:
    """Turn SIGINT, SIGTERM and SIGUSR1 into a stop file while a block runs: ranks finish their step, save and end."""

    def request_stop(number: int, frame: FrameType | None) -> None:
        if stop_file is not None:
            stop_file.parent.mkdir(parents=True, exist_ok=True)
            stop_file.write_text(signal.Signals(number).name + "\n")

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1) if stop_file is not None else ()
    before = {number: signal.signal(number, request_stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_ranks(
    module: str,
    arguments: Sequence[str],
    *,
    ranks_per_node: int,
    threads_per_rank: int,
    launcher: str | None = None,
    stop_file: Path | None = None,
    attempt_id: str | None = None,
    on_cpu: bool = False,
    grace_seconds: int = TORCHRUN_GRACE_SECONDS,
) -> int:
    """Run a module on ranks and return the launcher's exit code: 0, or another one whatever a rank's own code was.

    Args:
        launcher: a command `LAUNCHER RANKS_PER_NODE MODULE [arguments...]` that starts the ranks of every node of a job
            (slurm/ranks.sh); None starts torchrun for the ranks of this machine.
        stop_file: where a signal to this process is written for the ranks to see; without it a signal ends this process.
        attempt_id: the attempt's name on the ledger, which the ranks write into their own records.
        on_cpu: the model's tensors lie in host memory; what the user's environment says of malloc goes first.
        grace_seconds: how long a torchrun that Slurm asks to end leaves its ranks for a last checkpoint before it kills them.
    """
    environment = dict(KEEP_FREED_MEMORY if on_cpu else {}) | dict(os.environ, OMP_NUM_THREADS=str(threads_per_rank))
    environment.pop(PARENT_VARIABLE, None)
    environment.pop(ATTEMPT_VARIABLE, None)
    environment.pop(METERED_VARIABLE, None)
    if attempt_id is not None:
        environment[ATTEMPT_VARIABLE] = attempt_id
        environment[METERED_VARIABLE] = boot_id() or ""
    environment.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")  # Megatron's overlap of tensor-parallel communication relies on it
    environment.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if launcher is not None:
        environment.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(grace_seconds))
    if launcher is None:
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all ranks are here; a laptop's host name often does not resolve
        environment[PARENT_VARIABLE] = str(os.getpid())
        argv = torchrun_argv(module, arguments, num_ranks=ranks_per_node)
    else:
        argv = [launcher, str(ranks_per_node), module, *arguments]
    with _relayed_to(stop_file):  # before the start: a signal in between would end this process, and the ranks with it
        process = subprocess.Popen(argv, env=environment, start_new_session=True)
        try:
            return process.wait()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            raise


def metered(run_dir: Path, *, backend: str) -> contextlib.AbstractContextManager[None]:
    """Return what meters this rank's node for the bill of the command that `run_ranks` was called by, where this rank is to do it."""
    return metered_node(
        run_dir,
        backend=backend,
        attempt_id=os.environ.get(ATTEMPT_VARIABLE),
        command_boot=os.environ.get(METERED_VARIABLE),
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
    )


def main(argv: Sequence[str]) -> None:
    """Be torchrun, tied to the life of the process that started it."""
    die_with_parent()
    os.environ[PARENT_VARIABLE] = str(os.getpid())  # for the ranks, whose parent this process is
    from torch.distributed.run import main as torchrun  # noqa: PLC0415  # the parent must not load torch

    torchrun(list(argv))


if __name__ == "__main__":
    main(sys.argv[1:])
