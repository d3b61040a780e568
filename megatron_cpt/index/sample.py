"""Draws short windows of token ids from indexed sources."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from megatron_cpt.record.index_pair import open_pair


def sample_windows(prefixes: Sequence[Path], *, num_windows: int, window_tokens: int, seed: int) -> list[list[int]]:
    """Return windows at random places of `.bin/.idx` pairs, each source in proportion to its tokens; equal seeds give equal windows.

    A window may cross the end of a document, as training's own windows do. A pair shorter than a window is one window.

    Raises:
        DataError: a pair is missing or damaged.
    """
    generator = np.random.default_rng(seed)
    pairs = [open_pair(prefix) for prefix in prefixes]
    sizes = np.array([pair.num_tokens for pair in pairs], dtype=np.float64)
    if not sizes.sum():
        return []
    windows = []
    for source in generator.choice(len(pairs), size=num_windows, p=sizes / sizes.sum()):
        tokens = pairs[source].tokens
        start = int(generator.integers(0, max(1, len(tokens) - window_tokens + 1)))
        windows.append(tokens[start : start + window_tokens].tolist())
    return windows
