"""Work that must come to its end although whoever waits for it is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Undisturbed:
    """Awaits work to its end even if cancelled meanwhile.

    Attributes:
        cancelled: whether that happened; whoever uses this must raise it afterwards.
    """

    def __init__(self) -> None:
        self.cancelled = False

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, or what it raised."""
        task = asyncio.ensure_future(work)
        while not task.done():
            try:
                await asyncio.wait({task})
            except asyncio.CancelledError:
                self.cancelled = True
        return task.result()


async def finished(work: Coroutine[Any, Any, T]) -> T:
    """Await `work` to its end even if cancelled meanwhile; the cancellation is raised after it."""
    undisturbed = Undisturbed()
    try:
        return await undisturbed.run(work)
    finally:
        if undisturbed.cancelled:
            raise asyncio.CancelledError
