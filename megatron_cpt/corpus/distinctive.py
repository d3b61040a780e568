"""Which terms set some texts apart from others: words and pairs of words, or runs of two to four characters where a script has no spaces.

Log odds with an informative Dirichlet prior: Monroe, Colaresi and Quinn 2008 ("Fightin' Words"), equations 16 and 20. Terms are ranked by
the lower end of the interval around the log odds: by z, the most frequent words of the sample would come first, domain or not.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from megatron_cpt.corpus.select.ngrams import term_units
from megatron_cpt.text.units import SPACELESS

PRIOR_UNITS = 1_000.0  # weight of the prior, which is the frequency in both samples together
SURE = 1.96  # standard errors below the log odds
MIN_LOG_ODDS = math.log(3.0)  # at the lower end: three times as frequent as elsewhere
MIN_COHESION = 8.0  # a run of characters stands together so many times as often as its parts would by chance
MIN_COUNT, MIN_DOCUMENTS = 5, 2
MAX_SHARE_ELSEWHERE = 0.1  # a term in more of the other documents is general, whatever its odds
MAX_SHARE_IN_PAIRS = 0.5  # words in more of the sample's documents, such as "the", begin or end no pair
MIN_REST = 1_000  # runs of a kind in the rest, below which there is nothing to compare with
SELDOM_ALONE = 0.9  # a term that stands within one longer term this often is a part of it
NUMERALS = frozenset("第一二三四五六七八九十百千万零〇两")
_WORD = re.compile(rf"[^\W\d_{SPACELESS}][^_]+")
_CHARACTER = re.compile(f"[{SPACELESS}]")


@dataclass
class RunCounts:
    """How often each run stands in a sample and in how many of its documents; runs of one kind and length share a total."""

    counts: Counter[tuple[str, ...]] = field(default_factory=Counter)
    documents: Counter[tuple[str, ...]] = field(default_factory=Counter)
    totals: Counter[tuple[bool, int]] = field(default_factory=Counter)
    num_documents: int = 0

    @classmethod
    def of(cls, texts: Iterable[str]) -> RunCounts:
        found = cls()
        for text in texts:
            here = Counter(runs_of(text))
            found.counts.update(here)
            found.documents.update(here.keys())
            found.num_documents += 1
        for run, count in found.counts.items():
            found.totals[kind_of(run)] += count
        return found

    def __add__(self, other: RunCounts) -> RunCounts:
        return RunCounts(
            Counter(self.counts) + other.counts,
            Counter(self.documents) + other.documents,
            Counter(self.totals) + other.totals,
            self.num_documents + other.num_documents,
        )


def runs_of(text: str) -> Iterable[tuple[str, ...]]:
    """Yield words of two letters or more, pairs of them, and runs of one to four characters of a script without spaces."""
    units = term_units(text)
    kinds = ["c" if _CHARACTER.fullmatch(unit) else "w" if _WORD.fullmatch(unit) else "-" for unit in units]
    for match in re.finditer("c+|w+", "".join(kinds)):
        start, end = match.span()
        longest = 4 if kinds[start] == "c" else 2
        for length in range(1, longest + 1):
            for first in range(start, end - length + 1):
                yield tuple(units[first : first + length])


def kind_of(run: Sequence[str]) -> tuple[bool, int]:
    return _CHARACTER.fullmatch(run[0]) is not None, len(run)


def spelt(run: Sequence[str]) -> str:
    """Return a run as a term."""
    return ("" if kind_of(run)[0] else " ").join(run)


def distinctive_terms(here: RunCounts, everywhere: RunCounts, *, limit: int) -> list[str]:
    """Return the terms that set a sample apart from the rest of what it is a part of, the surest first; none where there is no rest.

    A script that the rest does not hold is distinctive as a whole: then its terms come by how many documents hold them.
    """
    num_others = everywhere.num_documents - here.num_documents
    if num_others == 0:
        return []
    general = {run for run, documents in here.documents.items() if len(run) == 1 and documents > MAX_SHARE_IN_PAIRS * here.num_documents}
    scored = []
    for run, count in here.counts.items():
        if count < MIN_COUNT or here.documents[run] < min(MIN_DOCUMENTS, here.num_documents):
            continue
        if everywhere.documents[run] - here.documents[run] > MAX_SHARE_ELSEWHERE * num_others:
            continue
        kind = kind_of(run)
        if not (is_cohesive(run, here) if kind[0] else len(run) == 1 or not any((word,) in general for word in run)):
            continue
        total, rest = here.totals[kind], everywhere.totals[kind] - here.totals[kind]
        surety = least_log_odds(count, everywhere.counts[run] - count, total, rest) if rest >= MIN_REST else float(here.documents[run])
        if surety >= MIN_LOG_ODDS:
            scored.append((-surety, run))
    taken_over = {
        part
        for _, run in scored
        for part in (run[1:], run[:-1])
        if len(part) >= (2 if kind_of(run)[0] else 1) and here.counts[run] >= SELDOM_ALONE * here.counts[part]
    }
    return [spelt(run) for _, run in sorted(scored) if run not in taken_over][:limit]


def is_cohesive(run: tuple[str, ...], counted: RunCounts) -> bool:
    """Say whether characters make a term: two or more, no number at either end, and no chance meeting of two parts."""
    if len(run) < 2 or run[0] in NUMERALS or run[-1] in NUMERALS:
        return False
    total = counted.totals[(True, 1)]
    by_chance = (counted.counts[run[:cut]] * counted.counts[run[cut:]] / total for cut in range(1, len(run)))
    return counted.counts[run] >= MIN_COHESION * max(by_chance)


def least_log_odds(count: int, count_there: int, total: int, total_there: int) -> float:
    """Return the lower end of the interval around the log odds ratio of a term in one sample against another."""
    prior = PRIOR_UNITS * (count + count_there) / (total + total_there)
    odds = (count + prior) / (total + PRIOR_UNITS - count - prior)
    odds_there = (count_there + prior) / (total_there + PRIOR_UNITS - count_there - prior)
    return math.log(odds / odds_there) - SURE * math.sqrt(1 / (count + prior) + 1 / (count_there + prior))
