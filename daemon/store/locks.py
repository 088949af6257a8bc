"""A lock between processes: flock on a small file, which the kernel frees when its holder dies."""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

from daemon.store.files import open_private, private_subfolder
from daemon.store.uncancelled import Undisturbed

_SHORTEST_WAIT = 0.001
_LONGEST_WAIT = 0.02


_own: set[int] = set()


class LockBusy(Exception):
    """Somebody else, in this process or another one, held the lock for all of the time."""


class FileLock:
    """One lock file. Every `held` opens it anew, so two holders in one process exclude each other too.

    Args:
        path: the lock file, made when first needed, and its folder too; it is never deleted, since that would
            split the lock.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @asynccontextmanager
    async def held(self, limit: float) -> AsyncIterator[int]:
        """Hold the lock; yields the open file's descriptor.

        Args:
            limit: most seconds to wait for it; 0 tries once.

        Raises:
            LockBusy: it could not be had in time.
            StoreError: the file cannot be opened.
        """
        descriptor = await self._open()
        try:
            await self._wait(descriptor, limit)
            yield descriptor
        finally:
            os.close(descriptor)

    async def _open(self) -> int:
        undisturbed = Undisturbed()
        descriptor = await undisturbed.run(asyncio.to_thread(_opened, self.path))
        if undisturbed.cancelled:
            os.close(descriptor)
            raise asyncio.CancelledError
        return descriptor

    async def _wait(self, descriptor: int, limit: float) -> None:
        clock = asyncio.get_running_loop().time
        deadline = clock() + limit
        pause = _SHORTEST_WAIT
        while not _try(descriptor):
            if clock() >= deadline:
                msg = f"{self.path} was held for {limit:g} s"
                raise LockBusy(msg)
            # Polled, because a thread that waits in flock() can neither be cancelled nor timed out.
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - spreads waiters, hides nothing
            pause = min(2 * pause, _LONGEST_WAIT)


def _opened(path: Path) -> int:
    if not path.parent.is_dir():
        private_subfolder(path.parent.parent, path.parent.name)
    return open_private(path)


def _try(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock_within(descriptor: int, limit: float) -> bool:
    """Take the lock of an open file from a thread that may wait; tells whether it could be had.

    Args:
        descriptor: the open file; closing it gives the lock back.
        limit: most seconds to wait.
    """
    deadline = time.monotonic() + limit
    while not _try(descriptor):
        if time.monotonic() > deadline:
            return False
        time.sleep(_LONGEST_WAIT)  # polled, as above
    return True


@contextmanager
def not_inherited(descriptor: int) -> Iterator[None]:
    """Close it in every process that is forked meanwhile, which would keep the lock after we are dead.

    A program that is started (exec) does not have it anyway.
    """
    _own.add(descriptor)
    try:
        yield
    finally:
        _own.discard(descriptor)


def _close_in_child() -> None:
    for descriptor in _own:
        with suppress(OSError):
            os.close(descriptor)  # a lock ends with its last descriptor, so that of the parent stays
    _own.clear()


os.register_at_fork(after_in_child=_close_in_child)
