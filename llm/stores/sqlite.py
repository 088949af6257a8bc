"""Replies in one SQLite file: read on the event loop in microseconds, written by a thread of its own.

The file holds nothing that cannot be asked for again. So whatever goes wrong with it costs caching, never a
call: a damaged file is put aside, one that was deleted is made again, and anything else is said once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from llm.stores import database, layout
from llm.stores.base import StoredReply, StoreStats
from llm.stores.files import PATIENCE, identity, locked, make_private, set_aside

P = ParamSpec("P")
T = TypeVar("T")

FILE_NAME = "responses.sqlite3"
MAX_BYTES = 64 * 1024 * 1024

_GATHER = 0.05  # seconds in which replies gather, so that a burst of them is one transaction
_PENDING = 10_000  # replies that may wait for the disk; above that it is too slow to be of use
_PAUSE = 60.0  # seconds before a file that cannot be opened is tried again
_REPLACED = 3  # damaged files that one store replaces before it gives up on the disk
_PAGE = 200  # replies that are read at a time for a list
_LAST = 2**63 - 1

_log = logging.getLogger(__name__)


class SqliteResponseStore:
    """A `ResponseStore` in `cache_dir`, shared by as many clients and processes as like to.

    Args:
        cache_dir: folder of the file, made with mode 0700 if it is not there.
        max_bytes: most bytes of the file; beyond it the oldest replies go.
        create: whether to make the file if it is not there; without it the store is empty then.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        cache_dir: str | Path,
        *,
        max_bytes: int = MAX_BYTES,
        create: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path = Path(os.path.expanduser(cache_dir)) / FILE_NAME  # noqa: PTH111 - Path.expanduser raises where there is no home
        self._max_bytes = max_bytes
        self._create = create
        self._clock = clock
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="llm-cache")
        self._pending: deque[StoredReply] = deque()
        self._writer: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None
        self._cursor: sqlite3.Cursor | None = None  # the reader's, kept because making one takes as long
        self._hurry = threading.Event()  # somebody waits for the thread
        self._reading = threading.Lock()  # held for one SELECT, or while the reader is exchanged
        self._identity: tuple[int, int] | None = None
        self._not_before = 0.0
        self._replaced = 0
        self._evicted = 0
        self._trouble = ""
        self._warned = self._closed = False

    # Called on the event loop.

    @property
    def ready(self) -> bool:
        """Whether `get` would look into a file."""
        return self._cursor is not None

    @property
    def trouble(self) -> str:
        """Why the file does not work, empty while it does."""
        return self._trouble

    async def open(self) -> None:
        """Get ready to answer `get`; a file that cannot be opened is tried again a minute later."""
        if self._reader is None and not self._closed and time.monotonic() >= self._not_before:
            await self._run(self._connect)

    def get(self, key: bytes) -> tuple[str, float] | None:
        """The reply kept under `key` and when; None if there is none, or if it is not what was written."""
        for found, reply, created, crc in self._select(layout.SELECT, layout.short_of(key)):
            if found == key and layout.checksum(key, reply) == crc:
                return str(reply, "utf-8", "replace"), created
        return None

    def put(self, reply: StoredReply) -> None:
        """Hand `reply` to the writing thread; dropped when it is huge or the disk cannot keep up."""
        if self._closed or len(self._pending) >= _PENDING or len(reply.reply) > self._max_bytes // 10:
            return
        idle = not self._pending
        self._pending.append(reply)
        if idle:
            self._hurry.clear()
            self._submit(self._gather)

    def generation(self) -> str | None:
        """Another text since the store was cleared or made again; None while it cannot be read."""
        return self.recall(layout.GENERATION)

    def recall(self, name: str) -> str | None:
        """What was last remembered under `name`."""
        rows = self._select(layout.MARK, name)
        return str(rows[0][0], "utf-8", "replace") if rows else None

    def remember(self, name: str, value: str) -> None:
        """Keep a short text beside the replies, later and elsewhere."""
        if not self._closed:
            self._submit(self._mark, name, value)

    async def stats(self) -> StoreStats:
        """How full the file is, replies under way included; one that is not there is not made."""
        return await self._run(self._measure)

    async def entries(self, limit: int | None = None) -> AsyncGenerator[StoredReply, None]:
        """The kept replies, the newest first; one that is put meanwhile is not among them."""
        before, left = _LAST, _LAST if limit is None else limit
        while rows := await self._run(self._page, before, min(_PAGE, left)):
            for before, reply in rows:  # noqa: B007 - the last one is where the next page begins
                yield reply
            left -= len(rows)

    async def clear(self, older_than: float | None = None) -> int:
        """Forget every reply, or those more than `older_than` seconds old, and shrink the file; how many."""
        return await self._run(self._empty, older_than)

    async def aclose(self) -> None:
        """Write what is under way, close the file and end the thread."""
        if self._closed:
            return
        self._closed = True
        await self._run(self._finish)
        self._thread.shutdown(wait=False)

    def _select(self, query: str, value: str | int) -> list[tuple[Any, ...]]:
        """The rows of one short query; none when the file does not work."""
        try:
            with self._reading:
                if self._cursor is None:
                    return []
                # To the last row, so that no statement stays open and holds up the writers.
                return self._cursor.execute(query, (value,)).fetchall()
        except sqlite3.Error as error:
            if database.is_damage(error):
                self._submit(self._replace, self._reader)
            else:
                self._lose(error)
            return []

    async def _run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        self._hurry.set()
        return await asyncio.wrap_future(self._thread.submit(work, *args, **kwargs))

    def _submit(self, work: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            self._thread.submit(work, *args, **kwargs)
        except RuntimeError:  # the interpreter is ending and takes no more work
            self._pending.clear()

    # Called on the store's own thread.

    def _gather(self) -> None:
        self._hurry.wait(_GATHER)
        self._drain()

    def _drain(self) -> None:
        """Write everything that waits, in one transaction."""
        self._connect()
        batch = [self._pending.popleft() for _ in range(len(self._pending))]
        if batch:
            self._change(self._insert, batch)

    def _insert(self, db: sqlite3.Connection, batch: list[StoredReply]) -> None:
        coming = sum(len(each.reply) + len(each.label) for each in batch)
        self._evicted += layout.make_room(db, coming=coming, limit=self._max_bytes)
        layout.insert(db, batch)

    def _mark(self, name: str, value: str) -> None:
        self._connect()
        self._change(layout.mark, name, value)

    def _change(
        self, work: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T | None:
        """Do `work` in one transaction; None when the file does not take it."""
        if self._writer is None:
            return None
        try:
            with database.transaction(self._writer) as db:
                done = work(db, *args, **kwargs)
        except (sqlite3.Error, OSError, ValueError) as error:
            if database.is_damage(error):
                self._replace(self._reader)
            else:
                self._lose(error)
            return None
        self._trouble = ""
        return done

    def _measure(self) -> StoreStats:
        if self._pending or self._writer is not None or self.path.exists():
            self._drain()
        entries = used = 0
        oldest = newest = None
        if self._writer is not None:
            try:
                entries, oldest, newest = layout.measure(self._writer)
                used = layout.used_bytes(self._writer)
            except sqlite3.Error as error:
                self._lose(error)
        path = str(self.path)
        return StoreStats(
            path=path,
            entries=entries,
            bytes=used,
            limit=self._max_bytes,
            oldest=oldest,
            newest=newest,
            evicted=self._evicted,
        )

    def _page(self, before: int, count: int) -> list[tuple[int, StoredReply]]:
        self._drain()
        if self._writer is None or not count:
            return []
        try:
            return layout.page(self._writer, before, count)
        except sqlite3.Error as error:
            self._lose(error)
            return []

    def _empty(self, older_than: float | None) -> int:
        self._drain()
        before = _LAST if older_than is None else self._clock() - older_than
        gone = self._change(layout.forget, before)
        if gone and self._writer is not None:
            with suppress(sqlite3.Error):  # the file shrinks later when another program is reading it
                self._writer.execute("VACUUM")
                self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return gone or 0

    def _finish(self) -> None:
        if self._pending:
            self._drain()
        self._disconnect()

    def _connect(self) -> None:
        """Open the file, or the one in its place; one that is no database is put aside and begun anew."""
        if self._reader is not None:
            with suppress(OSError):
                if identity(self.path) == self._identity:
                    return
            self._disconnect()  # somebody deleted it: what is written there now, nobody finds
        if time.monotonic() < self._not_before or not (self._create or self.path.exists()):
            return
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with locked(self.path.parent):
                try:
                    self._open_file()
                except sqlite3.Error as error:
                    if not database.is_damage(error):
                        raise
                    self._put_aside()
                    self._open_file()
        except (sqlite3.Error, OSError, ValueError) as error:  # ValueError: no file can have that name
            self._not_before = time.monotonic() + _PAUSE
            self._lose(error)

    def _open_file(self) -> None:
        make_private(self.path)
        with ExitStack() as stack:
            writer = stack.enter_context(closing(database.connection(self.path, wait=PATIENCE)))
            layout.prepare_writer(writer)
            # Without patience: the event loop never waits for a lock.
            reader = stack.enter_context(closing(database.connection(self.path, wait=0)))
            layout.prepare_reader(reader)
            stack.pop_all()
        self._identity = identity(self.path)
        self._writer = writer
        self._trouble = ""
        with self._reading:
            self._reader, self._cursor = reader, reader.cursor()

    def _disconnect(self) -> None:
        with self._reading:
            reader, self._reader, self._cursor = self._reader, None, None
        writer, self._writer = self._writer, None
        for connection in (reader, writer):
            if connection is not None:
                with suppress(sqlite3.Error):
                    connection.close()

    def _replace(self, broken: sqlite3.Connection | None) -> None:
        """Put the damaged file aside and begin anew, unless this or another program has done so already."""
        if broken is None or broken is not self._reader:
            return
        opened = self._identity
        self._disconnect()
        try:
            with locked(self.path.parent):
                if identity(self.path) == opened:
                    self._put_aside()
        except OSError as error:
            self._not_before = time.monotonic() + _PAUSE
            self._lose(error)
        self._connect()

    def _put_aside(self) -> None:
        if self._replaced >= _REPLACED:
            msg = "it was damaged again and again, look at the disk"
            raise OSError(msg)
        self._replaced += 1
        moved = set_aside(self.path)
        _log.warning("the response cache was damaged; it is now %s, and a new one is begun", moved)

    def _lose(self, error: Exception) -> None:
        self._trouble = str(error)
        if not self._warned:
            self._warned = True
            _log.warning("the response cache %s does not work (%s); calls go on without it", self.path, error)
