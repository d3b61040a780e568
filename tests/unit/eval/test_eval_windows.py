"""Every token is scored once, whatever the window, batch and number of ranks."""

from __future__ import annotations

import random
from collections import Counter
from functools import partial

import pytest

from megatron_cpt.eval.windows import cut_windows, padded_length, share_of_rank


def documents(seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randint(0, 500) for _ in range(rng.choice([0, 1, 3, 7, 20, 63, 64, 65, 400]))] for _ in range(12)]


@pytest.mark.parametrize("window", [1, 7, 64, 512])
def test_windows_put_together_are_the_documents(window: int) -> None:
    texts = documents(1)
    windows = cut_windows(texts, prefix_id=9, window_tokens=window)
    for number, ids in enumerate(texts):
        assert [token for part in windows if part.document == number for token in part.ids] == ids
    assert all(1 <= len(part.ids) <= window for part in windows)


@pytest.mark.parametrize(("window", "stride"), [(7, 1), (64, 63), (64, 20), (64, 64), (512, 100)])
def test_sliding_windows_score_every_token_once_after_the_tokens_before_it(window: int, stride: int) -> None:
    texts = documents(3)
    windows = cut_windows(texts, prefix_id=9, window_tokens=window, stride_tokens=stride)
    for number, ids in enumerate(texts):
        place = 0
        for part in (part for part in windows if part.document == number):
            begin = place - part.num_context
            assert list(part.ids) == ids[begin : begin + len(part.ids)]
            assert part.num_context == (0 if place == 0 else window - stride)
            assert len(part.ids) - part.num_context > 0
            assert (part.start_id, len(part.ids) <= window) == (9, True)
            place = begin + len(part.ids)
        assert place == len(ids)


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("batch", [1, 3])
def test_ranks_share_all_windows_without_overlap_and_evenly(ranks: int, batch: int) -> None:
    windows = cut_windows(documents(2), prefix_id=9, window_tokens=64)
    deal = partial(share_of_rank, windows, window_tokens=64, micro_batch_size=batch, data_size=ranks, multiple=1)
    shares = [deal(data_rank=rank) for rank in range(ranks)]
    dealt = [window for share in shares for part in share for window in part.windows]
    assert Counter(dealt) == Counter(windows)
    counts = [sum(len(part.windows) for part in share) for share in shares]
    assert max(counts) - min(counts) <= 1
    for share in shares:
        for part in share:
            assert len(part.windows) <= batch
            assert all(len(window.ids) <= part.length for window in part.windows)


@pytest.mark.parametrize(
    ("tokens", "window", "multiple", "length"), [(1, 512, 1, 64), (65, 512, 1, 128), (500, 500, 1, 500), (3, 10, 4, 12), (512, 512, 2, 512)]
)
def test_a_window_is_padded_little_and_never_past_what_it_may_be(tokens: int, window: int, multiple: int, length: int) -> None:
    assert padded_length(tokens, window_tokens=window, multiple=multiple) == length
