"""What tests of several folders share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """One browser for a test process."""
    from tests.browser import NoBrowser, chromium_browser  # noqa: PLC0415  -- most test processes open no page

    try:
        running = chromium_browser()
        browser = running.__enter__()
    except NoBrowser as reason:
        pytest.skip(str(reason))
    yield browser
    running.__exit__(None, None, None)
