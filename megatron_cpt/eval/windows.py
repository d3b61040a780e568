"""Cuts tokenised documents into windows in which every token is scored exactly once, and deals them out to ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

LENGTH_STEP = 64  # windows are padded to a multiple of this: few shapes to run, little padding


@dataclass(frozen=True)
class Window:
    """Consecutive tokens of one document; each is predicted from the prefix id and the window's tokens before it."""

    document: int
    ids: tuple[int, ...]


@dataclass(frozen=True)
class WindowBatch:
    """Windows that run together, padded to `length`."""

    length: int
    windows: tuple[Window, ...]


def cut_windows(documents: Sequence[Sequence[int]], *, window_tokens: int) -> list[Window]:
    """Return the windows of all documents in order; none is longer than `window_tokens`."""
    return [
        Window(number, tuple(ids[begin : begin + window_tokens]))
        for number, ids in enumerate(documents)
        for begin in range(0, len(ids), window_tokens)
    ]


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

    def length(window: Window) -> int:
        return padded_length(len(window.ids), window_tokens=window_tokens, multiple=multiple)

    mine = sorted(windows, key=length, reverse=True)[data_rank::data_size]
    return [
        WindowBatch(size, batch) for size, group in groupby(mine, key=length) for batch in _batches(tuple(group), size=micro_batch_size)
    ]


def _batches(windows: tuple[Window, ...], *, size: int) -> Iterator[tuple[Window, ...]]:
    for begin in range(0, len(windows), size):
        yield windows[begin : begin + size]
