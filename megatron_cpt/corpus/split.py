"""Which side a document stands on: train, validation or test. It follows from the digest of its text and its source's fractions alone."""

from __future__ import annotations

from typing import Literal

Side = Literal["train", "valid", "test"]
SIDES: tuple[Side, ...] = ("train", "valid", "test")


def side_of(text_sha256: str, valid_fraction: float, test_fraction: float) -> Side:
    """Return a text's side: its digest, read as a fraction of 2**64, lies below `test_fraction`, in the top `valid_fraction`, or between.

    Test grows from below and validation from above, each into train only: a larger fraction keeps the documents that were held out
    before, and none ever goes from test to validation or back while the two fractions sum to at most 1.

    Args:
        text_sha256: hexadecimal digest of the text in UTF-8.
    """
    place = int(text_sha256[:16], 16)
    if place < test_fraction * 2.0**64:
        return "test"
    return "valid" if place >= (1.0 - valid_fraction) * 2.0**64 else "train"
