"""Finds which document each document gives way to, over all sources at once, from a few numbers a document.

What is kept follows from the texts alone: the longest of them, then the one with the smallest digest, and of equal texts the one that
stands first. So neither the order of files nor the number of workers changes the outcome.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from megatron_cpt.corpus.dedup.bands import NO_KEY, similarity
from megatron_cpt.text.runs import Hashes, Places

BATCH_DOCUMENTS = 4096  # of whole clusters that are looked at together
BLOCK_CHARS = 1 << 23  # of text whose shingles are asked for at a time
MAX_COMPARED = 128  # kept documents that one document is compared with, and that are found by one key
MAX_CACHED_SHINGLES = 1 << 25  # 256 MiB of 8 bytes


def find_duplicates(
    digests: NDArray[np.uint64],
    lengths: NDArray[np.int64],
    places: NDArray[np.int64],
    band_keys: NDArray[np.uint64] | None = None,
    *,
    exact: bool = True,
    forms: NDArray[np.uint64] | None = None,
    shingles_of: Callable[[Places], list[Hashes]] | None = None,
    threshold: float = 0.8,
) -> Places:
    """Return for each document the index of the one that is kept in its place: its own, or that of one that itself is kept.

    With `shingles_of` each document that goes has at least `threshold` of Jaccard similarity with the one that is kept, and no two kept
    documents that share a band do. Without it all that hang together by shared bands are one cluster, of which one document is kept.

    Args:
        digests: of the texts, as two numbers each that sort as the digest does; shape (documents, 2).
        lengths: of the texts, in characters; shape (documents,).
        places: order of the documents in the corpus, each once; shape (documents,).
        band_keys: see `BandHasher.keys`; may be a memory map, of which one band is read at a time. None: equal texts alone.
        exact: whether equal texts are duplicates.
        forms: digests by which texts are equal, where it is not that of the text itself; shape (documents, 2).
        shingles_of: returns the shingles of the documents at some indices.
        threshold: see above.
    """
    order = np.lexsort((places, digests[:, 1], digests[:, 0], -lengths))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    kept_of = np.arange(len(order))
    if exact:
        kept_of[order] = order[first_of_equals((digests if forms is None else forms)[order])]
    if band_keys is None:
        return kept_of
    single = np.flatnonzero(kept_of == np.arange(len(kept_of)))
    near_of = np.arange(len(kept_of))
    shingles = None if shingles_of is None else ShingleCache(shingles_of)
    for clusters in _clusters(band_keys, single, rank, at_least=BATCH_DOCUMENTS):
        if shingles is None:
            for members in clusters:
                near_of[members] = members[0]
        else:
            for document, kept in _verified(clusters, lengths, band_keys, shingles, threshold):
                near_of[document] = kept
    result: Places = near_of[kept_of]
    return result


def first_of_equals(keys: NDArray[np.uint64]) -> Places:
    """Return for each row of `keys`, shape (rows, 2), the first row that is equal to it."""
    order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable: equal rows stay in their order
    ordered = keys[order]
    begins = np.ones(len(order), dtype=bool)
    begins[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    found = np.empty(len(order), dtype=np.int64)
    found[order] = order[np.flatnonzero(begins)[np.cumsum(begins) - 1]] if len(order) else order
    return found


def _clusters(band_keys: NDArray[np.uint64], single: Places, rank: Places, *, at_least: int) -> Iterator[list[Places]]:
    """Yield, some at a time, the clusters of documents that hang together by shared bands, each by rank; a lone document is none."""
    root = np.arange(len(single))
    for band in range(band_keys.shape[1]):
        keys = np.asarray(band_keys[:, band])[single]
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        same = (ordered[1:] == ordered[:-1]) & (ordered[1:] != NO_KEY)
        join(root, order[:-1][same], order[1:][same])
    by_root = np.lexsort((rank[single], root))
    edges = np.flatnonzero(np.diff(root[by_root])) + 1
    begins, ends = np.concatenate([[0], edges]), np.concatenate([edges, [len(single)]])
    batch: list[Places] = []
    size = 0
    for begin, end in zip(begins[ends - begins > 1].tolist(), ends[ends - begins > 1].tolist(), strict=True):
        batch.append(single[by_root[begin:end]])
        size += end - begin
        if size >= at_least:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def join(root: Places, left: Places, right: Places) -> None:
    """Unite the sets of `left[i]` and `right[i]` for each i: afterwards `root[x]` is the smallest member of the set of x.

    Larger roots are hooked below smaller ones and paths halved until nothing changes (Shiloach and Vishkin 1982).
    """
    while True:
        ours, theirs = root[left], root[right]
        differ = ours != theirs
        if not differ.any():
            return
        left, right = left[differ], right[differ]
        np.minimum.at(root, np.maximum(ours, theirs)[differ], np.minimum(ours, theirs)[differ])
        while not np.array_equal(above := root[root], root):
            root[:] = above


def _verified(
    clusters: list[Places], lengths: NDArray[np.int64], band_keys: NDArray[np.uint64], shingles: ShingleCache, threshold: float
) -> Iterator[tuple[int, int]]:
    """Yield `(document, kept)` for each document that is similar enough to one that is kept and shares a band with it.

    Documents come by rank, so that each meets those that go before it; `sharing` holds the kept ones of a cluster by band key.
    """
    documents = np.concatenate(clusters)
    starts = set(np.cumsum([0, *map(len, clusters)]).tolist())
    block_of = np.cumsum(lengths[documents]) // BLOCK_CHARS
    sharing: dict[int, list[int]] = {}
    for begin, end in pairwise([0, *(np.flatnonzero(np.diff(block_of)) + 1).tolist(), len(documents)]):
        block = documents[begin:end]
        shingles.load(block)
        for place, document, keys in zip(range(begin, end), block.tolist(), band_keys[block].tolist(), strict=True):
            if place in starts:
                sharing = {}
            kept = _similar(document, keys, sharing, shingles, threshold)
            if kept is None:
                for key in keys:
                    if len(bucket := sharing.setdefault(key, [])) < MAX_COMPARED:
                        bucket.append(document)
            else:
                yield document, kept


def _similar(document: int, keys: list[int], sharing: dict[int, list[int]], shingles: ShingleCache, threshold: float) -> int | None:
    """Return the first kept document that is similar enough, of those that share a band with this one; most bands first, then by rank."""
    shared = Counter(kept for key in keys for kept in sharing.get(key, ()))
    for kept, _ in sorted(shared.items(), key=lambda pair: -pair[1])[:MAX_COMPARED]:
        if similarity(shingles[document], shingles[kept], at_least=threshold) >= threshold:
            return kept
    return None


class ShingleCache:
    """The shingles of the documents that were asked for last, up to `MAX_CACHED_SHINGLES`."""

    def __init__(self, shingles_of: Callable[[Places], list[Hashes]]) -> None:
        self._shingles_of = shingles_of
        self._held: dict[int, Hashes] = {}
        self._size = 0

    def load(self, documents: Places) -> None:
        for document, shingles in zip(documents.tolist(), self._shingles_of(documents), strict=True):
            self._held[document] = shingles
            self._size += len(shingles)
        while self._size > MAX_CACHED_SHINGLES and len(self._held) > len(documents):
            self._size -= len(self._held.pop(next(iter(self._held))))

    def __getitem__(self, document: int) -> Hashes:
        if document not in self._held:
            self.load(np.array([document]))
        return self._held[document]
