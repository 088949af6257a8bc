"""The tables of the cache file, and what is done to them in one statement or one transaction.

Why a rowid table with a unique index and not `WITHOUT ROWID`: measured with replies of 700 and 1500 bytes it
took half the room, a third of the time to write and no more to read. And its oldest rows lie together, so
deleting them frees whole pages, which makes the size limit exact. The index is over the last 8 bytes of the
key, which makes it half as large and quicker to search; the whole key is compared afterwards.

Why the oldest replies go first and not those unused for longest: on sequences of questions as uneven as
Zipf's law, a full store that knows the last use of each reply answers 3 or 4 of 100 calls more. It would
write a page to the disk for each reply that is read, where reading now writes nothing at all, and SD cards
wear out.
"""

from __future__ import annotations

import os
import sqlite3
import zlib
from collections.abc import Iterable

from llm.stores.base import StoredReply
from llm.stores.database import transaction

FORMAT = 2
"""Written into the file as `user_version`. An older file is begun anew, a newer one is left alone."""

SELECT = "SELECT key, reply, created, crc FROM replies WHERE short = ?"
MARK = "SELECT value FROM marks WHERE name = ?"
GENERATION = "generation"
"""Mark that is another one after each clearing, and in each new file."""

_CACHE_KIB = 4096  # pages of the file that the reader keeps in memory at most
_SCHEMA = (
    "DROP TABLE IF EXISTS replies",
    """
    CREATE TABLE replies (
        id INTEGER PRIMARY KEY,
        short INTEGER NOT NULL UNIQUE,
        key BLOB NOT NULL,
        created REAL NOT NULL,
        label TEXT NOT NULL,
        reply TEXT NOT NULL,
        crc INTEGER NOT NULL
    )
    """,
    "CREATE TABLE marks (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
)
_INSERT = "INSERT OR REPLACE INTO replies (short, key, created, label, reply, crc) VALUES (?, ?, ?, ?, ?, ?)"
_MEASURE = """
    SELECT count(*), (SELECT created FROM replies ORDER BY id LIMIT 1),
        (SELECT created FROM replies ORDER BY id DESC LIMIT 1)
    FROM replies
"""
_PAGE = "SELECT id, key, label, reply, created FROM replies WHERE id < ? ORDER BY id DESC LIMIT ?"


def prepare_reader(db: sqlite3.Connection) -> None:
    """Make it one that only reads.

    No `mmap_size`: it would save a microsecond, and a read error of the disk under a mapped file ends the
    program with SIGBUS instead of an exception.
    """
    db.execute("PRAGMA query_only = 1")
    db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    # Reads the file now: the -wal is opened by name, and must be the one that belongs to it.
    db.execute("PRAGMA schema_version").fetchone()
    db.text_factory = bytes  # checked before it is decoded


def prepare_writer(db: sqlite3.Connection) -> None:
    """Set the file's ways and make the tables of a new one.

    NORMAL instead of FULL: a power cut may take the newest replies, which can be asked for again.

    Raises:
        sqlite3.Error: the file cannot be used.
    """
    if db.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute("PRAGMA journal_size_limit = 1048576")
    (found,) = db.execute("PRAGMA user_version").fetchone()
    if found > FORMAT or found < 0:
        msg = f"its format is {found}, not {FORMAT}; delete it or set another LLM_CACHE_DIR"
        raise sqlite3.NotSupportedError(msg)
    if found < FORMAT:
        with transaction(db):
            for statement in _SCHEMA:
                db.execute(statement)
            renew(db)
            db.execute(f"PRAGMA user_version = {FORMAT}")


def renew(db: sqlite3.Connection) -> None:
    """Say that what was read from here before no longer counts."""
    mark(db, GENERATION, os.urandom(8).hex())


def mark(db: sqlite3.Connection, name: str, value: str) -> None:
    """Keep a short text."""
    db.execute("INSERT OR REPLACE INTO marks (name, value) VALUES (?, ?)", (name, value))


def insert(db: sqlite3.Connection, replies: Iterable[StoredReply]) -> None:
    """Keep replies, each in place of the one that has its key."""
    db.executemany(_INSERT, map(_row, replies))


def measure(db: sqlite3.Connection) -> tuple[int, float | None, float | None]:
    """How many replies there are, and when the oldest and the newest were answered; reads no whole table."""
    count, oldest, newest = db.execute(_MEASURE).fetchone()
    return count, oldest, newest


def make_room(db: sqlite3.Connection, *, coming: int, limit: int) -> int:
    """Delete the oldest replies when `coming` more bytes would fill the file, a tenth of it at a time.

    Returns:
        How many went.
    """
    excess = used_bytes(db) + coming * 3 // 2 - limit  # pages are not filled to the brim
    if excess <= 0:
        return 0
    excess += limit // 10
    last = 0
    sizes = db.execute("SELECT id, length(reply) + length(label) FROM replies ORDER BY id")
    for row_id, size in sizes:
        last, excess = row_id, excess - size
        if excess <= 0:
            break
    sizes.close()
    return db.execute("DELETE FROM replies WHERE id <= ?", (last,)).rowcount


def forget(db: sqlite3.Connection, before: float) -> int:
    """Delete the replies that were answered before then, in seconds since 1970; how many."""
    gone = db.execute("DELETE FROM replies WHERE created < ?", (before,)).rowcount
    renew(db)
    return gone


def page(db: sqlite3.Connection, before: int, count: int) -> list[tuple[int, StoredReply]]:
    """The newest `count` replies older than the row `before`, with their rows."""
    return [
        (row_id, StoredReply(key=key, label=label, reply=reply, created=created))
        for row_id, key, label, reply, created in db.execute(_PAGE, (before, count))
    ]


def used_bytes(db: sqlite3.Connection) -> int:
    """Bytes of the pages in use: what the file would be without its free pages."""
    pages, free, size = (
        db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)


def short_of(key: bytes) -> int:
    """The last 8 bytes of a key, as a number that SQLite can hold."""
    return int.from_bytes(key[-8:], "big", signed=True)


def checksum(key: bytes, reply: bytes) -> int:
    """Tells a reply that a worn SD card has changed, which SQLite would not notice."""
    return zlib.crc32(reply, zlib.crc32(key))


def _row(kept: StoredReply) -> tuple[int, bytes, float, str, str, int]:
    crc = checksum(kept.key, kept.reply.encode())
    return short_of(kept.key), kept.key, kept.created, kept.label, kept.reply, crc
