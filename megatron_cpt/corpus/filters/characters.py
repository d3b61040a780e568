"""What each Unicode character is, as one byte of flags, and texts as arrays of characters."""

from __future__ import annotations

from functools import cache

import numpy as np
from datatrove.utils.text import PUNCTUATION_SET
from numpy.typing import NDArray

WORD = 1  # letters, digits and the underscore: what `\w` matches
SPACE = 2  # what `\s` matches
DECIMAL = 4  # what `\d` matches
ALPHABETIC = 8  # `str.isalpha`
HAN = 16  # Han characters and kana: scripts whose words are not set apart
CONTENT = 32  # neither white space nor in datatrove's set of punctuation and control characters
JOINER = 64  # apostrophes and the hyphen: inside a word when they stand between two of its characters
DECIMAL_POINT = 128  # inside a number when it stands between two digits

JOINERS = "'\u2019-"
DECIMAL_POINTS = ".,"
HAN_RANGES = ((0x3005, 0x3007), (0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF))
FIRST_PLAIN = 0x40000  # from here on Unicode has no letters, digits or spaces: private use, tags and variation selectors


@cache
def flags_of_characters() -> NDArray[np.uint8]:
    """Return the flags of every code point. Made once in a process, in about 0.3 s."""
    flags = np.zeros(0x110000, np.uint8)
    characters = list(map(chr, range(FIRST_PLAIN)))
    for flag, test in (
        (WORD, lambda c: c.isalnum() or c == "_"),
        (SPACE, str.isspace),
        (DECIMAL, str.isdecimal),
        (ALPHABETIC, str.isalpha),
    ):
        flags[:FIRST_PLAIN] |= np.fromiter(map(test, characters), np.bool_, FIRST_PLAIN).astype(np.uint8) * np.uint8(flag)
    for first, last in HAN_RANGES:
        flags[first : last + 1] |= HAN * (flags[first : last + 1] & WORD)
    content = (flags & SPACE) == 0
    content[[ord(mark) for mark in PUNCTUATION_SET]] = False
    flags[content] |= CONTENT
    flags[[ord(mark) for mark in JOINERS]] |= JOINER
    flags[[ord(mark) for mark in DECIMAL_POINTS]] |= DECIMAL_POINT
    return flags


WORD_GROUP = 0xFFFFFFFF  # all characters of words are of one group, each mark is of its own, white space is of group 0
NUL_GROUP = 0xFFFFFFFE


@cache
def groups_of_characters() -> NDArray[np.uint32]:
    """Return the group of every code point: where it changes, a word may begin."""
    flags = flags_of_characters()
    groups = np.arange(len(flags), dtype=np.uint32)
    groups[0] = NUL_GROUP
    groups[(flags & WORD) != 0] = WORD_GROUP
    groups[(flags & SPACE) != 0] = 0
    return groups


def code_points(text: str) -> NDArray[np.uint8] | NDArray[np.uint32]:
    """Return the characters of a text as numbers, one byte each where all are ASCII."""
    if text.isascii():
        return np.frombuffer(text.encode("ascii"), np.uint8)
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
