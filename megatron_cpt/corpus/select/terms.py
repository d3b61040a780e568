"""A list of terms and where they stand in a text: whole words in scripts with spaces, runs of characters in the others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from megatron_cpt.corpus.select.ngrams import longer, term_hashes, term_units


class TermFinder:
    """Counts each of many terms in a text at once; upper and lower case are one, and any white space may stand between words.

    Time follows the text's length times the number of different term lengths, not the number of terms.
    """

    def __init__(self, terms: Sequence[str]) -> None:
        """Take distinct terms.

        Attributes:
            terms: as given.
            unusable: terms in which nothing can be found, such as one of white space alone.
        """
        self.terms = tuple(terms)
        by_length: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
        self.unusable: list[str] = []
        for place, term in enumerate(self.terms):
            length = len(term_units(term))
            if length:
                by_length[length][int(_runs(term_hashes(term), length)[0])].append(place)
            else:
                self.unusable.append(term)
        self._by_length: list[tuple[int, Any, list[list[int]]]] = []
        for length in sorted(by_length):
            hashes = sorted(by_length[length])
            self._by_length.append((length, np.array(hashes, np.uint64), [by_length[length][number] for number in hashes]))

    def found(self, text: str) -> dict[int, int]:
        """Return how often each term that stands in a text does, by its place in `terms`; terms that overlap count each on their own."""
        counts: dict[int, int] = {}
        units = runs = term_hashes(text)
        reached = 1
        for length, hashes, places in self._by_length:
            for step in range(reached + 1, length + 1):
                runs = longer(runs, units, step)
            reached = length
            if not len(runs):
                break
            at = np.minimum(np.searchsorted(hashes, runs), len(hashes) - 1)
            hit, times = np.unique(at[hashes[at] == runs], return_counts=True)
            for number, count in zip(hit.tolist(), times.tolist(), strict=True):
                counts.update(dict.fromkeys(places[number], count))
        return counts

    def hits(self, text: str) -> int:
        """Return how many times any term stands in a text."""
        return sum(self.found(text).values())


def _runs(units: Any, length: int) -> Any:
    runs = units
    for step in range(2, length + 1):
        runs = longer(runs, units, step)
    return runs
