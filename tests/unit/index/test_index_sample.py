"""Windows of indexed text: inside the file, drawn from every source, the same for the same seed."""

from __future__ import annotations

from pathlib import Path

from megatron_cpt.index.sample import sample_windows
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
