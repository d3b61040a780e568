"""What the CPUs of a machine without a meter may have drawn: an estimate by their time at work, never added to what was measured."""

from __future__ import annotations

import os
import resource

# Watts of one hardware thread, idle and busy: the averages over the processors of one large provider, from SPECpower results of whole
# servers. Single processors lie between a half and double of them. Source: Cloud Carbon Footprint, Methodology, energy estimate (compute).
IDLE_WATTS_PER_THREAD = 0.74
BUSY_WATTS_PER_THREAD = 3.5
METHOD = f"estimate by CPU time: {IDLE_WATTS_PER_THREAD} W a hardware thread, {BUSY_WATTS_PER_THREAD} W while busy, within a factor of two"


def cpu_seconds() -> float:
    """Return the seconds of CPU time of this process and of its children that have ended."""
    return sum(
        used.ru_utime + used.ru_stime for used in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    )


def num_threads() -> int:
    """Return the hardware threads that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def estimated_joules(*, seconds: float, busy_seconds: float, threads: int) -> float:
    """Return the joules of `threads` over `seconds`, of which they worked `busy_seconds` of CPU time together."""
    return threads * seconds * IDLE_WATTS_PER_THREAD + busy_seconds * (BUSY_WATTS_PER_THREAD - IDLE_WATTS_PER_THREAD)
