"""Windows of indexed text: inside the file, drawn from every source, the same for the same seed."""

from __future__ import annotations

from pathlib import Path

from megatron_cpt.index.sample import hold_back, sample_windows
from tests.unit.train.test_train_index_files import write_pair


def test_windows_are_runs_of_a_source_and_repeat(tmp_path: Path) -> None:
    prefixes = [
        write_pair(tmp_path / "low", [list(range(100)), list(range(100, 300))]),
        write_pair(tmp_path / "high", [list(range(1000, 1300))]),
    ]
    windows = sample_windows(prefixes, num_windows=200, window_tokens=10, seed=5)
    assert windows == sample_windows(prefixes, num_windows=200, window_tokens=10, seed=5)
    assert windows != sample_windows(prefixes, num_windows=200, window_tokens=10, seed=6)
    assert all(window == list(range(window[0], window[0] + 10)) for window in windows)
    from_low = sum(window[0] < 300 for window in windows)
    assert 60 < from_low < 140  # both hold 300 tokens


def test_a_short_source_is_one_short_window(tmp_path: Path) -> None:
    short = write_pair(tmp_path / "short", [[1, 2, 3]])
    assert sample_windows([short], num_windows=1, window_tokens=10, seed=0) == [[1, 2, 3]]
    empty = write_pair(tmp_path / "empty", [])
    assert sample_windows([empty], num_windows=3, window_tokens=10, seed=0) == []


def test_what_is_held_back_is_whole_beginnings_from_the_end_and_is_not_drawn(tmp_path: Path) -> None:
    many = write_pair(tmp_path / "many", [list(range(start, start + 20)) for start in range(0, 200, 20)])
    long = write_pair(tmp_path / "long", [list(range(1000, 1400)), list(range(2000, 2200))])
    one = write_pair(tmp_path / "one", [list(range(3000, 3400))])
    held = hold_back([many, long, one], num_tokens=120, document_tokens=30)
    # 40 tokens of each pair: three documents of 19 before their end mark; the last of two, cut; of one document nothing
    assert held.documents == [list(range(180, 199)), list(range(160, 179)), list(range(140, 159)), list(range(2000, 2030))]
    assert held.tokens_before == (140, 400, 400)
    windows = sample_windows([many, long, one], num_windows=300, window_tokens=10, seed=1, tokens_before=held.tokens_before)
    drawn = {token for window in windows for token in window}
    assert not drawn & {*range(140, 200), *range(2000, 2200)}
    assert all(window == list(range(window[0], window[0] + 10)) for window in windows)


def test_no_more_than_half_of_the_documents_are_held_back(tmp_path: Path) -> None:
    pair = write_pair(tmp_path / "pair", [[1, 0], [2, 0], [3, 0], [4, 0]])
    held = hold_back([pair], num_tokens=1000, document_tokens=1000)
    assert (held.documents, held.tokens_before) == ([[4], [3]], (4,))
