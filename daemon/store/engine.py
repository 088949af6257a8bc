"""Database: one SQLite file; in all programs together one writer at a time, and readers see whole commits."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Self

from sqlalchemy import URL, event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from daemon.errors import StoreError, StoreFull
from daemon.store.faults import breaks_connection, is_full, makes_doubtful, translated
from daemon.store.files import private_folder
from daemon.store.locks import FileLock, LockBusy
from daemon.store.migrations import look_through, no_database, prepare
from daemon.store.sqlite import (
    BUSY_SECONDS,
    CONNECT_ARGS,
    begin_deferred,
    begin_immediate,
    set_up_reader,
    set_up_writer,
)
from daemon.store.uncancelled import Undisturbed, finished

OPEN_SECONDS = 60.0
"""How long `open` waits for another program that is making or migrating the same database."""

GIVE_UP_AFTER = 5
"""So many writes in a row that the disk failed, and the program had better start anew."""

_READERS = 2
_log = logging.getLogger(__name__)

_COMMITTED = "the transaction was committed before the cancellation took effect"


def was_committed(cancelled: asyncio.CancelledError) -> bool:
    """Whether a `Database.write` that ended with this cancellation had committed all the same."""
    return _COMMITTED in cancelled.args


class Database:
    """The daemon's database. Use `await Database.open(path)`, and `aclose()` at the end.

    Attributes:
        path: the file.
        instance_id: its name for life, also written to the file `instance` beside it.
        on_full: awaited when a write failed because the disk is full, before that is raised; may make room.
        given_up: set when the disk failed `GIVE_UP_AFTER` writes in a row; a new start may help.
        writes: how many transactions were committed since it was opened.
    """

    def __init__(self, path: Path, instance_id: str) -> None:
        self.path = path
        self.instance_id = instance_id
        self.on_full: Callable[[], Awaitable[None]] | None = None
        self.given_up = asyncio.Event()
        self.writes = 0
        self._doubtful = False
        self._failures = 0
        self._turn = asyncio.Lock()
        # SQLite before 3.51.3 can corrupt a WAL database when one connection writes while another checkpoints
        # (sqlite.org/wal.html#walresetbug), so all programs write, and thereby checkpoint, behind one lock.
        self._gate = _gate(path)
        self._writer = _engine(path, size=1, set_up=set_up_writer, begin=begin_immediate)
        self._reader = _engine(path, size=_READERS, set_up=set_up_reader, begin=begin_deferred)

    @classmethod
    async def open(cls, path: Path, *, create: bool = True, check: bool = True) -> Self:
        """Open the database at `path`, made new or migrated if need be; others cannot read its files.

        Args:
            path: the file; its folder should hold nothing but Askfirst's data.
            create: make it if it is missing.
            check: look through the whole file for damage first.

        Raises:
            StoreTooNew: a newer program wrote it; it was left untouched.
            StoreError: it cannot be used; the message says why and what to do.
        """
        try:
            path = await asyncio.to_thread(_make_room, path, create=create)
            async with _gate(path).held(OPEN_SECONDS):
                instance = await finished(asyncio.to_thread(prepare, path, create=create, check=check))
        except LockBusy as error:
            msg = f"another program has been opening {path} for {OPEN_SECONDS:g} s; stop it and try again"
            raise StoreError(msg) from error
        except OSError as error:
            msg = f"{error.filename or path} cannot be used: {error.strerror}; check who owns it and the disk"
            raise StoreError(msg) from error
        return await asyncio.to_thread(cls, path, instance)  # SQLAlchemy looks up the path

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """One transaction that may write: committed at the end, rolled back if the body raises.

        A cancellation in the body rolls back. One that comes during the commit waits for it, and its
        `CancelledError` says so: `was_committed(error)`.

        Raises:
            StoreError: nothing was written; the message says why and what to do.
        """
        async with self._turn, self._exclusively():
            with translated(self.path):
                try:
                    await self._look_again()
                    async with _transaction(await self._writer.connect(), self._count) as connection:
                        yield connection
                except (SQLAlchemyError, sqlite3.Error, StoreError) as error:
                    await self._take_note(error)
                    raise
            self._failures = 0

    def size(self) -> int:
        """Bytes of the file and of its write-ahead log; asks the disk."""
        found = 0
        for path in (self.path, self.path.with_name(f"{self.path.name}-wal")):
            with suppress(FileNotFoundError):
                found += path.stat().st_size
        return found

    def _count(self) -> None:
        self.writes += 1

    async def _look_again(self) -> None:
        """After an error that may have damaged the file, look through all of it before writing again."""
        if self._doubtful:
            await finished(asyncio.to_thread(look_through, self.path))
            self._doubtful = False
            _log.warning("the database was looked through after an error of the disk: it is sound")

    async def _take_note(self, error: Exception) -> None:
        if isinstance(error, StoreFull) or is_full(self.path, error):
            if self.on_full is not None:
                await self.on_full()
        elif self._doubtful or makes_doubtful(error):
            self._doubtful = True
            self._failures += 1
            if self._failures == GIVE_UP_AFTER:
                _log.error("the disk failed %d writes to %s in a row", self._failures, self.path)
                self.given_up.set()

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A snapshot: everything read in the body is from one moment.

        Raises:
            StoreError: the database cannot be read; the message says why and what to do.
        """
        with translated(self.path):
            async with self._reader.connect() as connection:
                try:
                    async with connection.begin():
                        yield connection
                except SQLAlchemyError as error:
                    if breaks_connection(error):
                        await connection.invalidate()
                    raise

    async def aclose(self) -> None:
        """Close every connection, the writer last: the last one to close writes the WAL back."""
        async with self._turn, self._exclusively():
            with translated(self.path):
                await finished(self._reader.dispose())
                await finished(self._writer.dispose())

    @asynccontextmanager
    async def _exclusively(self) -> AsyncIterator[None]:
        try:
            async with self._gate.held(BUSY_SECONDS):
                yield
        except LockBusy as error:
            msg = (
                f"another program has been writing to {self.path} for {BUSY_SECONDS:g} s; "
                "try again in a moment, or see what it is: fuser -v " + str(self._gate.path)
            )
            raise StoreError(msg) from error


@asynccontextmanager
async def _transaction(
    connection: AsyncConnection, count: Callable[[], None]
) -> AsyncIterator[AsyncConnection]:
    """Commit, and count it, or roll back; give the connection back, whatever is cancelled meanwhile."""
    undisturbed, committed = Undisturbed(), False
    try:
        transaction = await connection.begin()
        try:
            yield connection
        except BaseException:
            await undisturbed.run(transaction.rollback())
            raise
        await undisturbed.run(transaction.commit())
        committed = True
        count()
    except SQLAlchemyError as error:
        if breaks_connection(error):
            await undisturbed.run(connection.invalidate())
        raise
    finally:
        await undisturbed.run(connection.close())
        if undisturbed.cancelled:
            raise asyncio.CancelledError(*([_COMMITTED] if committed else []))


def _make_room(path: Path, *, create: bool) -> Path:
    path = path.absolute()
    if not create and not path.parent.exists():
        raise no_database(path)
    private_folder(path.parent, path.name)
    return path


def _gate(path: Path) -> FileLock:
    return FileLock(path.with_name(f"{path.name}.lock"))


def _engine(path: Path, *, size: int, set_up: Any, begin: Any) -> AsyncEngine:
    engine = create_async_engine(
        URL.create("sqlite+aiosqlite", database=str(path)),
        pool_size=size,
        max_overflow=0,
        connect_args=CONNECT_ARGS,
        hide_parameters=True,
    )
    event.listen(engine.sync_engine, "connect", set_up)
    event.listen(engine.sync_engine, "begin", begin)
    return engine
