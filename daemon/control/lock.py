"""The lock of the daemon: one daemon on one data folder, from before its first step until after its last."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from daemon.errors import DaemonRunning
from daemon.store.files import DAEMON_LOCK, private_folder
from daemon.store.locks import FileLock, LockBusy, not_inherited

LOCK = DAEMON_LOCK
"""Name of the lock file in the data folder; it is never deleted, since that would split the lock."""

WAIT_S = 0.4
"""How long a start waits for the lock: commands that look who holds it have it for a moment."""

_LONGEST = 200
_DATABASE = "askfirst.sqlite3"


@dataclass(frozen=True, slots=True)
class Holder:
    """The daemon that holds the lock.

    Attributes:
        pid: its process, None in the moment before it has written that down.
        since: when it started, None likewise.
    """

    pid: int | None
    since: datetime | None

    def __str__(self) -> str:
        if self.pid is None:
            return "just started"
        since = "" if self.since is None else f", since {self.since:%Y-%m-%d %H:%M:%S} UTC"
        return f"pid {self.pid}{since}"


@asynccontextmanager
async def daemon_lock(data_dir: Path) -> AsyncIterator[Holder]:
    """Be the only daemon on `data_dir`, which is made if it is missing; yields what others see of us.

    Raises:
        DaemonRunning: there is one already; names its process.
        StoreError: the folder cannot be used.
    """
    await asyncio.to_thread(private_folder, data_dir, _DATABASE)
    async with AsyncExitStack() as stack:
        try:
            descriptor = await stack.enter_async_context(FileLock(data_dir / LOCK).held(WAIT_S))
        except LockBusy as busy:
            raise running_already(data_dir, await asyncio.to_thread(holder, data_dir)) from busy
        stack.enter_context(not_inherited(descriptor))
        yield await asyncio.to_thread(_sign, descriptor)


def running_already(data_dir: Path, other: Holder | None) -> DaemonRunning:
    """What a second daemon says."""
    who = "just ended" if other is None else str(other)
    return DaemonRunning(f"another daemon ({who}) uses {data_dir}; stop it or set daemon.data_dir")


def holder(data_dir: Path) -> Holder | None:
    """The daemon that runs on `data_dir`, None when none does or we may not look there; blocks."""
    try:
        descriptor = os.open(data_dir / LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        # Shared: two that look at the same time must not take each other for a daemon.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _signed(os.read(descriptor, _LONGEST))
    finally:
        os.close(descriptor)
    return None


def _sign(descriptor: int) -> Holder:
    own = Holder(os.getpid(), datetime.now(UTC))
    with suppress(OSError):  # on a full disk others see that there is a daemon, not which
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{own.pid} {own.since:%Y-%m-%dT%H:%M:%S}+00:00\n".encode(), 0)
    return own


def _signed(text: bytes) -> Holder:
    try:
        pid, since = text.decode("ascii").split()
        return Holder(int(pid), datetime.fromisoformat(since))
    except ValueError:
        return Holder(None, None)
