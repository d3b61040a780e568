"""The finished run of the tiny line, made once for all tests that start from it."""

from __future__ import annotations

from pathlib import Path

import pytest
from line_workspace import cpt, make_workspace


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose run `good` has walked the whole line. Tests make runs of their own beside it."""
    folder = make_workspace(tmp_path_factory.mktemp("line"))
    done = cpt(folder, "run")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder
