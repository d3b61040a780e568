"""Gopher's repetition rules: how much of a text is said more than once. Decides as datatrove's `GopherRepetitionFilter`.

Runs of words are compared by 64-bit hashes: two of a thousand different runs share one with a chance of about 3e-14. Most texts pass on
an upper bound of what repeats; where the bound is over a threshold the share is counted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from megatron_cpt.config.filter_schema import NgramLimitConfig, RepetitionRulesConfig
from megatron_cpt.corpus.filters.found import Found
from megatron_cpt.corpus.filters.words import Words

PARAGRAPH_BREAK = re.compile(r"\n{2,}")


def repeated(parts: Sequence[str]) -> tuple[int, int]:
    """Return how many of the parts stood before, and their characters."""
    once = set(parts)
    if len(once) == len(parts):
        return 0, 0
    return len(parts) - len(once), sum(map(len, parts)) - sum(map(len, once))


def split_lines(text: str) -> list[str]:
    """Return what stands between runs of line feeds, as `re.split("\\\\n+", text)` does."""
    lines = text.split("\n")
    if "\n\n" in text:
        lines = [*([""] if text.startswith("\n") else []), *filter(None, lines), *([""] if text.endswith("\n") else [])]
    return lines


def repeated_lines(text: str, rules: RepetitionRulesConfig) -> Found | None:
    """Return what the rules on paragraphs and lines find in a text, if anything."""
    if rules.max_duplicate_paragraphs or rules.max_duplicate_paragraph_chars:
        paragraphs = PARAGRAPH_BREAK.split(text.strip()) if "\n\n" in text else [text.strip()]
        number, chars = repeated(paragraphs)
        if rules.max_duplicate_paragraphs and number / len(paragraphs) > rules.max_duplicate_paragraphs:
            return Found("max_duplicate_paragraphs", number / len(paragraphs), rules.max_duplicate_paragraphs)
        if rules.max_duplicate_paragraph_chars and chars / len(text) > rules.max_duplicate_paragraph_chars:
            return Found("max_duplicate_paragraph_chars", chars / len(text), rules.max_duplicate_paragraph_chars)
    if rules.max_duplicate_lines or rules.max_duplicate_line_chars:
        lines = split_lines(text)
        number, chars = repeated(lines)
        if rules.max_duplicate_lines and number / len(lines) > rules.max_duplicate_lines:
            return Found("max_duplicate_lines", number / len(lines), rules.max_duplicate_lines)
        if rules.max_duplicate_line_chars and chars / len(text) > rules.max_duplicate_line_chars:
            return Found("max_duplicate_line_chars", chars / len(text), rules.max_duplicate_line_chars)
    return None


def _by_n(limits: Sequence[NgramLimitConfig]) -> dict[int, float]:
    return {limit.n: limit.share for limit in limits}


def repeated_ngrams(num_chars: int, words: Words, rules: RepetitionRulesConfig) -> Found | None:
    """Return what the rules on runs of words find in a text of `num_chars` characters, if anything."""
    for n, threshold in _by_n(rules.max_top_ngram_chars).items():
        if (share := top_ngram_share(words, n, num_chars, threshold)) > threshold:
            return Found(f"max_top_ngram_chars.{n}", share, threshold)
    sizes = {n: threshold for n, threshold in _by_n(rules.max_duplicate_ngram_chars).items() if n <= words.num}
    if not sizes:
        return None
    runs = RepeatedRuns(words, min(sizes))
    # What is covered by repeated runs of the smallest size covers all longer repeated runs.
    covered = runs.covered_chars() / num_chars
    for n, threshold in sizes.items():
        if covered > threshold and (share := runs.of_size(n).walked_chars() / num_chars) > threshold:
            return Found(f"max_duplicate_ngram_chars.{n}", share, threshold)
    return None


def top_ngram_share(words: Words, n: int, num_chars: int, threshold: float) -> float:
    """Return the share of the characters, spaces between words included, that the most frequent `n` words take; the first of equals counts.

    Where it cannot be above the threshold, 0 is returned.
    """
    if words.num < n:
        return 0.0
    chars = words.run_lengths(n) + (n - 1)
    longest = int(chars.max())
    enough = int(threshold * num_chars / longest)  # so often may the longest stand
    enough -= enough * longest / num_chars > threshold
    if enough >= len(chars):
        return 0.0
    hashes = words.sequence_hashes(n)
    in_order = np.sort(hashes)
    if not (in_order[enough:] == in_order[: len(in_order) - enough]).any():
        return 0.0
    _, first, count = np.unique(hashes, return_index=True, return_counts=True)
    most = count.max()
    return int(chars[first[count == most].min()]) * int(most) / num_chars


class RepeatedRuns:
    """The runs of `n` words that stand more than once; runs are equal when their words, written without spaces, are.

    Attributes:
        at: the word with which each begins, ascending.
        hashes: the hash of each.
    """

    def __init__(self, words: Words, n: int, at: NDArray[np.int64] | None = None, hashes: NDArray[np.uint64] | None = None) -> None:
        self.words, self.n = words, n
        if at is None or hashes is None:
            hashes = words.joined_hashes(n)
            at = np.arange(len(hashes))
        in_order = np.sort(hashes)
        if not (in_order[1:] == in_order[:-1]).any():
            at, hashes = at[:0], hashes[:0]
        order = np.argsort(hashes)
        in_order = hashes[order]
        same = in_order[1:] == in_order[:-1]
        twice = np.zeros(len(hashes), np.bool_)
        twice[:-1] = same
        twice[1:] |= same
        kept = np.zeros(len(hashes), np.bool_)
        kept[order[twice]] = True
        self.at, self.hashes = at[kept], hashes[kept]

    def of_size(self, n: int) -> RepeatedRuns:
        """Return the repeated runs of another, not smaller, size: they begin where a repeated run begins, and so does their second word."""
        if n < self.n:
            return RepeatedRuns(self.words, n)
        runs = self
        while runs.n < n:
            follows = np.flatnonzero(runs.at[1:] == runs.at[:-1] + 1)
            at = runs.at[follows]
            hashes = runs.hashes[follows] * self.words.steps[at + runs.n] + self.words.hashes[at + runs.n]
            runs = RepeatedRuns(self.words, runs.n + 1, at, hashes)
        return runs

    def covered_chars(self) -> int:
        """Return the characters of all words that lie in a run which stood before."""
        if len(self.at) == 0:
            return 0
        order = np.argsort(self.hashes)
        in_order = self.hashes[order]
        groups = np.flatnonzero(np.append(True, in_order[1:] != in_order[:-1]))
        later = np.ones(len(order), np.bool_)
        later[np.minimum.reduceat(order, groups)] = False  # the first of each group
        starts = self.at[later]
        opened = np.zeros(self.words.num + 1, np.int64)
        opened[starts] = 1
        opened[starts + self.n] -= 1
        return int(self.words.lengths[np.cumsum(opened[:-1]) > 0].sum())

    def walked_chars(self) -> int:
        """Return the characters of the runs that stood before, met on a walk that goes on behind each of them, as datatrove counts."""
        chars = (self.words.offsets[self.at + self.n] - self.words.offsets[self.at]).tolist()
        seen: set[int] = set()
        total = position = 0
        for index, value, length in zip(self.at.tolist(), self.hashes.tolist(), chars, strict=True):
            if index < position:
                continue
            if value in seen:
                total += length
                position = index + self.n
            else:
                seen.add(value)
        return total
