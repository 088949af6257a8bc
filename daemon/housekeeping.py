"""Housekeeping: what the daemon does by itself now and then: backups, and forgetting what is old enough.

It sleeps until the next of them may be due, an hour at most, since the loop's timers stand still while the
machine sleeps. A backup is made only if something was recorded since the last one, so that an idle daemon
writes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from agents.context import utc_now
from daemon.errors import DaemonError, StoreError
from daemon.store.backups import Backup, backups_in, make_backup
from daemon.store.contents import contents_of, mark_of
from daemon.store.retention import Ages, Retention
from daemon.store.uncancelled import finished

if TYPE_CHECKING:
    from daemon.settings import Settings
    from daemon.store.engine import Database

FIRST_AFTER_S = 120.0
"""So long after the start the first look is taken: a start has enough to do."""

SWEEP_EVERY_S = 24 * 3600.0
RETRY_S = 3600.0
"""After a failure; also the longest time between two looks."""

AHEAD = timedelta(days=30)
"""The clock tells what is old, but it is believed no further than this beyond what was recorded when the
program started: one that is decades ahead would make everything old at once."""

JOBS = ("backup", "retention")

_FUTURE = timedelta(days=1)
_log = logging.getLogger(__name__)


class Housekeeping:
    """Makes backups and forgets what is old.

    Args:
        database: the database.
        settings: how often, how many, how long.
        now: the clock, UTC.
    """

    def __init__(
        self, database: Database, settings: Settings, *, now: Callable[[], datetime] = utc_now
    ) -> None:
        self._database = database
        self._retention = Retention(database)
        self._settings = settings
        self._now = now
        self._alone = asyncio.Lock()
        self._closing = threading.Event()
        self._failed: set[str] = set()
        self._known: datetime | None = None
        self._started = time.monotonic()

    @property
    def folder(self) -> Path:
        """Where the backups are."""
        return self._settings.backup_dir

    def failing(self, job: str) -> bool:
        """Whether the last try of "backup" or "retention" failed."""
        return job in self._failed

    def follow(self, settings: Settings) -> None:
        """Go by new settings from now on."""
        self._settings = settings

    async def run(self, first_after: float = FIRST_AFTER_S) -> None:
        """Do what is due, for ever.

        Args:
            first_after: seconds until the first look.
        """
        jobs = dict(zip(JOBS, (self.back_up_if_due, self.sweep), strict=True))
        due = dict.fromkeys(jobs, time.monotonic() + first_after)
        while True:
            await asyncio.sleep(min(RETRY_S, max(0.0, min(due.values()) - time.monotonic())))
            for name, job in jobs.items():
                if due[name] <= time.monotonic():
                    due[name] = time.monotonic() + await self._tried(name, job)

    async def aclose(self) -> None:
        """Give up the copy that is being made, and make no other one."""
        self._closing.set()
        async with self._alone:
            pass

    async def backup(self, to: Path | None = None) -> Path:
        """Make a verified copy of the database now and return where it is.

        Args:
            to: a file or an existing folder; None puts it with the others and deletes the oldest of them.

        Raises:
            StoreError: it could not be made.
        """
        return await self._copy(to, spare=0)

    async def back_up_if_due(self) -> float:
        """Make a backup if one is due and anything has changed; returns after how many seconds to look again.

        Raises:
            StoreError: it could not be made.
        """
        settings = self._settings
        if settings.backup.keep == 0:
            return RETRY_S
        newest = await asyncio.to_thread(self._newest)
        if newest is not None:
            wait = (newest.made_at + settings.backup.every - self._now()).total_seconds()
            if wait > 0:
                return wait
        if await finished(asyncio.to_thread(self._has_changed, newest)):
            path = await self._copy(None, spare=settings.daemon.min_free_bytes)
            _log.info("a backup was made", extra={"backup": str(path)})
        return RETRY_S

    async def sweep(self) -> float:
        """Forget what is old enough; returns after how many seconds to look again.

        Raises:
            StoreError: the database cannot be written.
        """
        if self._known is None:
            self._known = await self._retention.newest_run()
        if self._known is not None:
            uptime = timedelta(seconds=time.monotonic() - self._started)
            moment = min(self._now(), self._known + AHEAD + uptime)
            limits = self._settings.retention
            ages = Ages(runs=limits.runs, calls=limits.calls, proposals=limits.proposals)
            async with self._alone:  # a copy that is being compared must not find fewer rows
                gone = await self._retention.sweep(moment, ages)
            if gone:
                _log.info("what is old was forgotten", extra=gone.as_dict())
        return SWEEP_EVERY_S

    async def _copy(self, to: Path | None, spare: int) -> Path:
        if self._closing.is_set():
            msg = "no backup is made any more: the program is being stopped"
            raise StoreError(msg)
        keep = max(self._settings.backup.keep, 1)
        make = partial(make_backup, self._database.path, self.folder, keep, to, now=self._now(), spare=spare)
        async with self._alone:
            return await finished(asyncio.to_thread(partial(make, stop=self._closing)))

    def _newest(self) -> Backup | None:
        latest = self._now() + _FUTURE  # one from a clock that was wrong would hold up all others
        return next((each for each in backups_in(self.folder) if each.made_at <= latest), None)

    def _has_changed(self, newest: Backup | None) -> bool:
        if newest is None:
            return any(contents_of(self._database.path).rows.values())
        try:
            before = mark_of(newest.path)
        except DaemonError as error:
            _log.warning("the newest backup cannot be read, another one is made: %s", error)
            return True
        return mark_of(self._database.path) != before

    async def _tried(self, name: str, job: Callable[[], Awaitable[float]]) -> float:
        """Do it; told are the first failure and the recovery."""
        try:
            pause = await job()
        except Exception as error:  # noqa: BLE001 - the next one may work, and the others go on
            if name not in self._failed:
                unexpected = None if isinstance(error, DaemonError) else error
                _log.warning("%s failed and is tried again each hour: %s", name, error, exc_info=unexpected)
            self._failed.add(name)
            return RETRY_S
        if name in self._failed:
            self._failed.discard(name)
            _log.info("%s works again", name)
        return pause
