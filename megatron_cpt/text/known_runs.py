"""The runs of what is evaluated, as sorted arrays that texts are streamed past: memory grows with the evaluation, not with the corpus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megatron_cpt.record.bench_item import Item
from megatron_cpt.text.runs import Hashes, Places, RunHashes, TextHashes

SHORTEST = 8 / 13  # of a run's length: shorter texts are like others by chance (Brown et al. 2020, appendix C: 8 words at least)
FILTER_BITS = 22


@dataclass(frozen=True)
class Probe:
    """Something that is evaluated. `from_share` is the share of its runs above which it counts as seen (`or_equal`: at which)."""

    name: str
    id: str
    parts: tuple[str, ...]
    from_share: float
    or_equal: bool

    def counts(self, share: float) -> bool:
        return share > 0 and (share > self.from_share or (self.or_equal and share == self.from_share))


@dataclass(frozen=True)
class RunLength:
    """The different runs of one length. `known` are their hashes in order; the others have one entry for each run of each probe, in
    the order of `known`: its place in `known`, its probe, the part of the probe and its beginning in the units of that part."""

    known: Hashes
    key: Places
    probe: Places
    part: Places
    begin: Places

    @classmethod
    def of(cls, entries: Sequence[tuple[int, int, int, int]]) -> RunLength:
        """Return the runs of entries `(hash, probe, part, begin)`."""
        hashes = np.array([entry[0] for entry in entries], dtype=np.uint64)
        others = np.array([entry[1:] for entry in entries], dtype=np.int64).reshape(-1, 3)
        order = np.argsort(hashes, kind="stable")
        known, key = np.unique(hashes, return_inverse=True)
        return cls(known, key[order].astype(np.int64), *others[order].T)


class KnownRuns:
    """The runs of all probes, of `words` words, or of `characters` where most of a part is of a script without spaces.

    A part that is shorter than a run is a run itself, unless it is too short to be told from others.
    """

    def __init__(self, by_length: dict[int, RunLength], num_probes: int) -> None:
        self.by_length = by_length
        self._filters = {length: _filter(runs.known) for length, runs in by_length.items()}
        # how many different runs each probe has; one without any cannot be judged
        self.num_runs = np.zeros(num_probes, dtype=np.int64)
        for runs in by_length.values():
            self.num_runs += np.bincount(runs.probe, minlength=num_probes)

    @classmethod
    def of(cls, probes: Sequence[Probe], *, words: int, characters: int, hashes: TextHashes) -> KnownRuns:
        entries: dict[int, list[tuple[int, int, int, int]]] = {}
        for number, probe in enumerate(probes):
            seen: set[tuple[int, int]] = set()
            for part, text in enumerate(probe.parts):
                units, spaceless = hashes.of(text)
                whole = characters if spaceless else words
                length = min(whole, len(units))
                if length < max(2, int(whole * SHORTEST)):
                    continue
                for begin, found in enumerate(RunHashes(units).of_length(length).tolist()):
                    if (length, found) not in seen:
                        seen.add((length, found))
                        entries.setdefault(length, []).append((found, number, part, begin))
        return cls({length: RunLength.of(entries[length]) for length in sorted(entries)}, len(probes))

    @property
    def longest(self) -> int:
        return max(self.by_length, default=0)

    def find(self, units: Hashes) -> dict[int, tuple[Places, Places]]:
        """Return by length where known runs begin in a row of units, and their places in `known`; lengths without any are left out."""
        found: dict[int, tuple[Places, Places]] = {}
        runs = RunHashes(units)
        for length, mine in self.by_length.items():
            hashes = runs.of_length(length)
            begins = np.flatnonzero(self._filters[length][hashes >> np.uint64(64 - FILTER_BITS)])
            places = np.searchsorted(mine.known, hashes[begins])
            places[places == len(mine.known)] = 0
            equal = mine.known[places] == hashes[begins]
            if equal.any():
                found[length] = begins[equal].astype(np.int64), places[equal].astype(np.int64)
        return found


def _filter(hashes: Hashes) -> NDArray[np.bool_]:
    """Return which first bits occur, so that most runs of the corpus are passed over with one look."""
    table = np.zeros(1 << FILTER_BITS, dtype=bool)
    table[hashes >> np.uint64(64 - FILTER_BITS)] = True
    return table


def parts_of(item: Item, kind: str) -> tuple[str, ...]:
    """Return the texts of an item whose sight in training would give its answer away: the question, and what is right; not the wrong."""
    if kind == "pairs":
        return item.choices
    right = (item.choices[item.right],) if item.choices else item.answers
    return (item.prompt, *right, *((item.tests,) if item.tests else ()))
