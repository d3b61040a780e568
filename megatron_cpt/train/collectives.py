"""The few exchanges between ranks that training itself makes. Each is called by every rank, never inside a rank test."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import distributed


def highest(number: int, *, device: torch.device) -> int:
    """Return the highest of all ranks' numbers."""
    box = torch.tensor([number], dtype=torch.int64, device=device)
    distributed.all_reduce(box, op=distributed.ReduceOp.MAX)
    return int(box.item())


def totals(numbers: Sequence[float], *, device: torch.device) -> list[float]:
    """Return the sums over all ranks, in double precision: counts are exact up to 2**53."""
    box = torch.tensor(numbers, dtype=torch.float64, device=device)
    distributed.all_reduce(box)
    return box.tolist()


def from_first(number: int, *, device: torch.device) -> int:
    """Return the first rank's number on every rank."""
    box = torch.tensor([number], dtype=torch.int64, device=device)
    distributed.broadcast(box, src=0)
    return int(box.item())


def barrier(*, device: torch.device) -> None:
    """Wait until every rank is here."""
    highest(0, device=device)
