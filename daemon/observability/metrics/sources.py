"""Where values come from that are read when a scrape comes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from daemon.observability.metrics.families import Reading

_log = logging.getLogger(__name__)

LIMIT_S = 1.0
"""A scrape waits no longer than this for the database or the disk, and shows the last values instead."""


class QuickSource:
    """A function that is called on the event loop at each scrape."""

    def __init__(self, source: Callable[[], Reading]) -> None:
        self._source = source
        self._complaint = _Complaint(source)
        self.last: Reading = {}

    def read(self) -> Reading:
        """What it says, or what it said last if it fails."""
        try:
            self.last = self._source()
        except Exception as error:  # noqa: BLE001 - a scrape shows the rest, whatever happens to one source
            self._complaint.tell(error)
        else:
            self._complaint.over()
        return self.last


class SlowSource:
    """A coroutine function that asks the database or the disk; what it says is kept for a while."""

    def __init__(self, source: Callable[[], Awaitable[Reading]], max_age: float) -> None:
        self._source = source
        self._max_age = max_age
        self._read_at = -float("inf")
        self._complaint = _Complaint(source)
        self.last: Reading = {}

    @property
    def is_old(self) -> bool:
        """Whether it must be asked again."""
        return time.monotonic() - self._read_at >= self._max_age

    def forget(self) -> None:
        """Ask again at the next scrape: something has changed."""
        self._read_at = -float("inf")

    async def refresh(self) -> None:
        """Ask; if that fails or takes too long, the last values stay."""
        self._read_at = time.monotonic()  # before asking: a change meanwhile makes it old again
        try:
            async with asyncio.timeout(LIMIT_S):
                self.last = await self._source()
        except Exception as error:  # noqa: BLE001 - a scrape answers whatever the database's state is
            self._complaint.tell(error)
        except asyncio.CancelledError:  # nobody waits any more
            self.forget()
            raise
        else:
            self._complaint.over()


class _Complaint:
    """Says once that a source fails, until it works again."""

    def __init__(self, source: object) -> None:
        self._name = getattr(source, "__qualname__", type(source).__name__)
        self._told = False

    def tell(self, error: Exception) -> None:
        if not self._told:
            reason = str(error) or type(error).__name__
            _log.warning("a scrape shows old values, because %s failed: %s", self._name, reason)
        self._told = True

    def over(self) -> None:
        self._told = False
