"""Gopher's repetition rules: how much of a text is said more than once. Decides as datatrove's `GopherRepetitionFilter`.

Runs of words are compared by 64-bit hashes: two of a thousand different runs share one with a chance of about 3e-14. Most texts pass on
an upper bound of what repeats; where the bound is over a threshold the share is counted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from megatron_cpt.config.filter_schema import RepetitionRulesConfig
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


def repeated_ngrams(num_chars: int, words: Words, rules: RepetitionRulesConfig) -> Found | None:
    """Return what the rules on runs of words find in a text of `num_chars` characters, if anything."""
    for n, threshold in rules.max_top_ngram_chars.items():
        if (share := top_ngram_share(words, n, num_chars, threshold)) > threshold:
            return Found(f"max_top_ngram_chars.{n}", share, threshold)
    sizes = {n: threshold for n, threshold in rules.max_duplicate_ngram_chars.items() if n <= words.num}
    if not sizes:
        return None
    # What is covered by repeated runs of the smallest size covers all longer repeated runs.
    covered = chars_in_repeated_runs(words, min(sizes))
    for n, threshold in sizes.items():
        if covered / num_chars > threshold and (share := duplicate_ngram_chars(words, n) / num_chars) > threshold:
            return Found(f"max_duplicate_ngram_chars.{n}", share, threshold)
    return None


def top_ngram_share(words: Words, n: int, num_chars: int, threshold: float) -> float:
    """Return the share of the characters, spaces between words included, that the most frequent `n` words take; the first of equals counts.

    Where it cannot be above the threshold, 0 is returned.
    """
    if words.num < n:
        return 0.0
    hashes = words.sequence_hashes(n)
    chars = words.run_lengths(n) + (n - 1)
    in_order = np.sort(hashes)
    changes = np.flatnonzero(in_order[1:] != in_order[:-1])
    most = int(np.diff(changes, prepend=-1, append=len(in_order) - 1).max())
    if most * int(chars.max()) / num_chars <= threshold:
        return 0.0
    _, first, count = np.unique(hashes, return_index=True, return_counts=True)
    return int(chars[first[count == most].min()]) * most / num_chars


def _repeats(hashes: NDArray[np.uint64]) -> NDArray[np.bool_] | None:
    """Say of each hash whether an equal one stands before it; None where none does."""
    in_order = np.sort(hashes)
    if not (in_order[1:] == in_order[:-1]).any():
        return None
    order = np.argsort(hashes, kind="stable")
    repeats = np.zeros(len(hashes), np.bool_)
    in_order = hashes[order]
    repeats[order[1:]] = in_order[1:] == in_order[:-1]
    return repeats


def chars_in_repeated_runs(words: Words, n: int) -> int:
    """Return the characters of all words that lie in some run of `n` words which stood before: a bound of what any longer run repeats."""
    repeats = _repeats(words.joined_hashes(n))
    if repeats is None:
        return 0
    opened = np.zeros(words.num + 1, np.int64)
    starts = np.flatnonzero(repeats)
    opened[starts] = 1
    opened[starts + n] -= 1
    return int(words.lengths[np.cumsum(opened[:-1]) > 0].sum())


def duplicate_ngram_chars(words: Words, n: int) -> int:
    """Return the characters of runs of `n` words that stood before, walking on behind each such run as datatrove does.

    Runs are equal when their words, written without spaces, are.
    """
    hashes = words.joined_hashes(n)
    in_order = np.sort(hashes)
    twice = np.unique(in_order[1:][in_order[1:] == in_order[:-1]])
    if len(twice) == 0:
        return 0
    at = np.flatnonzero(np.isin(hashes, twice))  # a run that stands once can neither repeat nor be repeated
    chars = words.run_lengths(n)[at].tolist()
    seen: set[int] = set()
    total = position = 0
    for index, value, length in zip(at.tolist(), hashes[at].tolist(), chars, strict=True):
        if index < position:
            continue
        if value in seen:
            total += length
            position = index + n
        else:
            seen.add(value)
    return total
