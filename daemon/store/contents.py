"""What a database holds, read without touching it: to verify copies and to compare them.

Everything here blocks: call it in a thread.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daemon.errors import StoreError
from daemon.store.faults import translated
from daemon.store.sqlite import BUSY_SECONDS

Stop = threading.Event

_PROGRESS_STEPS = 2_000  # of SQLite's virtual machine: about 0.1 ms

COUNTED = ("runs", "model_calls", "proposals", "proposal_events")
"""Tables whose rows are compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What a database holds.

    Attributes:
        revision: its schema.
        instance_id: its name for life.
        rows: how many rows each of `COUNTED` has.
        last_run: when its newest run ended, text as stored; None without one.
        last_decision: when a person last decided about a proposal; None if nobody did.
        numbered: the highest number that was given to a proposal.
        mark: changes whenever something is recorded; the same in a copy.
    """

    revision: str
    instance_id: str
    rows: dict[str, int]
    last_run: str | None
    last_decision: str | None
    numbered: int
    mark: str


def contents_of(path: Path, *, check: bool = False, stop: Stop | None = None) -> Contents:
    """What the database at `path` holds; it is opened for reading only.

    Args:
        path: the file.
        check: read all of it and check its structure, its indexes and its references.
        stop: once this is set, the look is given up.

    Raises:
        StoreError: it is damaged, or no database of Askfirst.
    """
    if not path.is_file():
        msg = f"there is no file {path}"
        raise StoreError(msg)
    with translated(path), reading(path, stop) as connection:
        if check:
            _check(path, connection)
        connection.execute("BEGIN")
        tables = {
            name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        }
        if not {"alembic_version", "meta", *COUNTED} <= tables:
            msg = f"{path} is not a database of Askfirst"
            raise StoreError(msg)
        revision = _one(connection, "SELECT version_num FROM alembic_version")
        instance = _one(connection, "SELECT value FROM meta WHERE key = 'instance_id'")
        if revision is None or instance is None:
            missing = "schema" if revision is None else "instance id"
            msg = f"{path} has no {missing}: it is damaged or unfinished"
            raise StoreError(msg)
        decided = "SELECT max(at) FROM proposal_events WHERE via NOT IN ('', 'daemon')"
        return Contents(
            revision=str(revision),
            instance_id=str(instance),
            rows={table: int(_one(connection, f"SELECT count(*) FROM {table}") or 0) for table in COUNTED},  # noqa: S608 - names of ours
            last_run=_text(_one(connection, "SELECT max(finished_at) FROM runs")),
            last_decision=_text(_one(connection, decided)),
            numbered=highest_number(connection),
            mark=_mark(connection, tables),
        )


def highest_number(connection: sqlite3.Connection) -> int:
    """The highest number that was ever given to a proposal of this database."""
    given = _one(connection, "SELECT seq FROM sqlite_sequence WHERE name = 'proposals'")
    return int(given or 0)


def mark_of(path: Path) -> str:
    """`Contents.mark` alone, which takes a few reads.

    Raises:
        StoreError: it cannot be read.
    """
    with translated(path), reading(path) as connection:
        connection.execute("BEGIN")
        tables = {
            name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        }
        return _mark(connection, tables)


def _check(path: Path, connection: sqlite3.Connection) -> None:
    (verdict,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    broken = connection.execute("PRAGMA foreign_key_check").fetchone() if verdict == "ok" else None
    if verdict != "ok" or broken is not None:
        why = verdict if broken is None else f"a reference in the table {broken[0]!r} leads nowhere"
        msg = f"{path} is damaged ({' '.join(str(why).split())})"
        raise StoreError(msg)


@contextmanager
def reading(path: Path, stop: Stop | None = None) -> Iterator[sqlite3.Connection]:
    """A connection that can neither write nor checkpoint; once `stop` is set its work is given up."""
    uri = f"{path.absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None)) as connection:
        connection.execute("PRAGMA temp_store=MEMORY")
        if stop is not None:
            connection.set_progress_handler(lambda: int(stop.is_set()), _PROGRESS_STEPS)
        yield connection


def _mark(connection: sqlite3.Connection, tables: set[str]) -> str:
    """A hash over what grows with each thing that is recorded, and over the one table that does not."""
    queries = [
        "SELECT max(id) FROM runs",
        "SELECT max(id) FROM proposal_events",
        "SELECT max(id) FROM proposals",
    ]
    if "due_times" in tables:
        queries.append("SELECT agent, max(due), max(last) FROM due_times GROUP BY agent ORDER BY agent")
    if "agent_states" in tables:
        queries.append("SELECT * FROM agent_states ORDER BY agent")
    found = [connection.execute(query).fetchall() for query in queries]
    return hashlib.sha256(repr(found).encode("utf-8", "backslashreplace")).hexdigest()


def _one(connection: sqlite3.Connection, query: str) -> Any:
    row = connection.execute(query).fetchone()
    return None if row is None else row[0]


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
