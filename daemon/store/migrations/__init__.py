"""Brings a database file to the schema that this program knows: made, left as it is, migrated, or refused.

Alembic is imported only when a migration is due: it adds about 100 ms of CPU to SQLAlchemy's 200, and the
database of nearly every start is either missing or current. A missing one is made from the tables and
stamped; a test holds that the migrations lead to the same schema.
"""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import URL, Connection, NullPool, create_engine, event, insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from daemon.errors import StoreError, StoreTooNew
from daemon.store.backups import copy_verified, rotate
from daemon.store.faults import translated
from daemon.store.files import open_private, private_file, private_folder, read_marker, write_marker
from daemon.store.restoring import finish_restoration
from daemon.store.sqlite import BUSY_SECONDS, CONNECT_ARGS, begin_immediate, set_up_migration
from daemon.store.tables import alembic_version, meta, metadata

INSTANCE_KEY = "instance_id"

_COPIES_KEPT = 3  # of before migrations

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Steps:
    """The way from nothing to the schema of today.

    Attributes:
        folder: the folder whose `versions` holds the migrations.
        revisions: their names, oldest first; a test compares them with what Alembic finds.
    """

    folder: Path
    revisions: tuple[str, ...]

    @property
    def head(self) -> str:
        """The revision that the program knows as the newest."""
        return self.revisions[-1]


STEPS = Steps(folder=Path(__file__).parent, revisions=("0001", "0002", "0003"))


@dataclass(frozen=True, slots=True)
class _Found:
    """What a read-only look into an existing file showed."""

    revision: str | None
    tables: int
    instance_id: str | None


def prepare(path: Path, *, create: bool = True, check: bool = True, steps: Steps = STEPS) -> str:
    """Make the file at `path` ready for use; blocks. Returns the database's instance id.

    Args:
        path: the database file, in a folder of its own.
        create: make it if it is missing.
        check: read the whole file once and compare its structure (0.1 s per 100 MB from memory).
        steps: the migrations.

    Raises:
        StoreTooNew: a newer program wrote it; it was left untouched.
        StoreError: it cannot be used; the message says why and what to do, and nothing was moved or wiped.
    """
    private_folder(path.parent, path.name)
    finish_restoration(path)
    fresh = not path.exists() or path.stat().st_size == 0
    if fresh:
        _check_fresh(path, create=create)
    else:
        for existing in _files(path):
            private_file(existing)
    with translated(path):
        found = _Found(None, 0, None) if fresh else _look(path, check=check)
        if found.revision != steps.head:
            _bring_up(path, found, steps)
            found = _look(path, check=False)
    return _agree_on_instance(path, found)


def is_current(path: Path, *, steps: Steps = STEPS) -> bool:
    """Whether there is a database at `path` that `prepare` would leave as it is; blocks, writes nothing."""
    try:
        return path.exists() and _look(path, check=False).revision == steps.head
    except sqlite3.Error:
        return False


def _check_fresh(path: Path, *, create: bool) -> None:
    """Refuse amnesia: SQLite would open a lost or emptied file as a new, empty database without a word."""
    known = read_marker(path.parent)
    if known is not None:
        state = "is empty" if path.exists() else "is missing"
        msg = (
            f"the database {path} {state}, but {path.parent / 'instance'} says that it held data "
            f"(instance {known}); restore it from a backup, or delete that file to start with nothing"
        )
        raise StoreError(msg)
    if not create:
        raise no_database(path)


def no_database(path: Path) -> StoreError:
    """What to say when there is nothing to read and nothing shall be made."""
    return StoreError(f"there is no database at {path} yet; 'askfirst --once' makes one")


def _files(path: Path) -> Iterator[Path]:
    names = (path.name, f"{path.name}-wal", f"{path.name}-shm")
    return (path.with_name(name) for name in names if path.with_name(name).exists())


def look_through(path: Path) -> None:
    """Read the whole database once and compare its structure; blocks.

    Raises:
        StoreError: it is damaged, or cannot be read; it was left as it is.
    """
    with translated(path):
        _look(path, check=True)


def _look(path: Path, *, check: bool) -> _Found:
    try:
        return _read(path, "ro", check=check)
    except sqlite3.OperationalError as error:
        if not error.sqlite_errorname.startswith("SQLITE_READONLY"):
            raise
    # A crash while the file was made left a journal that only a connection that may write can roll back.
    return _read(path, "rw", check=check)


def _read(path: Path, mode: str, *, check: bool) -> _Found:
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    with closing(sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS)) as connection:
        query = "SELECT name FROM sqlite_master WHERE type = 'table'"
        tables = {name for (name,) in connection.execute(query)}
        revision = _single(connection, tables, "alembic_version", "SELECT version_num FROM alembic_version")
        instance = _single(connection, tables, "meta", "SELECT value FROM meta WHERE key = 'instance_id'")
        if check:
            _check_structure(path, connection)
    return _Found(revision, len(tables), instance)


def _single(connection: sqlite3.Connection, tables: set[str], table: str, query: str) -> str | None:
    row = connection.execute(query).fetchone() if table in tables else None
    return None if row is None else str(row[0])


def _check_structure(path: Path, connection: sqlite3.Connection) -> None:
    # A damaged page is not noticed until somebody reads it; better before the first write than after.
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        msg = (
            f"the database {path} is damaged ({verdict}); it was left as it is. Stop the program, copy the "
            "file and its -wal aside, check the disk, and restore a backup"
        )
        raise StoreError(msg)


def _bring_up(path: Path, found: _Found, steps: Steps) -> None:
    if found.revision is None and found.tables:
        msg = f"{path} is not a database of Askfirst; move it away or set daemon.data_dir to another folder"
        raise StoreError(msg)
    if found.revision is None:
        _create(path, steps)
    elif found.revision in steps.revisions:
        _back_up(path, found.revision, steps.head)
        migrate(path, steps)
    else:
        msg = (
            f"the database {path} has schema {found.revision}, and this program knows only up to "
            f"{steps.head}: a newer version wrote it. It was left untouched; install that version again"
        )
        raise StoreTooNew(msg)


def _create(path: Path, steps: Steps) -> None:
    os.close(open_private(path))
    with _transaction(path) as connection:
        metadata.create_all(connection)
        connection.execute(insert(alembic_version).values(version_num=steps.head))
        _name_instance(connection)


def migrate(path: Path, steps: Steps = STEPS) -> None:
    """Run the missing migrations, all in one transaction: a kill leaves the old schema or the new."""
    from alembic.operations import Operations  # noqa: PLC0415 - see the head of this module
    from alembic.runtime.migration import MigrationContext  # noqa: PLC0415
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    script = ScriptDirectory(str(steps.folder))
    with _transaction(path) as connection:
        context = MigrationContext.configure(connection)
        current = context.get_current_revision() or "base"
        with Operations.context(context):
            for step in reversed(list(script.iterate_revisions(steps.head, current))):
                step.module.upgrade()
        context.stamp(script, steps.head)
        _name_instance(connection)
        _check_references(path, connection)


def _back_up(path: Path, revision: str, head: str) -> None:
    """Keep a verified copy of the database as it was before the migration to `head`, beside it."""
    target = path.with_name(f"{path.name}.before-{head}")
    copy_verified(path, target)
    _log.info("migrating the database", extra={"schema": revision, "to": head, "copy": str(target)})
    names = re.compile(re.escape(f"{path.name}.before-") + r"\w+")
    rotate(path.parent, _COPIES_KEPT, target, names)


def _name_instance(connection: Connection) -> None:
    statement = sqlite_insert(meta).values(key=INSTANCE_KEY, value=uuid.uuid4().hex)
    connection.execute(statement.on_conflict_do_nothing())


def _check_references(path: Path, connection: Connection) -> None:
    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").first()
    if broken is not None:
        msg = f"the migration of {path} was undone: it would break a reference in the table {broken[0]!r}"
        raise StoreError(msg)


@contextmanager
def _transaction(path: Path) -> Iterator[Connection]:
    url = URL.create("sqlite", database=str(path))
    engine = create_engine(url, poolclass=NullPool, connect_args=CONNECT_ARGS, hide_parameters=True)
    event.listen(engine, "connect", set_up_migration)
    event.listen(engine, "begin", begin_immediate)
    try:
        with engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()


def _agree_on_instance(path: Path, found: _Found) -> str:
    """Write down outside the database that it holds data; returns its instance id."""
    if found.instance_id is None:
        msg = f"{path} has lost its instance id: it was edited by hand or is damaged; restore a backup"
        raise StoreError(msg)
    known = read_marker(path.parent)
    if known and known != found.instance_id:
        _log.warning("%s is another database (%s) than before (%s)", path, found.instance_id, known)
    if known != found.instance_id:
        write_marker(path.parent, found.instance_id)
    return found.instance_id
