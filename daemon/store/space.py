"""SpaceGuard: when the disk is nearly full no agent is run, decisions are taken, and it ends by itself.

A file beside the database, the reserve, holds 4 MiB of the disk. It is given up when there is no room for
even a small commit, so that what people decide meanwhile can be written, and is made again later. That it
could be made again is also the proof that there is room: a quota is not seen in what the disk says is free.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from daemon.errors import DaemonError, StoreError
from daemon.store.files import FULL_BELOW, RESERVE, open_private

RESERVE_BYTES = 4 * 1024 * 1024
LOOK_EVERY_S = 60.0
"""How often the disk is looked at while there is room."""

LOW_LOOK_EVERY_S = 5.0
"""How often while there is not: so soon are agents run again."""

_BLOCK = bytes(64 * 1024)
_log = logging.getLogger(__name__)


class SpaceGuard:
    """Looks after the room on the disk of the data folder.

    Args:
        folder: the data folder.
        min_free: bytes that must be free besides the reserve; below 1 MiB it counts as 1 MiB.
        hold: called with the reason when there is too little room: run no agent.
        release: called when there is room again.

    Attributes:
        trouble: why no agent is run, empty while there is room.
    """

    def __init__(
        self,
        folder: Path,
        min_free: int,
        *,
        hold: Callable[[str], object],
        release: Callable[[], object],
    ) -> None:
        self.trouble = ""
        self._folder = folder
        self.follow(min_free)
        self._hold = hold
        self._release = release
        self._looked = asyncio.Lock()
        self._wake = asyncio.Event()
        self._free = 0
        self._began = 0.0

    @property
    def reserve(self) -> Path:
        """The file that keeps some room."""
        return self._folder / RESERVE

    def follow(self, min_free: int) -> None:
        """Go by another `min_free` from the next look on."""
        self._min_free = max(min_free, FULL_BELOW)
        # Ends a little above where it begins, so that it does not come and go with each log line.
        self._enough = self._min_free + min(self._min_free // 8, FULL_BELOW)

    async def look(self) -> bool:
        """Look at the disk now, hold or release the agents, see to the reserve; tells whether there is room.

        Works before the data folder exists: there is nothing to look at then.
        """
        async with self._looked:
            trouble = await asyncio.to_thread(self._examine)
            self._tell(trouble)
            return not trouble

    async def give_way(self) -> None:
        """A write found the disk full: give up the reserve for what is small and matters."""
        async with self._looked:
            await asyncio.to_thread(self._give_up)
            self._tell("the disk is full")
            self._wake.set()

    async def run(self) -> None:
        """Look at the disk for ever."""
        while True:
            pause = LOW_LOOK_EVERY_S if self.trouble else LOOK_EVERY_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()
                    self._wake.clear()
                    # Just told to be full: look again when something may have changed.
                    await asyncio.sleep(LOW_LOOK_EVERY_S)
            await self.look()

    async def ping(self) -> str:
        """For health: how much is free.

        Raises:
            DaemonError: there is too little room, or the disk cannot be written.
        """
        if self.trouble:
            raise DaemonError(self.trouble)
        return f"{_room(self._free)} free"

    def _tell(self, trouble: str) -> None:
        before = self.trouble
        self.trouble = self._in_words(trouble) if trouble else ""
        if trouble and not before:
            self._began = time.monotonic()
            _log.warning("no agent is run: %s", self.trouble)
            self._hold(self.trouble)
        elif before and not trouble:
            self._release()
            seconds = round(time.monotonic() - self._began, 1)
            _log.info("there is room on the disk again: agents are run", extra={"seconds": seconds})

    def _in_words(self, trouble: str) -> str:
        return (
            f"storage full: {trouble} in {self._folder}; decisions are still taken; free some room, "
            "agents go on by themselves"
        )

    def _examine(self) -> str:
        """What is wrong with the room, empty if nothing is; blocks."""
        if not self._folder.is_dir():
            return ""
        try:
            self._free = shutil.disk_usage(self._folder).free
            kept = self.reserve.exists() and self.reserve.stat().st_size >= RESERVE_BYTES
        except OSError as error:
            return f"the disk does not answer ({error.strerror})"
        if kept and self._free < FULL_BELOW:
            self._give_up()
            kept = False
        wanted = self._enough if self.trouble else self._min_free
        if not kept and self._free >= wanted + RESERVE_BYTES:
            return self._make_reserve()
        if not kept or self._free < wanted:
            needed = wanted if kept else wanted + RESERVE_BYTES
            return f"only {_room(self._free)} are free and {_room(needed)} are needed"
        return ""

    def _give_up(self) -> None:
        with contextlib.suppress(OSError):
            self.reserve.unlink(missing_ok=True)

    def _make_reserve(self) -> str:
        """Take the room for the reserve; why that cannot be done, empty if it could."""
        draft = self.reserve.with_name(f"{RESERVE}.new")
        try:
            descriptor = open_private(draft, os.O_TRUNC)
            try:
                _allocate(descriptor)
            finally:
                os.close(descriptor)
            draft.replace(self.reserve)
        except (OSError, StoreError) as error:
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)
            return f"{_room(RESERVE_BYTES)} cannot be reserved ({getattr(error, 'strerror', None) or error})"
        self._free = shutil.disk_usage(self._folder).free
        return ""


def _allocate(descriptor: int) -> None:
    allocate = getattr(os, "posix_fallocate", None)
    if allocate is not None:
        allocate(descriptor, 0, RESERVE_BYTES)
        return
    for _ in range(RESERVE_BYTES // len(_BLOCK)):  # macOS has no such call
        os.write(descriptor, _BLOCK)


def _room(size: float) -> str:
    mib = size / 1024 / 1024
    return f"{mib:.1f} MiB" if mib < 1024 else f"{mib / 1024:.1f} GiB"
