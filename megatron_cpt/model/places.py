"""Where the ranks of a run are: told at the start, and refused where two of them have one device."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from torch._C._distributed_c10d import Store

from megatron_cpt.errors import ConfigError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Where one rank is.

    Attributes:
        device: what tells one device from all others; None where ranks share one, as those of a CPU do.
        cores: that this process may use, and `threads` how many threads of mathematics it starts.
    """

    host: str
    device: str | None
    cores: int
    threads: int


def place_here(device: str | None, *, threads: int) -> Place:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Place(socket.gethostname(), device, cores, threads)


def problem_of(places: Sequence[Place]) -> str | None:
    """Name the first two ranks that have one device, as where a launcher was started for every GPU and each started all ranks."""
    first: dict[tuple[str, str], int] = {}
    for rank, place in enumerate(places):
        if place.device is None:
            continue
        other = first.setdefault((place.host, place.device), rank)
        if other != rank:
            return f"ranks {other} and {rank} both have {place.device} of {place.host}"
    return None


def described(places: Sequence[Place]) -> str:
    """Return one line on hosts, their ranks and the cores that these may use."""
    hosts = {host: [rank for rank, place in enumerate(places) if place.host == host] for host in dict.fromkeys(p.host for p in places)}
    parts = [f"{host} {_span(ranks)} ({places[ranks[0]].cores} cores)" for host, ranks in hosts.items()]
    return f"{len(places)} ranks: {', '.join(parts)}"


def crowded(places: Sequence[Place]) -> list[str]:
    """Say of each host whether its ranks start more threads than they may use cores: a step that was not given its job's cores has one."""
    said = []
    for host in dict.fromkeys(place.host for place in places):
        here = [place for place in places if place.host == host]
        threads, cores = sum(place.threads for place in here), max(place.cores for place in here)
        if threads > cores:
            hint = "; under Slurm a step needs its own --cpus-per-task" if "SLURM_JOB_ID" in os.environ else ""
            said.append(f"{host}: {len(here)} ranks start {threads} threads and may use {cores} {'cores' if cores > 1 else 'core'}{hint}")
    return said


def check_places(store: Store, *, rank: int, num_ranks: int, place: Place) -> None:
    """Let the first rank learn where all are, say so where they are on several machines, and warn of too few cores. On every rank.

    The store of the start carries it: the first collective of NCCL would fail over a device that two ranks have, in words of its own.

    Raises:
        ConfigError: on every rank, where two have one device.
    """
    store.set(f"place/{rank}", json.dumps(asdict(place)))
    if rank == 0:
        places = [Place(**json.loads(store.get(f"place/{other}"))) for other in range(num_ranks)]
        if len({each.host for each in places}) > 1:
            logger.info("%s", described(places))
        for warning in crowded(places):
            logger.warning("%s", warning)
        store.set("place/problem", problem_of(places) or "")
    problem = store.get("place/problem").decode()
    if problem:
        raise ConfigError(
            "Two ranks have one device.",
            where="the launcher",
            value=problem,
            rule="each rank has a device of its own",
            next_step="Start one torchrun a node (srun --ntasks-per-node=1): it starts all ranks of its node.",
        )


def _span(ranks: Sequence[int]) -> str:
    whole = len(ranks) > 1 and list(ranks) == list(range(ranks[0], ranks[-1] + 1))
    return f"{ranks[0]}-{ranks[-1]}" if whole else ", ".join(map(str, ranks))
