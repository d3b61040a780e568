"""A document stands on one side for good: its text and its source's fractions decide, nothing else does."""

from __future__ import annotations

import numpy as np
import pytest

from megatron_cpt.corpus.split import SIDES, TEST, TRAIN, VALID, fraction_problems, side_of, sides_of
from megatron_cpt.record.hashing import sha256_text

DIGESTS = [sha256_text(f"document {number}") for number in range(20_000)]
HIGH = np.array([int(digest[:16], 16) for digest in DIGESTS], np.uint64)


def sides(valid_fraction, test_fraction):
    return sides_of(HIGH, valid_fraction=valid_fraction, test_fraction=test_fraction)


def test_a_side_is_the_digest_as_a_fraction_by_hand():
    # 0x4000... is 0.25 of 2**64, 0xc000... is 0.75
    for start, side in (("3f", "test"), ("40", "train"), ("bf", "train"), ("c0", "valid"), ("ff", "valid")):
        assert side_of(start + "f" * 62 if start[1] == "f" else start + "0" * 62, valid_fraction=0.25, test_fraction=0.25) == side


def test_shares_are_those_asked_for():
    counts = np.bincount(sides(0.1, 0.05), minlength=3)
    assert counts[TEST] == pytest.approx(1000, abs=5 * 31)  # standard deviation of a binomial of 20,000 at 0.05
    assert counts[VALID] == pytest.approx(2000, abs=5 * 42)


def test_larger_fractions_take_from_train_alone():
    before = sides(0.1, 0.1)
    for valid, test in ((0.1, 0.6), (0.5, 0.1), (0.3, 0.7), (0.9, 0.1)):
        after = sides(valid, test)
        assert (after[before == TEST] == TEST).all()
        assert (after[before == VALID] == VALID).all()


def test_the_ends_hold_all_or_nothing():
    assert (sides(0.0, 1.0) == TEST).all()
    assert (sides(1.0, 0.0) == VALID).all()
    assert (sides(0.0, 0.0) == TRAIN).all()
    assert (sides(0.3, 0.7) != TRAIN).all()
    assert sides_of(np.array([0, 2**64 - 1], np.uint64), valid_fraction=1.0, test_fraction=0.0).tolist() == [VALID, VALID]
    assert [SIDES[side] for side in (TRAIN, VALID, TEST)] == ["train", "valid", "test"]


def test_fractions_that_do_not_go_together_are_named():
    assert fraction_problems("law", valid_fraction=0.5, test_fraction=0.5) == []
    assert "1.1 together" in fraction_problems("law", valid_fraction=0.5, test_fraction=0.6)[0]
    assert "valid_fraction is True" in fraction_problems("law", valid_fraction=True, test_fraction=0.6)[0]
    assert len(fraction_problems("law", valid_fraction=-0.1, test_fraction="x")) == 2
