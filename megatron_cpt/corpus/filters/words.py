"""Words of a text and equality of runs of words, as arrays: what the rules count. No string is made for a word.

A word is a run of letters, digits and underscores, with an apostrophe or hyphen between two of them and a point or comma between two
digits; a mark is a word of its own, and so is a run of one mark (`...`). With `characters` each Han character or kana is one too.
`WORD_PATTERN` says the same as regular expressions; a test holds the two together.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from megatron_cpt.corpus.filters.characters import (
    ALPHABETIC,
    CONTENT,
    DECIMAL,
    DECIMAL_POINT,
    HAN,
    HAN_RANGES,
    JOINER,
    WORD,
    WORD_GROUP,
    code_points,
    flags_of_characters,
    groups_of_characters,
)

_JOINED = r"(?<=\w)['\u2019\-](?=\w)|(?<=\d)[.,](?=\d)"
_HAN = "".join(f"{chr(first)}-{chr(last)}" for first, last in HAN_RANGES)
WORD_PATTERN = {
    "spaced": rf"(?:\w|{_JOINED})+|([^\w\s])\1*",
    "characters": rf"(?=[{_HAN}])\w|(?:(?![{_HAN}])\w|(?<![{_HAN}])(?:{_JOINED})(?![{_HAN}]))+|([^\w\s])\1*",
}
BASE = 0x9E3779B97F4A7C15  # odd, so that powers never vanish modulo 2**64
SEQUENCE_BASE = 0xC2B2AE3D27D4EB4F  # odd; joins the hashes of words to that of a sequence
MAX_POWER = 1 << 16  # characters of a word beyond it weigh alike
CHARS_AT_ONCE = 1 << 20  # bounds the memory of 64-bit work on a long text


def _powers() -> NDArray[np.uint64]:
    powers = np.full(MAX_POWER + 1, BASE, np.uint64)
    powers[0] = 1
    return np.multiply.accumulate(powers)  # modulo 2**64


POWERS = _powers()


def _begins(
    points: NDArray[np.uint8] | NDArray[np.uint32], flags: NDArray[np.uint8], *, han_alone: bool
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Say of each character whether a word begins with it, and whether it belongs to one (begins at white space mean nothing)."""
    groups = groups_of_characters()[points]
    begins = np.ones(len(points), np.bool_)
    if len(points) > 1:
        at = np.flatnonzero(flags[1:-1] & (JOINER | DECIMAL_POINT)) + 1
        if len(at):
            neighbours = flags[at - 1] & flags[at + 1]
            joins = (neighbours & np.where(flags[at] & JOINER, WORD, DECIMAL)) != 0
            if han_alone:
                joins &= ((flags[at - 1] | flags[at + 1]) & HAN) == 0
            groups[at[joins]] = WORD_GROUP
        np.not_equal(groups[1:], groups[:-1], out=begins[1:])
        if han_alone:
            han = (flags & HAN) != 0
            begins |= han
            begins[1:] |= han[:-1]
    return begins, groups != 0


class Words:
    """The words of a text.

    Attributes:
        num: how many words there are.
        lengths: characters of each word, shape `(num,)`.
        flags: the flags of a word's characters joined by `or`, shape `(num,)`.
    """

    def __init__(self, text: str, *, mode: str = "spaced") -> None:
        points = code_points(text)
        flags = flags_of_characters()[points]
        begins, is_dense = _begins(points, flags, han_alone=mode == "characters")
        dense = np.flatnonzero(is_dense)
        self._points, self._dense = points, dense
        self.char_flags = flags[dense]
        starts = np.flatnonzero(begins[dense])
        self.num = len(starts)
        self.offsets = np.append(starts, len(dense))
        self.lengths = self.offsets[1:] - self.offsets[:-1]
        self.flags = np.bitwise_or.reduceat(self.char_flags, starts) if self.num else np.zeros(0, np.uint8)

    @cached_property
    def points(self) -> NDArray[np.uint8] | NDArray[np.uint32]:
        """The characters of all words, without white space."""
        return self._points[self._dense]

    @property
    def num_with_content(self) -> int:
        """How many words are more than punctuation."""
        return int(np.count_nonzero(self.flags & CONTENT))

    @property
    def content_chars(self) -> int:
        """Characters of the words that are more than punctuation."""
        return int(self.lengths[(self.flags & CONTENT) != 0].sum())

    @property
    def num_alphabetic(self) -> int:
        """How many words have a letter (`str.isalpha`) in them."""
        return int(np.count_nonzero(self.flags & ALPHABETIC))

    @property
    def han_share(self) -> float:
        """Share of Han characters and kana among the characters that are no white space."""
        return int(np.count_nonzero(self.char_flags & HAN)) / max(len(self.char_flags), 1)

    @cached_property
    def hashes(self) -> NDArray[np.uint64]:
        """Polynomial hashes of the words over their characters, modulo 2**64, shape `(num,)`."""
        hashes = np.empty(self.num, np.uint64)
        first = 0
        while first < self.num:
            last = max(int(np.searchsorted(self.offsets, self.offsets[first] + CHARS_AT_ONCE)) - 1, first + 1)
            last = min(last, self.num)
            begin, end = self.offsets[first], self.offsets[last]
            distance = np.repeat(self.offsets[first + 1 : last + 1], self.lengths[first:last])
            distance -= np.arange(begin + 1, end + 1)
            weights = POWERS[np.minimum(distance, MAX_POWER, out=distance)]
            weights *= self.points[begin:end]
            hashes[first:last] = np.add.reduceat(weights, self.offsets[first:last] - begin)
            first = last
        return hashes

    @cached_property
    def steps(self) -> NDArray[np.uint64]:
        """By what a hash is multiplied before a word is joined to it, shape `(num,)`."""
        steps: NDArray[np.uint64] = POWERS[np.minimum(self.lengths, MAX_POWER)]
        return steps

    def joined_hashes(self, n: int) -> NDArray[np.uint64]:
        """Return hashes of every `n` words written without a space between them, shape `(num - n + 1,)`."""
        count = self.num - n + 1
        hashes = self.hashes[:count].copy()
        for k in range(1, n):
            hashes *= self.steps[k : k + count]
            hashes += self.hashes[k : k + count]
        return hashes

    def sequence_hashes(self, n: int) -> NDArray[np.uint64]:
        """Return hashes of every `n` words as a sequence, shape `(num - n + 1,)`."""
        count = self.num - n + 1
        hashes = self.hashes[:count].copy()
        for k in range(1, n):
            hashes *= np.uint64(SEQUENCE_BASE)
            hashes += self.hashes[k : k + count]
        return hashes

    def run_lengths(self, n: int) -> NDArray[np.int64]:
        """Return the characters of every `n` words, without spaces, shape `(num - n + 1,)`."""
        lengths: NDArray[np.int64] = self.offsets[n:] - self.offsets[:-n]
        return lengths
