"""SQLAlchemy's and SQLite's errors -> StoreError, each with its way out; nothing foreign leaves here."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.exc import DBAPIError, SQLAlchemyError, StatementError

from daemon.errors import StoreError, StoreFull
from daemon.store.files import out_of_room

_LOCKED = "another program has locked it for too long; close that program, or try again in a moment"
_FOREIGN = "it cannot be opened; check who owns the file and its folder"

# Keys are the primary names of SQLite's result codes (sqlite.org/rescode.html); extended ones begin with
# them. None is a reason to move or wipe the file: a failing disk makes SQLite call a sound database CORRUPT.
_WAYS_OUT = {
    "SQLITE_BUSY": _LOCKED,
    "SQLITE_LOCKED": _LOCKED,
    "SQLITE_FULL": "the disk is full; free some space and try again, nothing that was confirmed is lost",
    "SQLITE_READONLY": "it cannot be written; check who owns it and whether the disk is mounted read-only",
    "SQLITE_CANTOPEN": "it cannot be opened; check who owns the folder and whether the disk is writable",
    "SQLITE_PERM": _FOREIGN,
    "SQLITE_AUTH": _FOREIGN,
    "SQLITE_IOERR": "the disk failed to read or write it; check its free space and its health (dmesg)",
    "SQLITE_CORRUPT": "it looks damaged; it was left as it is. Stop the program, copy the file and its -wal "
    "aside, check the disk, and restore a backup if it does not open on a sound disk either",
    "SQLITE_NOTADB": "it is no SQLite database, or its beginning is damaged; it was left as it is. Move it "
    "away or restore a backup",
    "SQLITE_INTERRUPT": "the program is being stopped",
    "SQLITE_TOOBIG": "something is too large to be kept",
    "SQLITE_CONSTRAINT": "what was to be written contradicts what is there; nothing was written",
}

_LOST_CONNECTION = ("SQLITE_IOERR", "SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_FULL", "SQLITE_CANTOPEN")
_DOUBTFUL = ("SQLITE_IOERR", "SQLITE_CORRUPT", "SQLITE_NOTADB")

# A full disk is not always called FULL: there may be no room for the shared memory beside the WAL.
_FAILED_WRITE = ("SQLITE_IOERR", "SQLITE_CANTOPEN")


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn every database error inside into a `StoreError` about the file at `path`."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error) as error:
        raise _store_error(path, error) from error


def breaks_connection(error: BaseException) -> bool:
    """Whether a connection that met this error must not be used again: what it believes may be wrong."""
    return _code(error).startswith(_LOST_CONNECTION)


def makes_doubtful(error: BaseException) -> bool:
    """Whether the file may not be as it should after this error, so that it has to be looked through."""
    return _code(error).startswith(_DOUBTFUL)


def is_full(path: Path, error: BaseException) -> bool:
    """Whether the error means that the disk is full, whatever SQLite called it."""
    code = _code(error)
    return code == "SQLITE_FULL" or (code.startswith(_FAILED_WRITE) and out_of_room(path.parent))


def _store_error(path: Path, error: SQLAlchemyError | sqlite3.Error) -> StoreError:
    code = _code(error)
    if is_full(path, error):
        way_out = _WAYS_OUT["SQLITE_FULL"]
        return StoreFull(f"the database {path} cannot be used: {way_out} ({code})")
    for name, way_out in _WAYS_OUT.items():
        if code.startswith(name):
            return StoreError(f"the database {path} cannot be used: {way_out} ({code})")
    # SQLAlchemy's own text would hold the statement, which tells a user nothing.
    cause = error.orig if isinstance(error, StatementError) and error.orig is not None else error
    return StoreError(f"the database {path} refused an operation: {type(cause).__name__}: {str(cause)[:200]}")


def _code(error: BaseException) -> str:
    """SQLite's name of the error, such as SQLITE_BUSY_SNAPSHOT; empty if SQLite did not raise it."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    return str(getattr(cause, "sqlite_errorname", ""))
