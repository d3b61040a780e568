"""Cuts tokenised documents into windows in which every token is scored exactly once, and deals windows out to ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

LENGTH_STEP = 64  # windows are padded to a multiple of this: few shapes to run, little padding


@dataclass(frozen=True)
class Window:
    """Tokens that run together: each of `ids` is predicted from `start_id` and the ids before it.

    Attributes:
        document: what the window's figures belong to.
        num_context: the first so many of `ids` are given, not scored.
    """

    document: int
    ids: tuple[int, ...]
    start_id: int
    num_context: int = 0


@dataclass(frozen=True)
class WindowBatch:
    """Windows that run together, padded to `length`; `numbers` says which of all windows they are."""

    length: int
    windows: tuple[Window, ...]
    numbers: tuple[int, ...]


def cut_windows(
    documents: Sequence[Sequence[int]], *, prefix_id: int, window_tokens: int, stride_tokens: int | None = None
) -> list[Window]:
    """Return the windows of all documents in order; none is longer than `window_tokens`, and each starts with one `prefix_id`.

    A document's first window is scored whole. Each later one scores the next `stride_tokens` ids, given the
    `window_tokens - stride_tokens` before them. Without a stride, windows do not overlap.
    """
    stride = window_tokens if stride_tokens is None else stride_tokens
    assert 1 <= stride <= window_tokens, "a stride is one token at least and a window at most"
    windows = []
    for number, ids in enumerate(documents):
        scored = 0
        while scored < len(ids):
            begin = scored - (window_tokens - stride) if scored else 0
            windows.append(Window(number, tuple(ids[begin : begin + window_tokens]), prefix_id, scored - begin))
            scored = begin + window_tokens
    return windows


def padded_length(num_tokens: int, *, window_tokens: int, multiple: int) -> int:
    """Return the length that a window runs at: a step of 64, the full window at most, and a multiple of `multiple`."""
    length = min(-(-num_tokens // LENGTH_STEP) * LENGTH_STEP, window_tokens)
    return -(-length // multiple) * multiple


def share_of_rank(
    windows: Sequence[Window], *, window_tokens: int, micro_batch_size: int, data_rank: int, data_size: int, multiple: int
) -> list[WindowBatch]:
    """Return one data-parallel rank's batches; the ranks' shares are disjoint, cover all windows and differ little in work.

    Args:
        multiple: what a length must divide by (the tensor-parallel size under sequence parallelism, else 1).
    """

    def length(number: int) -> int:
        return padded_length(len(windows[number].ids), window_tokens=window_tokens, multiple=multiple)

    mine = sorted(range(len(windows)), key=length, reverse=True)[data_rank::data_size]
    batches = []
    for size, group in groupby(mine, key=length):
        same = tuple(group)
        for begin in range(0, len(same), micro_batch_size):
            numbers = same[begin : begin + micro_batch_size]
            batches.append(WindowBatch(size, tuple(windows[number] for number in numbers), numbers))
    return batches
