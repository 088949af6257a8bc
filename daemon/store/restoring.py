"""Puts a backup in the place of the database, so that a crash at any moment leaves the one or the other.

    copy the backup beside the database, verified -> rename it to NAME.restored-TIME     (the commit)
    -> NAME-wal and NAME become NAME.replaced-TIME...  -> NAME.restored-TIME becomes NAME

Before the commit nothing has changed. After it, whoever opens the database next finishes what is left
(`finish_restoration`, called before every opening), and each step may be done again. The WAL of the old
database is out of the way, and the folder flushed, before the new file takes the name: SQLite would apply
it to any file that has that name.

Everything here blocks.
"""

from __future__ import annotations

import logging
import re
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from daemon.errors import StoreError, StoreTooNew
from daemon.store.backups import DRAFT, copy_verified
from daemon.store.contents import Contents, contents_of, highest_number
from daemon.store.faults import translated
from daemon.store.files import flush_folder, private_file, read_marker, write_marker

_log = logging.getLogger(__name__)

NUMBERS_LEFT_OUT = 10_000
"""Proposals are numbered so far beyond the backup's when the replaced database cannot tell its highest one.

An agent knows by a proposal's number whether it was carried out already, so no number may come twice."""

_STAMP = "%Y%m%dT%H%M%SZ"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a restoration would change.

    Attributes:
        source: the backup.
        found: what it holds.
        current: what the database in place holds; None when it is missing or cannot be read.
        trouble: why it cannot be read; empty when it can.
        instance_id: the name of the database that belongs here, None when nothing has been here.
    """

    source: Path
    found: Contents
    current: Contents | None
    trouble: str
    instance_id: str | None

    @property
    def is_foreign(self) -> bool:
        """Whether the backup was made of another installation's database."""
        return self.instance_id is not None and self.instance_id != self.found.instance_id


def plan_restoration(database: Path, source: Path, revisions: Sequence[str]) -> Plan:
    """Look at the backup, all of it, and at what is in place; nothing is changed.

    Args:
        database: the database file to replace; it may be damaged or missing.
        source: the backup.
        revisions: the schemas that this program knows.

    Raises:
        StoreTooNew: a newer version of the program made the backup.
        StoreError: the backup cannot be used.
    """
    if database.exists() and source.exists() and source.samefile(database):
        msg = f"{source} is the database itself; name a backup: 'askfirst backup list' shows them"
        raise StoreError(msg)
    found = contents_of(source, check=True)
    if found.revision not in revisions:
        msg = (
            f"the backup {source} has schema {found.revision}, and this program knows only up to "
            f"{revisions[-1]}: a newer version made it. Install that version, then restore"
        )
        raise StoreTooNew(msg)
    current, trouble = _current(database)
    return Plan(
        source=source,
        found=found,
        current=current,
        trouble=trouble,
        instance_id=read_marker(database.parent) or (None if current is None else current.instance_id),
    )


def restore(database: Path, plan: Plan, *, now: datetime | None = None) -> Path | None:
    """Put the backup in place; nobody may have the database open meanwhile.

    Returns:
        Where the database of before is now, with its -wal; None if there was none.

    Raises:
        StoreError: it could not be done; the database of before is in place.
    """
    stamp = f"{datetime.now(UTC) if now is None else now.astimezone(UTC):{_STAMP}}"
    replaced = database.with_name(f"{database.name}.replaced-{stamp}")
    if replaced.exists():
        msg = f"{replaced} exists already; try again in a second"
        raise StoreError(msg)
    there = database.exists()
    taken = None if plan.current is None else plan.current.numbered
    ready = database.with_name(f"{database.name}.restored-{stamp}")
    copy_verified(plan.source, ready, finish=lambda draft: _number_onward(draft, taken))
    finish_restoration(database)
    return replaced if there else None


def finish_restoration(database: Path) -> bool:
    """Finish a restoration that was committed; tells whether there was one.

    Raises:
        StoreError: it cannot be finished now.
    """
    ready = _committed(database)
    if ready is None:
        return False
    stamp = ready.name.rpartition("-")[2]
    try:
        _set_aside(database, f"{database.name}.replaced-{stamp}")
        flush_folder(database.parent)
        private_file(ready)
        ready.rename(database)
        flush_folder(database.parent)
    except OSError as error:
        msg = f"the restored database {ready} cannot be put in place: {error.strerror}; try again"
        raise StoreError(msg) from error
    write_marker(database.parent, contents_of(database).instance_id)
    _log.warning("a backup was restored", extra={"database": str(database)})
    return True


def _set_aside(database: Path, name: str) -> None:
    wal = database.with_name(f"{database.name}-wal")
    if wal.exists():
        wal.rename(database.with_name(f"{name}-wal"))
    database.with_name(f"{database.name}-shm").unlink(missing_ok=True)  # made anew of the -wal
    if database.exists():
        database.rename(database.with_name(name))


def _committed(database: Path) -> Path | None:
    """The database that is to be put in place; removes drafts, which nobody can be making now."""
    name = re.compile(re.escape(f"{database.name}.restored-") + r"\d{8}T\d{6}Z(\.new(-journal)?)?")
    try:
        found = sorted(path for path in database.parent.iterdir() if name.fullmatch(path.name))
    except FileNotFoundError:
        return None
    ready: Path | None = None
    for path in found:
        if DRAFT in path.name:
            path.unlink(missing_ok=True)
        else:
            ready = path
    return ready


def _current(database: Path) -> tuple[Contents | None, str]:
    if not database.exists():
        return None, "it is missing"
    if database.stat().st_size == 0:
        return None, "it is empty"
    try:
        return contents_of(database), ""
    except StoreError as error:
        return None, str(error)


def _number_onward(draft: Path, taken: int | None) -> None:
    """Give no proposal a number that was given before, although the backup does not know of it."""
    with translated(draft), closing(sqlite3.connect(draft, isolation_level=None)) as connection:
        known = highest_number(connection)
        last = known + NUMBERS_LEFT_OUT if taken is None else max(known, taken)
        connection.execute("BEGIN IMMEDIATE")
        changed = connection.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = 'proposals'", (last,))
        if changed.rowcount == 0:
            connection.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('proposals', ?)", (last,))
        connection.execute("COMMIT")
