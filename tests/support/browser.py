"""A real browser without a window: Chromium, driven by Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)

PROGRAMS = ("chromium-headless-shell", "chromium", "google-chrome")


def program() -> str:
    """The browser's path; the test is skipped, with the reason, where there is none."""
    for candidate in (os.environ.get("CHROMIUM"), *map(shutil.which, PROGRAMS)):
        if candidate and os.access(candidate, os.X_OK):
            return str(candidate)
    pytest.skip("no Chromium; set CHROMIUM, or on Debian: apt-get install chromium-headless-shell")


@contextmanager
def browser(*flags: str) -> Iterator[Any]:
    """A Chromium that knows nothing and asks nobody."""
    path = program()
    pytest.importorskip("playwright", reason="Playwright is missing; it is in the extra [dev]")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=[*FLAGS, *flags])
        try:
            yield chromium
        finally:
            chromium.close()
