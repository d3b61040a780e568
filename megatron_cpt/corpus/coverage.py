"""What of a domain the training side of a corpus holds: terms seen and how often, topics, and what is missing.

The domain is the target of the selection (`corpus.select.target`), the user's term list (`corpus.select.terms`), or both.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

from megatron_cpt.config.schema import CorpusConfig
from megatron_cpt.corpus.distinctive import RunCounts, distinctive_terms
from megatron_cpt.corpus.select.terms import TermFinder
from megatron_cpt.corpus.topics import MAX_DOCUMENTS, Topics
from megatron_cpt.errors import CptError

SAMPLE_BYTES = 3_000_000  # of the target and of what it is held against, for drawing terms
SLICE_BYTES = 32_000_000  # of a train file, counted by one process at a time
# a year that a text names says how recent it is; most texts have no date of their own
_YEAR = re.compile(r"(?<![\w.,-])(1[5-9]\d\d|20\d\d)(?![\w-]|[.,]\d)|(?<!\d)(1[5-9]\d\d|20\d\d)(?=年)")


@dataclass(frozen=True)
class Yardstick:
    """What a corpus is held against.

    Attributes:
        terms: the user's, or those that set the target apart.
        terms_from: `list`, `target`, or empty where there are none.
        in_target: how often each term stands in the sample of the target; zeros without a target.
        topics: of the target; None without one.
    """

    terms: tuple[str, ...]
    terms_from: str
    in_target: tuple[int, ...]
    topics: Topics | None

    @classmethod
    def of(cls, settings: CorpusConfig, *, terms: Sequence[str], target: Sequence[str], others: Sequence[str]) -> Yardstick:
        """Take the terms of a list, or draw them from the target, and group the target's texts.

        Args:
            terms: of the user's list; empty draws them.
            target: a sample of the target, in an order that follows from the texts; empty where there is none.
            others: a sample of the other documents.
        """
        chosen, terms_from = tuple(terms), "list" if terms else ""
        if not terms and target and settings.coverage.num_terms:
            here = RunCounts.of(target)
            chosen = tuple(distinctive_terms(here, here + RunCounts.of(others), limit=settings.coverage.num_terms))
            terms_from = "target" if chosen else ""
        finder = TermFinder(chosen)
        in_target: Counter[int] = Counter()
        for text in target:
            in_target.update(finder.found(text))
        topics = (
            Topics.of(target[:MAX_DOCUMENTS], num_topics=settings.coverage.num_topics) if target and settings.coverage.num_topics else None
        )
        return cls(chosen, terms_from, tuple(in_target[place] for place in range(len(chosen))), topics)


@dataclass
class Seen:
    """What was counted in some documents; terms by their place, topics with one more for documents of none of them."""

    documents: int = 0
    num_bytes: int = 0
    terms: Counter[int] = field(default_factory=Counter)
    term_documents: Counter[int] = field(default_factory=Counter)
    topics: Counter[int] = field(default_factory=Counter)
    decades: Counter[int] = field(default_factory=Counter)

    def add(self, text: str, finder: TermFinder, topics: Topics | None) -> None:
        self.documents += 1
        self.num_bytes += len(text.encode("utf-8"))
        found = finder.found(text)
        self.terms.update(found)
        self.term_documents.update(found.keys())
        if topics is not None:
            self.topics[topics.topic_of(text)] += 1
        self.decades.update({int(one or other) // 10 * 10 for one, other in _YEAR.findall(text)})

    def __iadd__(self, other: Seen) -> Seen:
        self.documents += other.documents
        self.num_bytes += other.num_bytes
        for mine, theirs in zip(self._counters(), other._counters(), strict=True):
            mine.update(theirs)
        return self

    def _counters(self) -> tuple[Counter[int], ...]:
        return self.terms, self.term_documents, self.topics, self.decades


def sampled(texts: Iterable[tuple[int, str]], *, max_bytes: int = SAMPLE_BYTES) -> list[str]:
    """Return the texts with the smallest digests, given as `(digest, text)`, up to a size and one at least: the same in any order."""
    kept: list[tuple[int, str]] = []
    size = 0
    for digest, text in texts:
        kept.append((digest, text))
        size += len(text)
        if size > 4 * max_bytes:
            kept = _smallest(kept, max_bytes)
            size = sum(len(text) for _, text in kept)
    return [text for _, text in _smallest(kept, max_bytes)]


def _smallest(texts: list[tuple[int, str]], max_bytes: int) -> list[tuple[int, str]]:
    texts.sort()
    size = 0
    for place, (_, text) in enumerate(texts):
        size += len(text.encode("utf-8"))
        if size > max_bytes:
            return texts[: max(place, 1)]
    return texts


def count_files(paths: dict[str, Path], yardstick: Yardstick, *, workers: int | None) -> dict[str, Seen]:
    """Return what was counted in each source's file of documents, in as many processes as there is work and cores for.

    Raises:
        CptError: a process died.
    """
    pieces = [(name, path, start) for name, path in paths.items() for start in range(0, max(path.stat().st_size, 1), SLICE_BYTES)]
    seen = {name: Seen() for name in paths}
    count = min(workers or len(os.sched_getaffinity(0)), len(pieces))
    if count <= 1:
        finder = TermFinder(yardstick.terms)
        for name, path, start in pieces:
            seen[name] += count_slice(path, start, finder, yardstick.topics)
        return seen
    try:
        with ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _begin, (yardstick,)) as pool:
            for (name, _, _), found in zip(pieces, pool.map(_count, pieces), strict=True):
                seen[name] += found
    except BrokenProcessPool:
        raise CptError(
            "A process that counts the corpus died.", where="corpus", next_step="Lower corpus.engine.workers, and run again."
        ) from None
    return seen


def count_slice(path: Path, start: int, finder: TermFinder, topics: Topics | None) -> Seen:
    """Count the documents whose lines begin within one slice of a file."""
    seen = Seen()
    with path.open("rb") as file:
        if start:
            file.seek(start - 1)
            file.readline()  # the rest of the line that began before
        while file.tell() < start + SLICE_BYTES and (line := file.readline()):
            seen.add(json.loads(line)["text"], finder, topics)
    return seen


_finder: TermFinder = TermFinder(())  # what a process of the pool was given
_topics: Topics | None = None


def _begin(yardstick: Yardstick) -> None:
    global _finder, _topics
    _finder, _topics = TermFinder(yardstick.terms), yardstick.topics


def _count(piece: tuple[str, Path, int]) -> Seen:
    return count_slice(piece[1], piece[2], _finder, _topics)
