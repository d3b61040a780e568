"""The helper that starts ranks for tests. Its ranks use torch alone: importing megatron is most of a rank's start."""

from __future__ import annotations

import os
from datetime import timedelta

import pytest
import torch
from torch import distributed

from tests.integration.launch_ranks import RankFailed, launch_ranks


def start() -> int:
    distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    return distributed.get_rank()


def rank_and_sum(added: float) -> tuple[int, float]:
    rank = start()
    value = torch.tensor(rank + added)
    distributed.all_reduce(value)
    return rank, float(value)


def fail_on_rank_1() -> None:
    if start() == 1:
        raise ValueError("bad batch")
    distributed.barrier()


def vanish_on_rank_1() -> None:
    if start() == 1:
        os._exit(17)
    distributed.barrier()


def wait_for_ever() -> None:
    start()
    while True:
        distributed.barrier()


def test_results_come_back_in_rank_order() -> None:
    assert launch_ranks(rank_and_sum, 3, 1.0) == [(0, 6.0), (1, 6.0), (2, 6.0)]


def test_the_cause_is_raised_and_not_what_it_did_to_the_others() -> None:
    with pytest.raises(RankFailed, match=r"rank 1 of 2 failed[\s\S]*ValueError: bad batch"):
        launch_ranks(fail_on_rank_1, 2)


def test_a_rank_that_vanishes_is_named() -> None:
    with pytest.raises(RankFailed, match=r"rank 1 of 2 failed: the process ended with exit code 17"):
        launch_ranks(vanish_on_rank_1, 2)


def test_ranks_that_do_not_end_are_ended() -> None:
    with pytest.raises(RankFailed, match=r"2 ranks did not finish within 20 s"):
        launch_ranks(wait_for_ever, 2, timeout_s=20)
