"""What tests of several folders share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.browser import NoBrowser, chromium_browser


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """One browser for a test process."""
    try:
        running = chromium_browser()
        browser = running.__enter__()
    except NoBrowser as reason:
        pytest.skip(str(reason))
    yield browser
    running.__exit__(None, None, None)
