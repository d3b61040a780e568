"""The first loss after a load is compared with what was recorded of the same weights, by source; figures by hand."""

from __future__ import annotations

import math

import pytest

from megatron_cpt.errors import CheckpointError
from megatron_cpt.train.first_loss import PromisedLoss, highest_loss


@pytest.mark.parametrize(
    ("promised", "limit"),
    [
        (3.0, 7.0),  # 2 x 3 + 1
        (0.1, 1.2),  # learnt by heart: a batch may still be a nat off
        (5.0, math.log(49_152)),  # 11 nats would be worse than a uniform guess over 49,152 ids: 10.80
        (10.9, 1.25 * 10.9),  # random weights guess worse than uniform themselves
    ],
)
def test_the_limit_is_twice_the_record_plus_a_nat_and_not_above_a_uniform_guess(promised: float, limit: float) -> None:
    assert highest_loss(promised, num_ids=49_152) == pytest.approx(limit)


def promise(*nats_per_token: float | None) -> PromisedLoss:
    return PromisedLoss(nats_per_token, "baseline/eval.json records", "init/checkpoint", 49_152)


def test_a_loss_far_above_the_record_is_refused_with_both_figures() -> None:
    with pytest.raises(CheckpointError) as failure:
        promise(3.0, 2.0).check(source_nats=[900.0, 100.0], source_loss_tokens=[100, 25], step=1)  # 1000 nats over 125 tokens
    # by hand: found 1000 / 125 = 8; promised (100 x 3 + 25 x 2) / 125 = 2.8; limit 2 x 2.8 + 1 = 6.6
    for words in ("8.000 nats per token at step 1", "2.800", "at most 6.600", "init/checkpoint", "ln 49152 = 10.803"):
        assert words in str(failure.value)


def test_a_source_without_a_record_is_left_out_of_both_sides() -> None:
    promise(3.0, None).check(source_nats=[600.0, 9000.0], source_loss_tokens=[100, 100], step=1)  # 6.0 of the first source alone
    promise(None, None).check(source_nats=[9000.0, 9000.0], source_loss_tokens=[100, 100], step=1)
    with pytest.raises(CheckpointError):
        promise(3.0, None).check(source_nats=[710.0, 0.0], source_loss_tokens=[100, 100], step=1)


def test_a_loss_that_is_no_number_is_left_to_the_error_that_names_it() -> None:
    promise(3.0).check(source_nats=[math.nan], source_loss_tokens=[100], step=1)
