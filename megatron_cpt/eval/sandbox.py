"""Runs generated programs shut in, and says of each whether it came to its end.

On Linux with user namespaces a program sees no network, no process but its own, and of the file system only the interpreter and the
system's libraries, to read, beside an empty folder in memory that vanishes with it. It runs with no rights, a few seconds of processor
and wall-clock time, and bounds on memory, file sizes, processes, open files and output; when its time is up the kernel ends everything
that it started. It does not protect from a fault in the kernel, from what can be learnt from timing, or from a program that is written
to look like a right answer: the tests run in the program's own process.

Where the kernel offers no such namespaces a program is not run unless the caller says so. Then it keeps its time, memory and file limits,
an empty environment and a folder of its own, but it sees the network and may read and write what its user may, and a process that leaves
its group outlives it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Literal

from megatron_cpt.errors import ConfigError

CHILD = Path(__file__).with_name("sandbox_child.py")
CANNOT_CONFINE = 113  # as in the child
SHOWN_OUTPUT = 400

Status = Literal["passed", "failed", "timeout", "output", "refused"]


@dataclass(frozen=True)
class Limits:
    """What one program may take. Seconds are of wall-clock and of processor time; `processes` includes the program itself.

    `memory_bytes` is of each process, `disk_bytes` of all its files together, `file_bytes` of one.
    """

    wall_s: float = 20.0  # well above the processor time, so that a busy machine fails no sound program
    cpu_s: int = 8
    memory_bytes: int = 512 << 20
    file_bytes: int = 4 << 20
    disk_bytes: int = 16 << 20
    files: int = 1024
    processes: int = 16
    open_files: int = 64
    output_bytes: int = 64 << 10


@dataclass(frozen=True)
class Outcome:
    """How a program ended: `passed` only when its last line was reached and it exited with 0. `output` is the end of what it said."""

    status: Status
    output: str
    seconds: float


def run_program(source: str, *, confined: bool = True, limits: Limits = Limits()) -> Outcome:  # noqa: B008 - frozen
    """Run a Python program and return how it ended; nothing that it starts or writes is left when it is confined."""
    mark = secrets.token_hex(16)
    program = f'{source}\n\n__import__("os").write(1, b"\\n{mark}\\n")\n'
    request = {"program": program, "limits": asdict(limits), "confined": confined}
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="cpt-program-", ignore_cleanup_errors=True) as scratch, tempfile.TemporaryFile() as stdin:
        stdin.write(json.dumps({**request, "scratch": scratch}).encode("utf-8", errors="surrogatepass"))
        stdin.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(CHILD)],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={},
            cwd="/",
            close_fds=True,
            start_new_session=True,
        )
        try:
            assert process.stdout is not None
            said, ended_by = _read(process.stdout, deadline=started + limits.wall_s, most=limits.output_bytes)
            if ended_by is None:
                try:
                    process.wait(timeout=max(0.0, started + limits.wall_s - time.monotonic()))
                except subprocess.TimeoutExpired:
                    ended_by = "timeout"
        finally:
            _end(process)
    seconds = time.monotonic() - started
    output = said.decode("utf-8", errors="replace")
    if ended_by is not None:
        return Outcome(ended_by, output[-SHOWN_OUTPUT:], seconds)
    if confined and process.returncode == CANNOT_CONFINE:
        return Outcome("refused", output[-SHOWN_OUTPUT:], seconds)
    passed = process.returncode == 0 and mark in output
    return Outcome("passed" if passed else "failed", output.replace(mark, "")[-SHOWN_OUTPUT:], seconds)


def run_programs(sources: Sequence[str], *, confined: bool, limits: Limits = Limits(), workers: int = 1) -> list[Outcome]:  # noqa: B008
    """Run programs, a few at a time, and return their outcomes in order."""
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        return list(pool.map(functools.partial(run_program, confined=confined, limits=limits), sources))


@functools.cache
def why_not_confined() -> str | None:
    """Return why programs cannot be shut in on this machine, or None when they can: tried out, not looked up."""
    if sys.platform != "linux":
        return "programs are shut in by Linux's namespaces, and this is another system"
    outcome = run_program("assert True", confined=True)
    return None if outcome.status == "passed" else outcome.output.strip() or f"a program that does nothing ended with {outcome.status!r}"


def require_confinement(*, unconfined: bool) -> bool:
    """Return whether programs run confined: always where that is possible.

    Raises:
        ConfigError: it is not possible here, and `unconfined` does not say that they may run all the same.
    """
    reason = why_not_confined()
    if reason is not None and not unconfined:
        raise ConfigError(
            "Generated code cannot be shut in on this machine, so it is not run.",
            where="eval.tasks",
            value=reason,
            rule="user namespaces (sysctl user.max_user_namespaces above 0, not restricted by AppArmor)",
            next_step="Allow them, or accept with eval.run_code_unconfined=true that the programs reach your files and the network.",
        )
    return reason is None


def _read(stream: IO[bytes], *, deadline: float, most: int) -> tuple[bytes, Literal["timeout", "output"] | None]:
    """Return what a stream says until its end, the deadline, or more than `most` bytes, and which of the last two it was."""
    said = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while True:
            left = deadline - time.monotonic()
            if left <= 0 or not selector.select(left):
                return bytes(said), "timeout"
            block = os.read(stream.fileno(), 1 << 16)
            if not block:
                return bytes(said), None
            said += block
            if len(said) > most:
                return bytes(said[-most:]), "output"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and its group; of a confined one the kernel ends the rest."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.stdout is not None:
        process.stdout.close()
    process.wait()


def in_batches(sources: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    """Yield so many sources at a time."""
    for begin in range(0, len(sources), size):
        yield sources[begin : begin + size]
