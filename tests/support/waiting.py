"""Waiting for a condition instead of for luck."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

LIMIT_S = 60.0
"""Far above what anything takes, even on a busy machine."""


async def seen(condition: Callable[[], bool], limit: float = LIMIT_S) -> None:
    """Return as soon as `condition` holds; TimeoutError if it never does."""
    async with asyncio.timeout(limit):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)


def seen_now(condition: Callable[[], bool], limit: float = LIMIT_S) -> None:
    """The same outside an event loop."""
    deadline = time.monotonic() + limit
    while not condition():
        if time.monotonic() > deadline:
            msg = f"not seen within {limit:g} s"
            raise TimeoutError(msg)
        time.sleep(0.01)
