"""Runs of units as 64-bit numbers: what importance weights, term lists and topics count.

A unit is a word or a run of punctuation, as NLTK's WordPunctTokenizer cuts (the paper's choice), in lower case; a character of a script
without spaces is a unit of its own. A run of n units is one hash of n unit hashes: a whole text takes a few array operations.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator
from functools import cache

import numpy as np
from numpy.typing import NDArray

from megatron_cpt.text.units import SPACELESS

Hashes = NDArray[np.uint64]
MAX_KNOWN_UNITS = 1_000_000  # some 150 MB a process; then the memory of units begins anew
PIECE_CHARS = 1_000_000  # a text is cut into units in pieces of this length, so that one of 25 MB needs no list of 5 million strings
_UNIT = re.compile(rf"[{SPACELESS}]|[^\W{SPACELESS}]+|[^\w\s]+")
_PIECE_END = re.compile(rf"[\s{SPACELESS}]")
_MULTIPLIER, _MIX_1, _MIX_2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


class _UnitHashes(dict[str, int]):
    """Remembers the hash of each unit that was met."""

    def __missing__(self, unit: str) -> int:
        number = int.from_bytes(hashlib.blake2b(unit.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
        self[unit] = number
        return number


_known = _UnitHashes()


def unit_hashes(text: str, pattern: re.Pattern[str] = _UNIT) -> Hashes:
    """Return the hash of each unit of a text, in order."""
    found = [hashes_of(pattern.findall(piece)) for piece in _pieces(text.lower())]
    return found[0] if len(found) == 1 else np.concatenate(found)


def hashes_of(units: list[str]) -> Hashes:
    """Return the hash of each of some strings."""
    if len(_known) > MAX_KNOWN_UNITS:
        _known.clear()
    return np.fromiter(map(_known.__getitem__, units), dtype=np.uint64, count=len(units))


def _pieces(text: str) -> Iterator[str]:
    """Yield a text in pieces that end where no unit goes on."""
    start = 0
    while len(text) - start > PIECE_CHARS:
        end = _PIECE_END.search(text, start + PIECE_CHARS)
        if end is None:
            break
        yield text[start : end.start()]
        start = end.start()
    yield text[start:] if start else text


def longer(runs: Hashes, units: Hashes, length: int) -> Hashes:
    """Return the hash of each run of `length` units from those of the runs that are one unit shorter."""
    if len(units) < length:
        return np.empty(0, np.uint64)
    return mixed(runs[: len(units) - length + 1] * _MULTIPLIER + units[length - 1 :])


def mixed(numbers: Hashes) -> Hashes:
    """Return numbers whose every bit depends on all bits of what went in (the finaliser of SplitMix64, Steele et al. 2014)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * _MIX_1
    numbers = (numbers ^ (numbers >> np.uint64(27))) * _MIX_2
    return numbers ^ (numbers >> np.uint64(31))


def buckets_of(hashes: Hashes, num_buckets: int) -> NDArray[np.uint16]:
    """Return each hash's bucket, by its upper 32 bits."""
    return (((hashes >> np.uint64(32)) * np.uint64(num_buckets)) >> np.uint64(32)).astype(np.uint16)


def ngram_buckets(text: str, *, max_length: int, num_buckets: int) -> NDArray[np.uint16]:
    """Return the bucket of every run of 1 to `max_length` units of a text, runs of one length after the other."""
    units = runs = unit_hashes(text)
    found = [buckets_of(units, num_buckets)]
    for length in range(2, max_length + 1):
        runs = longer(runs, units, length)
        found.append(buckets_of(runs, num_buckets))
    return np.concatenate(found)


def term_hashes(text: str) -> Hashes:
    """Return the hashes of a text's units for finding terms: marks stay with their letter, and each punctuation mark stands alone.

    The text is brought to composed form (NFC) first, so that a term is found however its accents are written.
    """
    return unit_hashes(unicodedata.normalize("NFC", text), _term_unit())


def term_units(text: str) -> list[str]:
    """Return a text's units for finding terms, in order."""
    return _term_unit().findall(unicodedata.normalize("NFC", text).lower())


@cache
def _term_unit() -> re.Pattern[str]:
    marks = "".join(character for character in map(chr, range(0x300, 0x10000)) if unicodedata.category(character) in ("Mn", "Mc"))
    return re.compile(rf"[{SPACELESS}]|[^\W{SPACELESS}](?:[^\W{SPACELESS}]+|[{marks}])*|[^\w\s]")
