"""What depends on more than one document: copies, selection, and ids that stand twice. Arrays over all survivors, in corpus order.

A survivor is a number here: its place in the order of the corpus (sources by name, files by path, records by place).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_cpt.corpus.scratch import Shard
from megatron_cpt.corpus.select.choose import Choice
from megatron_cpt.corpus.select.in_corpus import choose_documents
from megatron_cpt.corpus.tasks import TaskPlan

KEPT, DUPLICATE, NEAR_DUPLICATE, NOT_SELECTED = range(4)
REASONS = ("kept", "duplicate", "near_duplicate", "not_selected")


@dataclass(frozen=True)
class Decisions:
    """One row a survivor, `first` the row at which each shard begins (and the number of all at the end).

    Attributes:
        reason: uint8, an index into `REASONS`.
        kept_of: int64, the row of the copy that is kept; its own row where it is no copy.
        renamed: bool, its id stands at an earlier kept document too, so the digest of its text is added to it.
        choice: of the pool's documents by their likeness to a domain, where there is one.
    """

    first: np.ndarray
    reason: np.ndarray
    kept_of: np.ndarray
    renamed: np.ndarray
    choice: Choice | None = None

    def of_shard(self, number: int) -> slice:
        return slice(int(self.first[number]), int(self.first[number + 1]))


def decide(shards: Sequence[Shard], plan: TaskPlan, *, seed: int) -> Decisions:
    """Decide on every survivor; memory is some 60 bytes a document, 130 with a selection."""
    first = np.concatenate([[0], np.cumsum([shard.counts.kept for shard in shards], dtype=np.int64)])
    digests, ids = np.empty((int(first[-1]), 2), np.uint64), np.empty((int(first[-1]), 2), np.uint64)
    for number, shard in enumerate(shards):
        documents = shard.documents()
        rows = slice(int(first[number]), int(first[number + 1]))
        digests[rows, 0], digests[rows, 1] = documents["sha256_high"], documents["sha256_low"]
        ids[rows, 0], ids[rows, 1] = documents["id_high"], documents["id_low"]
    reason = np.zeros(len(digests), np.uint8)
    kept_of = first_of_equal(digests) if plan.settings.dedup.exact else np.arange(len(digests))
    reason[kept_of != np.arange(len(digests))] = DUPLICATE
    choice = choose_documents(plan, shards, reason == KEPT, seed=seed)
    if choice is not None:
        reason[(reason == KEPT) & ~choice.is_chosen] = NOT_SELECTED
    return Decisions(first, reason, kept_of, repeated_ids(ids, reason == KEPT), choice)


def first_of_equal(keys: np.ndarray) -> np.ndarray:
    """Return for each row of `keys`, shape (n, 2), the first row that is equal to it."""
    order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable: equal rows stay in their order
    ordered = keys[order]
    begins = np.ones(len(order), bool)
    begins[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    found = np.empty(len(order), np.int64)
    found[order] = order[np.flatnonzero(begins)[np.cumsum(begins) - 1]] if len(order) else order
    return found


def repeated_ids(ids: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Say of each row whether it is kept and an earlier kept row has the same id."""
    rows = np.flatnonzero(kept)
    repeated = np.zeros(len(ids), bool)
    repeated[rows] = first_of_equal(ids[rows]) != np.arange(len(rows))
    return repeated
