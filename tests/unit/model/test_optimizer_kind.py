"""Which optimizer's checkpoint another kind takes over, and what it refuses; that moments arrive: tests/numerics/test_ranks_agree.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron_cpt.errors import CheckpointError
from megatron_cpt.model.optimizer_kind import change_of_kind


def wanted(*keys: str) -> dict[str, Any]:
    return {"state": {number: SimpleNamespace(key=key) for number, key in enumerate(keys)}}


DISTRIBUTED = ("optimizer.state.exp_avg.w", "optimizer.state.param.w")
REPLICATED = ("optimizer.state.exp_avg.w", "optimizer.state.fp32_param.w")
ONE, CHAIN = SimpleNamespace(optimizer=None), SimpleNamespace(chained_optimizers=[None, None])


def change(
    mine: tuple[str, ...] | None, saved: tuple[str, ...], optimizer: Any, *, is_fully_sharded: bool = False, num_saved: int = 1
) -> Any:
    return change_of_kind(
        None if mine is None else wanted(*mine),
        dict.fromkeys(saved),
        optimizer,
        is_fully_sharded=is_fully_sharded,
        num_saved_optimizers=lambda: num_saved,
        where="x",
    )


def test_the_same_kind_needs_no_change() -> None:
    assert change(DISTRIBUTED, DISTRIBUTED, ONE, is_fully_sharded=True) is None
    assert change(None, DISTRIBUTED, None) is None  # weights only


@pytest.mark.parametrize(
    ("mine", "saved", "optimizer", "is_fully_sharded", "message"),
    [
        (DISTRIBUTED, REPLICATED, ONE, True, r"weights in shards \(parallel.fsdp\)"),
        (DISTRIBUTED, REPLICATED, CHAIN, False, "2 optimizers in a chain"),
        (DISTRIBUTED, REPLICATED, SimpleNamespace(optimizer=torch.optim.Adam([torch.zeros(1)])), False, "torch's Adam"),
        (REPLICATED, REPLICATED[:1], ONE, False, "bf16 weights with fp32 ones beside them, and the checkpoint has none"),
    ],
)
def test_a_change_that_cannot_be_made_is_refused(
    mine: tuple[str, ...], saved: tuple[str, ...], optimizer: Any, is_fully_sharded: bool, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        change(mine, saved, optimizer, is_fully_sharded=is_fully_sharded, num_saved=2 if optimizer is CHAIN else 1)


@pytest.mark.parametrize(("mine", "saved"), [(DISTRIBUTED, REPLICATED), (REPLICATED, DISTRIBUTED)])
@pytest.mark.parametrize(("optimizer", "num_saved"), [(ONE, 2), (CHAIN, 1)])
def test_the_kind_and_the_number_of_expert_ranks_do_not_change_at_once(
    mine: tuple[str, ...], saved: tuple[str, ...], optimizer: Any, num_saved: int
) -> None:
    with pytest.raises(CheckpointError, match="expert-parallel ranks cannot change in one resume"):
        change(mine, saved, optimizer, num_saved=num_saved)
