"""What depends on more than one document: copies, selection, and ids that stand twice. Arrays over all survivors, in corpus order.

A survivor is a number here: its place in the order of the corpus (sources by name, files by path, records by place).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_cpt.corpus.compare_block import compares_units
from megatron_cpt.corpus.dedup.bands import BandHasher
from megatron_cpt.corpus.dedup.find import find_duplicates, first_of_equals
from megatron_cpt.corpus.scratch import Shard
from megatron_cpt.corpus.select.choose import Choice
from megatron_cpt.corpus.select.in_corpus import choose_documents
from megatron_cpt.corpus.survivors import Survivors
from megatron_cpt.corpus.tasks import TaskPlan
from megatron_cpt.text.runs import Hashes

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


def decide(shards: Sequence[Shard], plan: TaskPlan, scratch: Path, *, seed: int) -> Decisions:
    """Decide on every survivor; memory is some 80 bytes a document, and 8 more while a band of near-duplicate keys is looked at;
    50 more with a selection.

    Args:
        scratch: a folder for the keys of all shards together, band by band.
    """
    settings = plan.settings
    first = np.concatenate([[0], np.cumsum([shard.counts.kept for shard in shards], dtype=np.int64)])
    num_documents, near = int(first[-1]), settings.dedup.near
    digests, ids = np.empty((num_documents, 2), np.uint64), np.empty((num_documents, 2), np.uint64)
    lengths = np.empty(num_documents, np.int64)
    forms = np.empty((num_documents, 2), np.uint64) if compares_units(settings) else None
    bands = KeysOnDisk(scratch, num_documents, near.num_bands) if near.enabled and num_documents else None
    for number, shard in enumerate(shards):
        documents = shard.documents()
        rows = slice(int(first[number]), int(first[number + 1]))
        digests[rows, 0], digests[rows, 1] = documents["sha256_high"], documents["sha256_low"]
        ids[rows, 0], ids[rows, 1] = documents["id_high"], documents["id_low"]
        lengths[rows] = documents["num_chars"]
        if len(documents) and forms is not None:
            forms[rows] = shard.rows("form", np.uint64, width=2)
        if len(documents) and bands is not None:
            bands.keys[rows] = shard.rows("bands", np.uint64, width=near.num_bands)
    hasher, survivors = BandHasher(near), Survivors(shards, first)

    def shingles_of(rows: np.ndarray) -> list[Hashes]:
        return hasher.shingles([record["text"] for record in survivors.records(rows)])

    kept_of = find_duplicates(
        digests, lengths, np.arange(num_documents), None if bands is None else bands.keys,
        exact=settings.dedup.exact, forms=forms, shingles_of=shingles_of if near.verify else None, threshold=near.threshold,
    )  # fmt: skip
    same = digests if forms is None else forms
    equal = (same == same[kept_of]).all(axis=1)
    reason = np.zeros(num_documents, np.uint8)
    reason[kept_of != np.arange(num_documents)] = NEAR_DUPLICATE
    reason[(reason == NEAR_DUPLICATE) & equal] = DUPLICATE
    choice = choose_documents(plan, shards, reason == KEPT, seed=seed)
    if choice is not None:
        reason[(reason == KEPT) & ~choice.is_chosen] = NOT_SELECTED
    return Decisions(first, reason, kept_of, repeated_ids(ids, reason == KEPT), choice)


class KeysOnDisk:
    """The band keys of all documents, shape (documents, num_bands), in a file where each band is of one piece."""

    def __init__(self, folder: Path, num_documents: int, num_bands: int) -> None:
        self.keys = np.memmap(folder / "bands.bin", np.uint64, "w+", shape=(num_bands, num_documents)).T


def repeated_ids(ids: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Say of each row whether it is kept and an earlier kept row has the same id."""
    rows = np.flatnonzero(kept)
    repeated = np.zeros(len(ids), bool)
    repeated[rows] = first_of_equals(ids[rows]) != np.arange(len(rows))
    return repeated
