"""Ranks read the index that the first one made: at once, after the file system's delay, or not at all and then in words."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from megatron_cpt.errors import ConfigError
from megatron_cpt.train import data


def test_a_folder_that_is_not_shared_is_refused_with_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "SHARED_PATIENCE_S", 0.2)
    with pytest.raises(ConfigError, match=r"does not see the index[\s\S]*runs_dir"):
        data._require_shared(tmp_path / "elsewhere")


def test_a_folder_that_shows_late_is_waited_for(tmp_path: Path) -> None:
    late = threading.Timer(0.3, (tmp_path / "cache").mkdir)
    late.start()
    started = time.monotonic()
    data._require_shared(tmp_path / "cache")
    assert 0.2 < time.monotonic() - started < 10
