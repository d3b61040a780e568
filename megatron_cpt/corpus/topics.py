"""Topics of a target: groups of documents with like words, and which of them another text belongs to. Deterministic, no model.

A document is a unit vector of damped counts of its hashed words (pairs of characters where a script has no spaces), weighted by how
few documents hold them; spherical k-means (Dhillon and Modha 2001) groups them, begun several times as k-means++ begins.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np
from numpy.typing import NDArray

from megatron_cpt.corpus.distinctive import RunCounts, distinctive_terms
from megatron_cpt.corpus.select.ngrams import buckets_of, hashes_of
from megatron_cpt.text.units import SPACELESS

NUM_BUCKETS = 16_384
MAX_DOCUMENTS = 1_000  # of a target: 64 MB of vectors
MAX_CHARS = 8_000  # of a document
MAX_NAMING_CHARS = 3_000  # of a document, for the words of its topic
NUM_STARTS, NUM_ROUNDS = 6, 15
NUM_WORDS = 6
LEAST_LIKE = 0.02  # this share of the target's own documents lies below the likeness that counts as of a topic
_WORD = re.compile(rf"[^\W\d_{SPACELESS}]{{2,}}|[{SPACELESS}]{{2,}}")
_IS_SPACELESS = re.compile(f"[{SPACELESS}]")
Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Topics:
    """Groups of a target's documents.

    Attributes:
        centres: unit vectors, shape (topics, NUM_BUCKETS).
        weights: of each bucket, higher where fewer documents hold it.
        least_likeness: below this cosine to every centre a document is of no topic.
        shares: of the target's documents in each topic.
        words: what sets each topic apart from the others.
    """

    centres: Vectors
    weights: Vectors
    least_likeness: float
    shares: tuple[float, ...]
    words: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, texts: Sequence[str], *, num_topics: int) -> Topics:
        """Group texts, which stand in an order that follows from their content; fewer than eight texts a topic make fewer topics."""
        num_topics = max(1, min(num_topics, len(texts) // 8))
        counts = np.stack([_counts(text) for text in texts])
        weights = np.log((1 + len(texts)) / (1 + (counts > 0).sum(axis=0))).astype(np.float32)
        vectors = _unit(counts * weights)
        centres = max((_grouped(vectors, num_topics, seed) for seed in range(NUM_STARTS)), key=lambda found: _likeness(vectors, found))
        group = (vectors @ centres.T).argmax(axis=1)
        order = [topic for topic in np.argsort(-np.bincount(group, minlength=num_topics), kind="stable") if (group == topic).any()]
        centres = centres[order]
        by_topic = [
            RunCounts.of(text[:MAX_NAMING_CHARS] for text, its in zip(texts, group, strict=True) if its == topic) for topic in order
        ]
        everywhere = reduce(add, by_topic)
        return cls(
            centres=centres,
            weights=weights,
            least_likeness=float(np.quantile(_likeness_to_others(vectors, centres), LEAST_LIKE)),
            shares=tuple(counted.num_documents / len(texts) for counted in by_topic),
            words=tuple(tuple(distinctive_terms(counted, everywhere, limit=NUM_WORDS)) for counted in by_topic),
        )

    def topic_of(self, text: str) -> int:
        """Return the topic that a text is most like, or `len(shares)` where it is like none."""
        likeness = self.centres @ _unit((_counts(text) * self.weights)[None])[0]
        best = int(likeness.argmax())
        return best if likeness[best] >= self.least_likeness else len(self.shares)


def _counts(text: str) -> Vectors:
    words: list[str] = []
    for word in _WORD.findall(text[:MAX_CHARS].lower()):
        words += [word[place : place + 2] for place in range(len(word) - 1)] if _IS_SPACELESS.match(word) else [word]
    counts: Vectors = np.log1p(np.bincount(buckets_of(hashes_of(words), NUM_BUCKETS), minlength=NUM_BUCKETS)).astype(np.float32)
    return counts


def _unit(vectors: Vectors) -> Vectors:
    unit: Vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return unit


def _likeness(vectors: Vectors, centres: Vectors) -> float:
    return float((vectors @ centres.T).max(axis=1).sum())


def _likeness_to_others(vectors: Vectors, centres: Vectors) -> Vectors:
    """Return each document's cosine to the nearest centre as it were without that document: how like a new one of the kind is."""
    likeness = vectors @ centres.T
    group = likeness.argmax(axis=1)
    sums = np.stack([vectors[group == topic].sum(axis=0) for topic in range(len(centres))])
    own = (vectors * sums[group]).sum(axis=1)
    rest = np.sqrt(np.maximum((sums[group] ** 2).sum(axis=1) - 2 * own + 1, 1e-12))
    likeness[np.arange(len(vectors)), group] = np.where(np.bincount(group, minlength=len(centres))[group] > 1, (own - 1) / rest, 0.0)
    nearest: Vectors = likeness.max(axis=1)
    return nearest


def _grouped(vectors: Vectors, count: int, seed: int) -> Vectors:
    """Return the centres that one start leads to: documents drawn by how unlike those drawn before they are, then mean after mean."""
    random = np.random.default_rng(seed)
    taken = [int(random.integers(len(vectors)))]
    while len(taken) < count:
        unlike = np.maximum(1.0 - (vectors @ vectors[taken].T).max(axis=1).astype(np.float64), 0.0)
        reached = np.cumsum(unlike)
        taken.append(min(int(np.searchsorted(reached, random.random() * reached[-1], side="right")), len(vectors) - 1))
    centres = vectors[taken]
    group = np.full(len(vectors), -1)
    for _ in range(NUM_ROUNDS):
        before, group = group, (vectors @ centres.T).argmax(axis=1)
        if (before == group).all():
            break
        sums = [vectors[group == topic].sum(axis=0) if (group == topic).any() else centres[topic] for topic in range(count)]
        centres = _unit(np.stack(sums))
    return centres
