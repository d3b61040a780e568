"""Which side a document stands on: train, validation or test. It follows from the digest of its text and its source's fractions alone."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

SIDES = ("train", "valid", "test")
TRAIN, VALID, TEST = range(3)


def sides_of(sha256_high: NDArray[np.uint64], *, valid_fraction: float, test_fraction: float) -> NDArray[np.uint8]:
    """Return an index into `SIDES` for each text: its digest, read as a fraction of 1, lies below `test_fraction`, in the top
    `valid_fraction`, or between.

    Test grows from below and validation from above, each into train only: a larger fraction keeps the documents that were held out
    before, and none goes from test to validation or back while both fractions together are at most 1.

    Args:
        sha256_high: the first eight bytes of each digest, as numbers.
    """
    test_end, valid_start = math.ceil(test_fraction * 2.0**64), math.ceil((1.0 - valid_fraction) * 2.0**64)
    sides = np.full(len(sha256_high), TRAIN, np.uint8)
    if valid_start < 2**64:
        sides[sha256_high >= np.uint64(valid_start)] = VALID
    sides[np.ones(len(sides), bool) if test_end >= 2**64 else sha256_high < np.uint64(test_end)] = TEST
    return sides


def side_of(text_sha256: str, *, valid_fraction: float, test_fraction: float) -> str:
    """Return the side of one text by its hexadecimal digest."""
    number = np.array([int(text_sha256[:16], 16)], np.uint64)
    return SIDES[int(sides_of(number, valid_fraction=valid_fraction, test_fraction=test_fraction)[0])]


def fraction_problems(shown: str, *, valid_fraction: object, test_fraction: object) -> list[str]:
    """Return one sentence for each fraction of a source that is not allowed."""
    problems, usable = [], []
    for name, fraction in (("valid_fraction", valid_fraction), ("test_fraction", test_fraction)):
        if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0.0 <= fraction <= 1.0:
            problems.append(f"source.{shown}.{name} is {fraction!r}: use a number from 0 to 1")
        else:
            usable.append(fraction)
    if len(usable) == 2 and sum(usable) > 1:
        problems.append(f"source.{shown}: valid_fraction and test_fraction are {sum(usable):g} together: use at most 1")
    return problems
