"""Replies in one SQLite file: read on the event loop in microseconds, written by a thread of its own.

Why a rowid table with a unique key and not `WITHOUT ROWID`: measured with replies of 700 and 1500 bytes it
took half the room, a third of the time to write and no more to read. And its oldest rows lie together, so
deleting them frees whole pages, which makes the size limit exact.

The file holds nothing that cannot be asked for again. So whatever goes wrong with it costs caching, never a
call: a damaged file is put aside, and anything else is said once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import ParamSpec, TypeVar

from llm.stores.base import StoredReply, StoreStats
from llm.stores.files import PATIENCE, identity, locked, make_private, set_aside

P = ParamSpec("P")
T = TypeVar("T")

FILE_NAME = "responses.sqlite3"
MAX_BYTES = 64 * 1024 * 1024
FORMAT = 1
"""Written into the file as `user_version`; a file of another format is left alone."""

_GATHER = 0.05  # seconds in which replies gather, so that a burst of them is one transaction
_PENDING = 10_000  # replies that may wait for the disk; above that it is too slow to be of use
_PAUSE = 60.0  # seconds before a file that cannot be opened is tried again
_REPLACED = 3  # damaged files that one store replaces before it gives up on the disk

_SCHEMA = """
CREATE TABLE IF NOT EXISTS replies (
    id INTEGER PRIMARY KEY,
    key BLOB NOT NULL UNIQUE,
    created INTEGER NOT NULL,
    label TEXT NOT NULL,
    reply TEXT NOT NULL,
    crc INTEGER NOT NULL
)
"""
_INSERT = "INSERT OR REPLACE INTO replies (key, created, label, reply, crc) VALUES (?, ?, ?, ?, ?)"
_SELECT = "SELECT reply, crc FROM replies WHERE key = ?"

_log = logging.getLogger(__name__)


class SqliteResponseStore:
    """A `ResponseStore` in `cache_dir`, shared by as many clients and processes as like to.

    Args:
        cache_dir: folder of the file, made with mode 0700 if it is not there.
        max_bytes: most bytes of the file; beyond it the oldest replies go.
    """

    def __init__(self, cache_dir: str | Path, *, max_bytes: int = MAX_BYTES) -> None:
        self.path = Path(os.path.expanduser(cache_dir)) / FILE_NAME  # noqa: PTH111 - Path.expanduser raises where there is no home
        self._max_bytes = max_bytes
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="llm-cache")
        self._pending: deque[StoredReply] = deque()
        self._writer: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None
        self._hurry = threading.Event()  # somebody waits for the thread
        self._reading = threading.Lock()  # held for one SELECT, or while the reader is exchanged
        self._identity: tuple[int, int] | None = None
        self._not_before = 0.0
        self._replaced = 0
        self._warned = self._closed = False

    # Called on the event loop.

    async def open(self) -> None:
        """Get ready to answer `get`; a file that cannot be opened is tried again a minute later."""
        if self._reader is None and not self._closed and time.monotonic() >= self._not_before:
            await self._run(self._connect)

    def get(self, key: bytes) -> str | None:
        """The reply kept under `key`; None if there is none, or if it is not what was written."""
        try:
            with self._reading:
                if self._reader is None:
                    return None
                row = self._reader.execute(_SELECT, (key,)).fetchone()
        except sqlite3.Error as error:
            if _is_damage(error):
                self._submit(self._replace, self._reader)
            else:
                self._lose(error)
            return None
        if row is None or _crc(key, row[0]) != row[1]:
            return None
        return str(row[0], "utf-8", "replace")

    def put(self, reply: StoredReply) -> None:
        """Hand `reply` to the writing thread; dropped when it is huge or the disk cannot keep up."""
        if self._closed or len(self._pending) >= _PENDING or len(reply.reply) > self._max_bytes // 10:
            return
        idle = not self._pending
        self._pending.append(reply)
        if idle:
            self._hurry.clear()
            self._submit(self._gather)

    async def stats(self) -> StoreStats:
        """How full the file is, replies under way included."""
        return await self._run(self._measure)

    async def labels(self, limit: int = 20) -> list[tuple[datetime, str]]:
        """When and what was asked, the newest first."""
        return await self._run(self._list, limit)

    async def clear(self) -> int:
        """Forget every reply and shrink the file; how many there were."""
        return await self._run(self._empty)

    async def aclose(self) -> None:
        """Write what is under way, close the file and end the thread."""
        if self._closed:
            return
        self._closed = True
        await self._run(self._finish)
        self._thread.shutdown(wait=False)

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
        if self._writer is None or not batch:
            return
        now = int(time.time())
        try:
            with _transaction(self._writer) as db:
                self._make_room(db, sum(len(each.reply) + len(each.label) for each in batch))
                db.executemany(_INSERT, [_row(each, now) for each in batch])
        except (sqlite3.Error, OSError, ValueError) as error:
            if _is_damage(error):
                self._replace(self._reader)
            else:
                self._lose(error)

    def _make_room(self, db: sqlite3.Connection, coming: int) -> None:
        """Delete the oldest replies when the file is full, a tenth of it at a time."""
        excess = _used(db) + coming * 3 // 2 - self._max_bytes  # pages are not filled to the brim
        if excess <= 0:
            return
        excess += self._max_bytes // 10
        last = 0
        sizes = db.execute("SELECT id, length(reply) + length(label) FROM replies ORDER BY id")
        for row_id, size in sizes:
            last, excess = row_id, excess - size
            if excess <= 0:
                break
        sizes.close()
        db.execute("DELETE FROM replies WHERE id <= ?", (last,))

    def _measure(self) -> StoreStats:
        self._drain()
        entries = used = 0
        if self._writer is not None:
            with suppress(sqlite3.Error):
                (entries,) = self._writer.execute("SELECT count(*) FROM replies").fetchone()
                used = _used(self._writer)
        return StoreStats(path=str(self.path), entries=entries, bytes=used, limit=self._max_bytes)

    def _list(self, limit: int) -> list[tuple[datetime, str]]:
        self._drain()
        found: list[tuple[int, str]] = []
        if self._writer is not None:
            with suppress(sqlite3.Error):
                query = "SELECT created, label FROM replies ORDER BY id DESC LIMIT ?"
                found = self._writer.execute(query, (limit,)).fetchall()
        return [(datetime.fromtimestamp(created, UTC), label) for created, label in found]

    def _empty(self) -> int:
        self._drain()
        if self._writer is None:
            return 0
        try:
            with _transaction(self._writer) as db:
                gone = db.execute("DELETE FROM replies").rowcount
        except sqlite3.Error as error:
            self._lose(error)
            return 0
        with suppress(sqlite3.Error):  # the file shrinks later when another program is reading it
            self._writer.execute("VACUUM")
            self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return gone

    def _finish(self) -> None:
        if self._pending:
            self._drain()
        self._disconnect()

    def _connect(self) -> None:
        """Open the file; one that is no database is put aside and begun anew."""
        if self._reader is not None or time.monotonic() < self._not_before:
            return
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with locked(self.path.parent):
                try:
                    self._open_file()
                except sqlite3.Error as error:
                    if not _is_damage(error):
                        raise
                    self._put_aside()
                    self._open_file()
        except (sqlite3.Error, OSError, ValueError) as error:  # ValueError: no file can have that name
            self._not_before = time.monotonic() + _PAUSE
            self._lose(error)

    def _open_file(self) -> None:
        make_private(self.path)
        with ExitStack() as stack:
            writer = stack.enter_context(closing(_connection(self.path, wait=PATIENCE)))
            _prepare(writer)
            # Without patience: the event loop never waits for a lock.
            reader = stack.enter_context(closing(_connection(self.path, wait=0)))
            reader.execute("PRAGMA query_only = 1")
            # Reads the file now: the -wal is opened by name, and must be the one that belongs to it.
            reader.execute("PRAGMA schema_version").fetchone()
            reader.text_factory = bytes  # checked before it is decoded
            stack.pop_all()
        self._identity = identity(self.path)
        self._writer = writer
        with self._reading:
            self._reader = reader

    def _disconnect(self) -> None:
        with self._reading:
            reader, self._reader = self._reader, None
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
        if not self._warned:
            self._warned = True
            _log.warning("the response cache %s does not work (%s); calls go on without it", self.path, error)


def _connection(path: Path, *, wait: float) -> sqlite3.Connection:
    # Each connection is made on the store's thread; the reader is then used by the event loop alone.
    return sqlite3.connect(path, timeout=wait, isolation_level=None, check_same_thread=False)


def _prepare(db: sqlite3.Connection) -> None:
    """Set the file's ways and make the table of a new one.

    NORMAL instead of FULL: a power cut may take the newest replies, which can be asked for again.
    """
    if db.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute("PRAGMA journal_size_limit = 1048576")
    (found,) = db.execute("PRAGMA user_version").fetchone()
    if found not in {0, FORMAT}:
        msg = f"its format is {found}, not {FORMAT}; delete it or set another LLM_CACHE_DIR"
        raise sqlite3.NotSupportedError(msg)
    if found == 0:
        with _transaction(db):
            db.execute(_SCHEMA)
            db.execute(f"PRAGMA user_version = {FORMAT}")


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield db
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _used(db: sqlite3.Connection) -> int:
    """Bytes of the pages in use: what the file would be without its free pages."""
    pages, free, size = (
        db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)


def _row(kept: StoredReply, now: int) -> tuple[bytes, int, str, str, int]:
    return kept.key, now, kept.label, kept.reply, _crc(kept.key, kept.reply.encode())


def _crc(key: bytes, reply: bytes) -> int:
    """Tells a reply that a worn SD card has changed, which SQLite would not notice."""
    return zlib.crc32(reply, zlib.crc32(key))


def _is_damage(error: Exception) -> bool:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the low byte is the primary code
    return code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
