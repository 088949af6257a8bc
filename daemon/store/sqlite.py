"""How a SQLite connection is set up; the reasons were measured by cutting power and killing processes."""

from __future__ import annotations

from typing import Any, Protocol

from sqlalchemy import Connection

BUSY_SECONDS = 5.0
"""How long a connection waits for a lock that another program holds."""

CONNECT_ARGS = {"timeout": BUSY_SECONDS, "isolation_level": None}
"""`isolation_level=None` keeps Python's sqlite3 from opening and closing transactions by itself: with its
default, statements of a migration are committed one by one, and a kill leaves half a schema."""

_WAL_LIMIT = 4 * 1024 * 1024

# What is sorted here is a few columns of a few thousand rows: memory for that costs less than writing it to
# the SD card, and a full /tmp, which is often the same disk, keeps nobody from reading.
_TEMPORARY = "temp_store=MEMORY"


_CACHE = "cache_size=-512"
"""KiB of pages for each connection: the default's 2 MB fill up over weeks, and the system keeps them too."""


class DbapiConnection(Protocol):
    """The part of a DBAPI connection that is used here; SQLAlchemy's for aiosqlite has it too."""

    def cursor(self) -> Any:
        """A cursor that can `execute`."""


def set_up_writer(connection: DbapiConnection, record: object) -> None:
    """WAL with a flush per commit: what was acknowledged survives a power cut (NORMAL loses it)."""
    del record  # the pool's, part of the event's signature
    _pragmas(
        connection,
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        f"journal_size_limit={_WAL_LIMIT}",
        _TEMPORARY,
        _CACHE,
    )


def set_up_reader(connection: DbapiConnection, record: object) -> None:
    """A reader never writes and never checkpoints: only the writer does, one at a time."""
    del record
    _pragmas(connection, "query_only=ON", "wal_autocheckpoint=0", _TEMPORARY, _CACHE)


def set_up_migration(connection: DbapiConnection, record: object) -> None:
    """As the writer, but a table may be made anew while others refer to it; that is checked at the end."""
    set_up_writer(connection, record)
    _pragmas(connection, "foreign_keys=OFF")


def begin_immediate(connection: Connection) -> None:
    """Take the write lock at once: a transaction that reads first and writes later could fail half-way."""
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def begin_deferred(connection: Connection) -> None:
    """A snapshot for reading."""
    connection.exec_driver_sql("BEGIN")


def _pragmas(connection: DbapiConnection, *settings: str) -> None:
    cursor = connection.cursor()
    for setting in settings:
        cursor.execute(f"PRAGMA {setting}")
    cursor.close()
