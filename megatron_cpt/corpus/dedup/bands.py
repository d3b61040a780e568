"""Near-duplicate keys of texts: MinHash signatures of their shingles, cut into bands; and the shingles themselves for an exact look.

A shingle is a run of `ngram` words, or of `ngram_characters` where most of the text is of a script without spaces; a shorter text is one
shingle. Case, width, punctuation and spacing do not count (text/units.py). Texts of similarity s share a band with the probability
1 - (1 - s**rows_per_band)**num_bands (Leskovec et al., Mining of Massive Datasets, section 3.4).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash

from megatron_cpt.config.schema import DedupConfig, NearDedupConfig
from megatron_cpt.text.runs import MULTIPLIER, Hashes, Places, Rows, RunHashes, TextHashes

NO_KEY = np.uint64(0)  # of a text without a single unit: it is like no other
SIGNATURE_VERSION = RMinHash.ALGORITHM_VERSION  # keys of another version do not compare
BATCH_UNITS = 1 << 20


class BandHasher:
    """Computes band keys and shingles; holds the hashes of words it has met, and no text."""

    def __init__(self, settings: NearDedupConfig, hashes: TextHashes | None = None) -> None:
        self.settings = settings
        self.hashes = TextHashes() if hashes is None else hashes

    def keys(self, texts: Sequence[str]) -> NDArray[np.uint64]:
        """Return one key a band for each text, shape (texts, num_bands); `NO_KEY` where a text has no words."""
        return self.keys_of_rows(Rows.of(texts, self.hashes))

    def keys_of_rows(self, rows: Rows) -> NDArray[np.uint64]:
        """Return the band keys of texts that have been cut into units before."""
        shingles, offsets = self._shingles(rows)
        num_bands, rows_per_band = self.settings.num_bands, self.settings.rows_per_band
        num_minima = num_bands * rows_per_band
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(shingles, offsets, num_minima, self.settings.seed)
        minima = np.array(matrix.to_rows(), dtype=np.uint64).reshape(len(rows), num_bands, rows_per_band)
        keys = np.full((len(rows), num_bands), np.arange(1, num_bands + 1), dtype=np.uint64)
        for row in range(rows_per_band):  # the same polynomial as that of a run of units
            keys *= MULTIPLIER
            keys += minima[:, :, row]
        keys[keys == NO_KEY] = 1
        keys[offsets[1:] == offsets[:-1]] = NO_KEY
        return keys

    def shingles(self, texts: Sequence[str]) -> list[Hashes]:
        """Return the different shingles of each text, in order."""
        found, offsets = self._shingles(Rows.of(texts, self.hashes))
        return [np.unique(found[begin:end]) for begin, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)]

    def _shingles(self, rows: Rows) -> tuple[Hashes, Places]:
        """Return the shingles of all texts behind one another, and where each text's begin (the last one: where they end)."""
        sizes = rows.ends - rows.begins
        lengths = np.minimum(sizes, np.where(rows.spaceless, self.settings.ngram_characters, self.settings.ngram))
        counts = np.where(sizes > 0, sizes - lengths + 1, 0)
        offsets = np.concatenate([[0], np.cumsum(counts)])
        begins = np.arange(offsets[-1]) + np.repeat(rows.begins - offsets[:-1], counts)
        return RunHashes(rows.units).at(begins, np.repeat(lengths, counts)), offsets


def dedup_problems(settings: DedupConfig) -> list[str]:
    """Return one sentence for each setting that is not allowed."""
    near, key = settings.near, "corpus.dedup.near"
    counts = {name: getattr(near, name) for name in ("num_bands", "rows_per_band", "ngram", "ngram_characters")}
    problems = [f"{key}.{name} is {value}: use 1 or more" for name, value in counts.items() if value < 1]
    if not 0 < near.threshold <= 1:
        problems.append(f"{key}.threshold is {near.threshold}: use a similarity above 0 and up to 1")
    if not 0 <= near.seed < 1 << 64:
        problems.append(f"{key}.seed is {near.seed}: use 0 to 2**64 - 1")
    if settings.compare not in ("text", "units"):
        problems.append(f"corpus.dedup.compare is {settings.compare!r}: use text or units")
    return problems


def similarity(left: Hashes, right: Hashes, *, at_least: float = 0.0) -> float:
    """Return the Jaccard similarity of two ordered sets; 0.0 where their sizes alone rule out `at_least`."""
    small, large = (left, right) if len(left) <= len(right) else (right, left)
    if len(small) == 0 or len(small) < at_least * len(large):
        return 0.0
    places = np.searchsorted(large, small)
    places[places == len(large)] = 0
    common = int(np.count_nonzero(large[places] == small))
    return common / (len(left) + len(right) - common)
