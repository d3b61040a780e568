"""Runs of units by their hashes: 64-bit numbers that are the same in every process, on every machine.

A run's hash is a polynomial in the hashes of its units, modulo 2**64. Sums over the whole row give the hash of any run, of any length, with
one difference and one product.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megatron_cpt.text.units import normal_form, spaceless_ranges, units_in, units_of, words_of

Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no bit of a unit is lost and an inverse exists
INVERSE = np.uint64(pow(int(MULTIPLIER), -1, 1 << 64))
BETWEEN_DOCUMENTS = np.uint64(0xD1B54A32D192ED03)  # the hash of no unit
MAX_CACHED_UNITS = 1 << 21


class UnitHashes(dict[str, int]):
    """Hashes of units, 64 bits of BLAKE2. Forgets everything when it has grown too large."""

    def __missing__(self, unit: str) -> int:
        if len(self) >= MAX_CACHED_UNITS:
            self.clear()
        found = int.from_bytes(hashlib.blake2b(unit.encode("utf-8"), digest_size=8).digest(), "little")
        self[unit] = found
        return found

    def of(self, units: Sequence[str]) -> Hashes:
        return np.fromiter(map(self.__getitem__, units), dtype=np.uint64, count=len(units))


class TextHashes:
    """Hashes of the units of whole texts; where most characters stand alone, by a table over code points instead of one by one."""

    def __init__(self) -> None:
        self.of_unit = UnitHashes()
        self._alone = np.zeros(0x110000, dtype=bool)
        for first, last in spaceless_ranges():
            self._alone[first : last + 1] = True
        self._of_code = np.zeros(0x110000, dtype=np.uint64)  # 0: not looked up yet

    def of(self, text: str) -> tuple[Hashes, bool]:
        """Return the hashes of a text's units in order, and whether most of the text is of a script without spaces."""
        if text.isascii():
            return self.of_unit.of(units_of(text)), False
        form = normal_form(text)
        codes = np.frombuffer(form.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        alone = np.flatnonzero(self._alone[codes])
        if 4 * len(alone) < len(codes):
            units = units_in(form)
            return self.of_unit.of(units), 2 * len(alone) > sum(map(len, units))
        begins, words = words_of(form)
        at = np.zeros(len(codes), dtype=np.uint64)
        at[alone] = self._hashes_of(codes[alone])
        at[begins] = self.of_unit.of(words)
        is_unit = np.zeros(len(codes), dtype=bool)
        is_unit[alone] = is_unit[begins] = True
        return at[is_unit], len(alone) > sum(map(len, words))

    def _hashes_of(self, codes: NDArray[np.uint32]) -> Hashes:
        found: Hashes = self._of_code[codes]
        if not found.all():
            new = np.unique(codes[found == 0])
            self._of_code[new] = self.of_unit.of([chr(code) for code in new.tolist()])
            found = self._of_code[codes]
        return found


@dataclass(frozen=True)
class Rows:
    """The units of several texts behind one another, by their hashes, each text followed by a mark that is the hash of no unit.

    Text `i` is `units[begins[i] : ends[i]]`; `spaceless[i]` says whether most of it is of a script without spaces.
    """

    units: Hashes
    begins: Places
    ends: Places
    spaceless: NDArray[np.bool_]

    @classmethod
    def of(cls, texts: Iterable[str], hashes: TextHashes) -> Rows:
        parts: list[Hashes] = []
        lengths: list[int] = []
        spaceless: list[bool] = []
        mark = np.array([BETWEEN_DOCUMENTS])
        for text in texts:
            units, alone = hashes.of(text)
            parts += (units, mark)
            lengths.append(len(units))
            spaceless.append(alone)
        sizes = np.array(lengths, dtype=np.int64)
        ends = np.cumsum(sizes + 1) - 1
        flat = np.concatenate(parts) if parts else np.empty(0, dtype=np.uint64)
        return cls(flat, ends - sizes, ends, np.array(spaceless, dtype=bool))

    def __len__(self) -> int:
        return len(self.begins)


class Powers:
    """Powers of the multiplier and of its inverse, as many as were ever needed."""

    def __init__(self) -> None:
        self._up = self._down = np.ones(1, dtype=np.uint64)

    def upto(self, count: int) -> tuple[Hashes, Hashes]:
        if len(self._up) < count:
            size = 1 << count.bit_length()
            self._up, self._down = _powers(MULTIPLIER, size), _powers(INVERSE, size)
        return self._up[:count], self._down[:count]


def _powers(base: np.uint64, count: int) -> Hashes:
    factors = np.full(count, base, dtype=np.uint64)
    factors[0] = 1
    return np.multiply.accumulate(factors)


_POWERS = Powers()


class RunHashes:
    """The hashes of all runs of a row of units."""

    def __init__(self, units: Hashes) -> None:
        self._up, down = _POWERS.upto(len(units))
        self._sums = np.zeros(len(units) + 1, dtype=np.uint64)
        np.cumsum(units * down, out=self._sums[1:])

    def of_length(self, length: int) -> Hashes:
        """Return the hash of each run of `length` units, by its beginning; of a shorter row none."""
        if len(self._up) < length:
            return np.empty(0, dtype=np.uint64)
        return (self._sums[length:] - self._sums[:-length]) * self._up[length - 1 :]

    def at(self, begins: Places, lengths: Places | int) -> Hashes:
        """Return the hashes of single runs of at least one unit."""
        ends = begins + lengths
        found: Hashes = (self._sums[ends] - self._sums[begins]) * self._up[ends - 1]
        return found


def run_hashes(units: Hashes, length: int) -> Hashes:
    """Return the hash of each run of `length` units, by its beginning."""
    return RunHashes(units).of_length(length)
