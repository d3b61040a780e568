"""Where a process works: its user, host, boot, process and Slurm job, for a ledger's start lines."""

from __future__ import annotations

import getpass
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str | None:
    """Return what names this machine's kernel since it was started; None where the system does not say.

    Two processes with one boot id share the energy counters of one machine and a clock that does not jump.
    """
    try:
        return BOOT_ID.read_text(encoding="ascii").strip() or None
    except (OSError, ValueError):
        return None


def user_name() -> str:
    """Return the user's name, or the number where the system knows no name for it, as in many containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def slurm_job(environment: Mapping[str, str] = os.environ) -> dict[str, Any] | None:
    """Return the Slurm job of this process: its raw id, and how often it was requeued. None outside of a job."""
    job_id = environment.get("SLURM_JOB_ID", "")
    if not job_id.isdigit():
        return None
    restarts = environment.get("SLURM_RESTART_COUNT", "0")
    return {"job_id": job_id, "restart": int(restarts) if restarts.isdigit() else 0}


def is_alive(start: Mapping[str, Any]) -> bool:
    """Say whether the process of a ledger's start line works still, as far as this machine can see."""
    pid, ticks = start.get("pid"), start.get("process_start")
    return isinstance(pid, int) and ticks is not None and start.get("host") == socket.gethostname() and process_start(pid) == ticks


def works_elsewhere(start: Mapping[str, Any], beat: Mapping[str, Any], *, beat_seconds: float) -> bool:
    """Say whether an attempt of another machine, whose processes cannot be seen from here, was heard of in its last three heartbeats.

    Args:
        start: the ledger's start line.
        beat: its last heartbeat; empty before the first.
    """
    heard = [line["time"] for line in (start, beat) if isinstance(line.get("time"), int | float)]
    elsewhere = start.get("host") not in (None, socket.gethostname())
    return elsewhere and bool(heard) and time.time() - max(heard) < 3 * beat_seconds


def process_start(pid: int) -> int | None:
    """Return the start time of a live process in clock ticks since boot, None when there is none: it tells two owners of one pid apart."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        fields = text.rpartition(")")[2].split()  # after the name, which may hold spaces
        return None if fields[0] in ("Z", "X") else int(fields[19])  # proc(5): a zombie works no more; field 22 is the start
    except (OSError, ValueError, IndexError):
        return None
