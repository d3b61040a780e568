"""Work that one rank does for all, such as running programs: called by every rank, with the same result on each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import distributed

from megatron_cpt.errors import FollowsAnotherRank


def from_first_rank(compute: Callable[[], Sequence[float]], *, count: int, device: torch.device) -> list[float]:
    """Return `count` numbers that the first rank computes, on every rank. Collective: the others wait meanwhile.

    Raises:
        FollowsAnotherRank: on the others, when the first rank failed; it raises its own error.
    """
    box = torch.zeros(count + 1, dtype=torch.float64)
    error: Exception | None = None
    if distributed.get_rank() == 0:
        try:
            box[1:] = torch.tensor(list(compute()), dtype=torch.float64)
        except Exception as failure:
            box[0], error = 1.0, failure
    box = box.to(device)
    distributed.broadcast(box, src=0)
    if error is not None:
        raise error
    if box[0].item():
        raise FollowsAnotherRank("The first rank could not do its part of the evaluation.")
    return box[1:].tolist()
