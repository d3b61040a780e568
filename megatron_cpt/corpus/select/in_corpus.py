"""Selection within the corpus stage: features as columns of the first pass, and the choice over all of its tasks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_cpt.config.schema import SelectConfig
from megatron_cpt.corpus.coverage import SAMPLE_BYTES, sampled
from megatron_cpt.corpus.scratch import Shard, TaskWriter
from megatron_cpt.corpus.select.choose import Choice, Documents, Features, Selector, choose, count_buckets
from megatron_cpt.corpus.select.ngrams import ngram_buckets
from megatron_cpt.corpus.select.target import chooses, pool_sources, target_sources, target_texts, terms_of
from megatron_cpt.corpus.split import TEST, sides_of
from megatron_cpt.corpus.survivors import Survivors
from megatron_cpt.corpus.tasks import TaskPlan
from megatron_cpt.errors import DataError
from megatron_cpt.record.hashing import sha256_text

BUCKETS, NUM_NGRAMS, HITS = "select_buckets", "select_ngrams", "select_hits"  # columns: one row an n-gram, one a survivor, one a survivor


class FeatureColumns:
    """Adds the features of one task's survivors to its folder."""

    def __init__(self, settings: SelectConfig, writer: TaskWriter) -> None:
        terms = terms_of(settings)
        self._selector, self._writer = Selector(settings, terms.terms if terms else ()), writer

    @staticmethod
    def wanted(plan: TaskPlan, source: str) -> bool:
        """Say whether a source's documents are weighed or weighed against."""
        settings = plan.settings.select
        return chooses(settings) and source in [*pool_sources(settings, plan.sources), *target_sources(settings, plan.sources)]

    def add(self, text: str) -> None:
        """Take the survivor that is about to be written."""
        buckets, hits = self._selector.features(text)
        for name, rows in ((BUCKETS, buckets), (NUM_NGRAMS, np.array([len(buckets)], "<u4")), (HITS, np.array([hits], "<u4"))):
            self._writer.add_rows(name, rows)


def features_of(shard: Shard) -> Features:
    """Return the features of a task's survivors; zeros where its source takes no part."""
    if f"{NUM_NGRAMS}.bin" not in shard.counts.sizes:
        return Features(np.empty(0, np.uint16), np.zeros(shard.counts.kept, np.int64), np.zeros(shard.counts.kept, np.int64))
    path = shard.folder / f"{BUCKETS}.bin"
    buckets: NDArray[np.uint16] = np.memmap(path, "<u2", "r") if path.stat().st_size else np.empty(0, np.uint16)
    return Features(
        buckets,
        shard.rows(NUM_NGRAMS, np.dtype("<u4"), width=1)[:, 0].astype(np.int64),
        shard.rows(HITS, np.dtype("<u4"), width=1)[:, 0].astype(np.int64),
    )


def choose_documents(plan: TaskPlan, shards: Sequence[Shard], is_kept: NDArray[np.bool_], *, seed: int) -> Choice | None:
    """Choose among the kept documents of the pool; None where the settings leave out nothing.

    Of a target that is a source, the documents that are kept and not held out for the test define the domain.

    Raises:
        DataError: the target holds no text.
    """
    settings = plan.settings.select
    if not chooses(settings):
        return None
    parts = [features_of(shard) for shard in shards]
    columns = np.concatenate([shard.documents() for shard in shards])
    is_pooled, is_target = roles_of(plan, shards, columns, is_kept)
    documents = Documents(columns["sha256_high"], columns["sha256_low"], columns["num_bytes"].astype(np.int64), is_pooled)
    target_counts = None
    if settings.target:
        target_counts = count_buckets(parts, is_target, settings.num_buckets) + counts_of(target_texts(settings, plan.sources), settings)
        if not target_counts.any():
            raise DataError(
                "The target of the selection holds no text.", where="corpus.select.target", value=", ".join(settings.target),
                rule="documents that are kept and not held out for the test", next_step="Name a file, or lower the source's test_fraction.",
            )  # fmt: skip
    return choose(parts, documents, target_counts=target_counts, settings=settings, seed=seed)


def roles_of(
    plan: TaskPlan, shards: Sequence[Shard], columns: Any, is_kept: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Say of each document whether it is of the pool, and whether it defines the domain; only kept ones are either."""
    settings = plan.settings.select
    pool, targets = pool_sources(settings, plan.sources), target_sources(settings, plan.sources)
    is_pooled, is_target = np.zeros(len(columns), bool), np.zeros(len(columns), bool)
    ends = np.cumsum([0, *(shard.counts.kept for shard in shards)])
    for task, (start, end) in zip(plan.tasks, pairwise(ends.tolist()), strict=True):
        source, rows = plan.sources[task.source], slice(start, end)
        is_pooled[rows] = is_kept[rows] & (task.source in pool)
        if task.source in targets:
            sides = sides_of(columns["sha256_high"][rows], valid_fraction=source.valid_fraction, test_fraction=source.test_fraction)
            is_target[rows] = is_kept[rows] & (sides != TEST)
    return is_pooled, is_target


def domain_samples(plan: TaskPlan, survivors: Survivors, is_kept: NDArray[np.bool_], choice: Choice | None) -> tuple[list[str], list[str]]:
    """Return a sample of the target's texts and one of other texts, those with the smallest digests.

    Others are what was not chosen and what took no part; where everything was chosen, all that is not of the target.
    """
    settings = plan.settings.select
    columns = np.concatenate([shard.documents() for shard in survivors.shards])
    is_pooled, is_target = roles_of(plan, survivors.shards, columns, is_kept if choice is None else is_kept | ~choice.is_chosen)
    is_other = (is_kept & ~is_target & ~is_pooled) if choice is None else ((is_kept & ~is_pooled) | ~choice.is_chosen) & ~is_target
    if not is_other.any():
        is_other = is_kept & ~is_target

    def smallest(is_wanted: NDArray[np.bool_]) -> Iterator[tuple[int, str]]:
        rows = np.flatnonzero(is_wanted)
        rows = rows[np.lexsort((columns["sha256_low"][rows], columns["sha256_high"][rows]))]
        reached = np.searchsorted(np.cumsum(columns["num_bytes"][rows], dtype=np.int64), SAMPLE_BYTES) + 1
        for row, record in zip(rows[:reached], survivors.records(rows[:reached]), strict=True):
            yield int(columns["sha256_high"][row]), record["text"]

    of_files = ((int(sha256_text(text)[:16], 16), text) for text in target_texts(settings, plan.sources))
    return sampled(chain(smallest(is_target), of_files)), sampled(smallest(is_other))


def counts_of(texts: Iterable[str], settings: SelectConfig) -> NDArray[np.int64]:
    """Return how often each bucket stands in some texts."""
    counts = np.zeros(settings.num_buckets, np.int64)
    for text in texts:
        counts += np.bincount(
            ngram_buckets(text, max_length=settings.ngram, num_buckets=settings.num_buckets), minlength=settings.num_buckets
        )
    return counts
