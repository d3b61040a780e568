"""Importance resampling: which documents of a pool look most like the target, drawn without replacement.

Xie et al. 2023 (DSIR, arXiv 2302.03169): a document's log weight is the sum over its hashed n-grams of the log ratio of their frequency
in the target to that in the pool; Gumbel noise is added, and the documents with the largest sums are taken. The noise comes from the
document's digest and the run's seed, and sums are of whole numbers: neither the order of documents nor the number of workers plays a part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_cpt.config.schema import SelectConfig
from megatron_cpt.corpus.select.ngrams import mixed, ngram_buckets
from megatron_cpt.corpus.select.terms import TermFinder

SMOOTHING = 1e-8  # added to every frequency, as the paper's own code does; `prior_per_bucket` is ours, 0 is the paper's
FIXED_POINT = 2.0**32  # log ratios as multiples of 2**-32 nats: their sum is exact, in any order
SLICE_NGRAMS = 1 << 22  # weighed at once: 64 MB of numbers


@dataclass(frozen=True)
class Features:
    """What selection knows of the documents of one task, in order.

    Attributes:
        buckets: of every n-gram of every document, document after document; uint16.
        num_ngrams: of each document.
        hits: of the term list in each document.
    """

    buckets: NDArray[np.uint16]
    num_ngrams: NDArray[np.int64]
    hits: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.num_ngrams)

    def slices(self) -> Iterator[tuple[int, int, NDArray[np.uint16]]]:
        """Yield runs of documents with their buckets: first document, the one after the last, buckets."""
        ends = np.cumsum(self.num_ngrams)
        first, start = 0, 0
        while first < len(self):
            last = max(int(np.searchsorted(ends, start + SLICE_NGRAMS, side="right")), first + 1)
            end = int(ends[last - 1])
            yield first, last, np.asarray(self.buckets[start:end])
            first, start = last, end


class Selector:
    """Takes the features of texts, one by one, in any process."""

    def __init__(self, settings: SelectConfig, terms: Sequence[str]) -> None:
        self._settings = settings
        self._finder = TermFinder(terms) if terms else None

    def features(self, text: str) -> tuple[NDArray[np.uint16], int]:
        """Return the bucket of each n-gram of a text, and how many times a term of the list stands in it."""
        buckets = ngram_buckets(text, max_length=self._settings.ngram, num_buckets=self._settings.num_buckets)
        return buckets, self._finder.hits(text) if self._finder is not None else 0


@dataclass(frozen=True)
class Documents:
    """What is known of all documents, one entry each in the order of the tasks.

    Attributes:
        sha256_high, sha256_low: the first and second eight bytes of the text's digest, as numbers.
        is_pooled: competes; the others are neither counted nor left out.
    """

    sha256_high: NDArray[np.uint64]
    sha256_low: NDArray[np.uint64]
    num_bytes: NDArray[np.int64]
    is_pooled: NDArray[np.bool_]


@dataclass(frozen=True)
class Choice:
    """Which documents are taken, and by what.

    Attributes:
        is_chosen: True for chosen documents of the pool, and for all that are not of the pool.
        log_weights: of pooled documents, in nats, with the part of the term list; 0 for others.
        facts: counts for the data card.
    """

    is_chosen: NDArray[np.bool_]
    log_weights: NDArray[np.float64]
    reason_of: Callable[[int], str]
    facts: dict[str, Any]


def count_buckets(parts: Sequence[Features], is_counted: NDArray[np.bool_], num_buckets: int) -> NDArray[np.int64]:
    """Return how often each bucket stands in the counted documents; `is_counted` runs over all parts."""
    counts, before = np.zeros(num_buckets, np.int64), 0
    for part in parts:
        for first, last, buckets in part.slices():
            wanted = np.repeat(is_counted[before + first : before + last], part.num_ngrams[first:last])
            counts += np.bincount(buckets[wanted], minlength=num_buckets)
        before += len(part)
    return counts


def log_ratios(target_counts: NDArray[np.int64], pool_counts: NDArray[np.int64], *, prior_per_bucket: float) -> NDArray[np.float64]:
    """Return the log ratio of each bucket's frequency in the target to that in the pool, both smoothed.

    Args:
        prior_per_bucket: n-grams for each bucket, distributed as in the pool, that the target's counts are given. Without them a
            bucket that a small target happens to lack takes some 9 nats from every document that holds it, and short documents win.
    """
    prior = prior_per_bucket * len(target_counts)
    pool = pool_counts / pool_counts.sum()
    target = (target_counts + prior * pool) / (target_counts.sum() + prior)
    ratios: NDArray[np.float64] = np.log(target + SMOOTHING) - np.log(pool + SMOOTHING)
    return ratios


def weigh(parts: Sequence[Features], ratios: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the log weight of each document in nats: the sum of its n-grams' ratios."""
    fixed = np.rint(ratios * FIXED_POINT).astype(np.int64)
    found = []
    for part in parts:
        for first, last, buckets in part.slices():
            sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(fixed[buckets])])
            ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(part.num_ngrams[first:last])])
            found.append(sums[ends[1:]] - sums[ends[:-1]])
    return np.concatenate(found) / FIXED_POINT if found else np.zeros(0)


def gumbel_noise(documents: Documents, seed: int) -> NDArray[np.float64]:
    """Return one standard Gumbel number for each document, from its digest and the seed alone."""
    start = mixed(np.array([seed & 0xFFFFFFFFFFFFFFFF], np.uint64))
    numbers = mixed(mixed(documents.sha256_high ^ start) ^ documents.sha256_low)
    uniform = ((numbers >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    noise: NDArray[np.float64] = -np.log(-np.log(uniform))
    return noise


def choose(
    parts: Sequence[Features],
    documents: Documents,
    *,
    target_counts: NDArray[np.int64] | None,
    settings: SelectConfig,
    seed: int,
) -> Choice:
    """Choose documents of the pool up to the wanted number or size.

    Args:
        parts: features by task; together they are as long as `documents`.
        target_counts: of each bucket in the target; None weighs by the term list alone.
    """
    pooled = documents.is_pooled
    hits = np.concatenate([part.hits for part in parts]) if parts else np.zeros(0, np.int64)
    weights = settings.hit_weight * hits.astype(np.float64)
    if target_counts is not None and pooled.any():
        pool_counts = count_buckets(parts, pooled, settings.num_buckets)
        weights = weights + weigh(parts, log_ratios(target_counts, pool_counts, prior_per_bucket=settings.prior_per_bucket))
    weights = np.where(pooled, weights, 0.0)
    has_hits = hits >= settings.min_hits
    ranked = np.flatnonzero(pooled & has_hits)
    scores = weights[ranked] + gumbel_noise(documents, seed)[ranked]
    ranked = ranked[np.lexsort((documents.sha256_low[ranked], documents.sha256_high[ranked], -scores))]
    taken = take(ranked, documents.num_bytes, max_documents=settings.max_documents, max_bytes=settings.max_bytes)
    is_chosen = ~pooled
    is_chosen[taken] = True

    def reason_of(place: int) -> str:
        if not has_hits[place]:
            return f"{hits[place]} hits of the term list, min_hits {settings.min_hits}"
        return (
            f"log weight {weights[place]:.2f} nats: others are more like the target"
            if target_counts is not None
            else "others have more hits"
        )

    facts = {
        "pool_documents": int(pooled.sum()),
        "pool_bytes": int(documents.num_bytes[pooled].sum()),
        "with_min_hits": len(ranked),
        "chosen_documents": len(taken),
        "chosen_bytes": int(documents.num_bytes[taken].sum()),
        "is_whole_pool": len(taken) == len(ranked),
        "mean_log_weight_pool": float(weights[pooled].mean()) if pooled.any() else None,
        "mean_log_weight_chosen": float(weights[taken].mean()) if len(taken) else None,
    }
    return Choice(is_chosen, weights, reason_of, facts)


def take(ranked: NDArray[np.int64], num_bytes: NDArray[np.int64], *, max_documents: int | None, max_bytes: int | None) -> NDArray[np.int64]:
    """Return the first of ranked documents within both bounds; one that no longer fits is passed over for those behind it."""
    limit = len(ranked) if max_documents is None else min(max_documents, len(ranked))
    if max_bytes is None:
        return ranked[:limit]
    taken: list[NDArray[np.int64]] = []
    left = max_bytes
    while limit and len(ranked := ranked[num_bytes[ranked] <= left]):
        fitting = ranked[: min(limit, int(np.searchsorted(np.cumsum(num_bytes[ranked]), left, side="right")))]
        taken.append(fitting)
        left -= int(num_bytes[fitting].sum())
        limit -= len(fitting)
        ranked = ranked[len(fitting) :]
    return np.concatenate(taken) if taken else ranked[:0]
