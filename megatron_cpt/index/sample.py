"""Draws short windows of token ids from indexed sources, and holds whole documents of them back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_cpt.record.index_pair import open_pair


@dataclass(frozen=True)
class HeldBack:
    """Documents at the end of each pair, without their end marks, and how many tokens of each pair are left before them."""

    documents: list[list[int]]
    tokens_before: tuple[int, ...]


def sample_windows(
    prefixes: Sequence[Path], *, num_windows: int, window_tokens: int, seed: int, tokens_before: Sequence[int] | None = None
) -> list[list[int]]:
    """Return windows at random places of `.bin/.idx` pairs, each source in proportion to its tokens; equal seeds give equal windows.

    A window may cross the end of a document, as training's own windows do. A pair shorter than a window is one window.

    Args:
        tokens_before: of each pair only so many tokens are drawn from; None stands for all.

    Raises:
        DataError: a pair is missing or damaged.
    """
    generator = np.random.default_rng(seed)
    streams = [open_pair(prefix).tokens for prefix in prefixes]
    if tokens_before is not None:
        streams = [tokens[:limit] for tokens, limit in zip(streams, tokens_before, strict=True)]
    sizes = np.array([len(tokens) for tokens in streams], dtype=np.float64)
    if not sizes.sum():
        return []
    windows = []
    for source in generator.choice(len(streams), size=num_windows, p=sizes / sizes.sum()):
        tokens = streams[source]
        start = int(generator.integers(0, max(1, len(tokens) - window_tokens + 1)))
        windows.append(tokens[start : start + window_tokens].tolist())
    return windows


def hold_back(prefixes: Sequence[Path], *, num_tokens: int, document_tokens: int) -> HeldBack:
    """Return the last documents of `.bin/.idx` pairs, each cut to its beginning: about `num_tokens`, shared out equally.

    Never more than half of a pair's documents are held back, so that something is left to draw from; with one document it is nothing.

    Raises:
        DataError: a pair is missing or damaged.
    """
    documents, before = [], []
    for prefix in prefixes:
        pair = open_pair(prefix)
        left, end, lengths = num_tokens // len(prefixes), pair.num_tokens, pair.lengths.tolist()
        for length in lengths[-(len(lengths) // 2) :][::-1] if len(lengths) > 1 else []:
            if left <= 0:
                break
            begin, end = end - length, end - length
            documents.append(pair.tokens[begin : begin + min(length - 1, document_tokens)].tolist())  # without the end mark
            left -= len(documents[-1])
        before.append(end)
    return HeldBack([ids for ids in documents if ids], tuple(before))
