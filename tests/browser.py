"""Debian's Chromium without a screen, and what a page said and asked for while it was open."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
DRAWN_MS = 60_000  # a busy machine takes seconds to read 5 MB of script; a page that fails does so at once


class NoBrowser(Exception):
    """There is no browser here, and why none could be installed."""


@dataclass
class Opened:
    """A page, the warnings and errors of its console, and the addresses that it asked for beside its own."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


def install() -> str:
    """Return the browser's path; as root on Debian it is installed where it is missing.

    Raises:
        NoBrowser: it is missing, and this is not root or not a machine with apt.
        CalledProcessError: apt failed.
    """
    with Path(tempfile.gettempdir(), "tests-apt-get.lock").open("w") as lock:  # one apt-get at a time, with that of tests/slurm
        fcntl.flock(lock, fcntl.LOCK_EX)
        if found := _found():
            return found
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            raise NoBrowser("no browser here: install Debian's package chromium")
        environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
        for argv in (("apt-get", "update", "-qq"), ("apt-get", "install", "-qq", "--no-install-recommends", "chromium")):
            subprocess.run(argv, check=True, env=environment, stdout=subprocess.DEVNULL, timeout=600)
        if found := _found():
            return found
        raise NoBrowser("Debian's package chromium has no program chromium")


def _found() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextlib.contextmanager
def chromium_browser() -> Iterator[Browser]:
    """Run the browser.

    Raises:
        NoBrowser: as `install`.
    """
    path = install()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])  # root has no sandbox
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(browser: Browser, path: Path, *, runs_scripts: bool = True, width: int = 1280) -> Iterator[Opened]:
    """Open a file of this machine and wait until its charts are drawn; every other address is refused and noted."""
    context = browser.new_context(viewport={"width": width, "height": 900}, java_script_enabled=runs_scripts, color_scheme="light")
    seen = Opened(context.new_page())
    address = path.resolve().as_uri()
    seen.page.on("console", lambda said: seen.complaints.append(said.text) if said.type in ("error", "warning") else None)
    seen.page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    seen.page.on("request", lambda request: seen.requests.append(request.url) if request.url.split("#")[0] != address else None)
    seen.page.goto(address)
    if runs_scripts:
        seen.page.wait_for_selector("html[data-charts]", timeout=DRAWN_MS)
    yield seen
    context.close()
