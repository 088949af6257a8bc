"""Copies of the database: made beside the running program, verified before they count, rotated.

A copy is made with `VACUUM INTO` over a connection that only reads, so that nothing is checkpointed beside
the writer; it holds one moment, needs no WAL, and is no larger than what it holds. It is a draft until it was
read through and compared with what it was made of; then its rename makes it a backup.

Everything here blocks: call it in a thread.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from daemon.errors import StoreError, StoreFull
from daemon.store.contents import COUNTED, Contents, Stop, contents_of, reading
from daemon.store.faults import translated
from daemon.store.files import flush_folder, hand_over, open_private, private_subfolder
from daemon.store.locks import lock_within

DRAFT = ".new"
"""End of the name of a file that is not finished."""

_NAME = re.compile(r"askfirst-(\d{8}T\d{6}Z)\.sqlite3")
_STAMP = "%Y%m%dT%H%M%SZ"
_WAIT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Backup:
    """A finished backup.

    Attributes:
        path: where it is.
        made_at: when it was made, by its name.
        size: its bytes.
    """

    path: Path
    made_at: datetime
    size: int


def backups_in(folder: Path) -> tuple[Backup, ...]:
    """The finished backups in `folder`, the newest first; none if it does not exist.

    Raises:
        StoreError: it cannot be read.
    """
    try:
        names = sorted((entry.name for entry in folder.iterdir()), reverse=True)
    except FileNotFoundError:
        return ()
    except OSError as error:
        msg = f"the backups in {folder} cannot be listed: {error.strerror}"
        raise StoreError(msg) from error
    found: list[Backup] = []
    for name in names:
        match = _NAME.fullmatch(name)
        if match is None:
            continue
        with suppress(ValueError, OSError):  # no moment, or gone meanwhile
            made_at = datetime.strptime(match[1], _STAMP).replace(tzinfo=UTC)
            size = (folder / name).stat().st_size
            found.append(Backup(path=folder / name, made_at=made_at, size=size))
    return tuple(found)


def make_backup(
    database: Path,
    folder: Path,
    keep: int,
    to: Path | None = None,
    *,
    now: datetime | None = None,
    spare: int = 0,
    stop: Stop | None = None,
) -> Path:
    """Make a verified copy of the database and return where it is; others may write to it meanwhile.

    Args:
        database: the database file.
        folder: where the backups are; made if it is missing.
        keep: how many of them are kept, the new one included, which is always kept.
        to: a file or an existing folder elsewhere instead; nothing is rotated there.
        now: the time of day that names it.
        spare: bytes that must be left free on the disk of the backups.
        stop: once this is set, the copy is given up.

    Raises:
        StoreFull: there is no room for it.
        StoreError: it cannot be made, or was not as it should be; there is no new backup then.
    """
    moment = datetime.now(UTC) if now is None else now.astimezone(UTC)
    with _one_at_a_time(database):
        if to is None:
            target = _in_folder(database, folder, moment)
            clear_drafts(folder)
        else:
            target = _elsewhere(to, moment)
        copy_verified(database, target, spare=spare, stop=stop)
        if to is None:
            rotate(folder, keep, target)
        return target


def copy_verified(
    database: Path,
    target: Path,
    *,
    spare: int = 0,
    stop: Stop | None = None,
    finish: Callable[[Path], None] | None = None,
) -> Contents:
    """Copy `database` to `target`, which counts from its rename on; what was at `target` is replaced.

    Args:
        database: the file to copy, perhaps with a WAL beside it.
        target: where to; a draft is made beside it.
        spare: bytes that must be left free.
        stop: once this is set, the copy is given up.
        finish: changes the verified draft before it counts.

    Returns:
        What the copy holds.

    Raises:
        StoreError: it cannot be made, or was not as it should be; `target` is as it was.
    """
    draft = target.with_name(f"{target.name}{DRAFT}")
    before = contents_of(database, stop=stop)
    _check_room(database, target.parent, spare)
    try:
        _remove_draft(draft)
        _copy(database, draft, stop)
        copied = contents_of(draft, check=True, stop=stop)
        _compare(database, before, copied)
        if finish is not None:
            finish(draft)
        _flush(draft)
        draft.replace(target)
        flush_folder(target.parent)
    except OSError as error:
        msg = f"the backup {target} cannot be written: {error.strerror or error}"
        raise StoreError(msg) from error
    finally:
        with suppress(OSError):
            _remove_draft(draft)
    return copied


def rotate(folder: Path, keep: int, newest: Path, names: re.Pattern[str] = _NAME) -> None:
    """Delete all files that match `names` but `newest` and the `keep` - 1 others whose names sort last.

    The newest one is never deleted, even if a clock that was wrong gave it an early name.
    """
    others = [
        entry for entry in folder.iterdir() if names.fullmatch(entry.name) and entry.name != newest.name
    ]
    others.sort(key=lambda path: path.name, reverse=True)
    for old in others[max(keep - 1, 0) :]:
        old.unlink(missing_ok=True)


def clear_drafts(folder: Path) -> None:
    """Remove what backups left behind that a crash interrupted; nobody may be making one meanwhile."""
    for entry in folder.iterdir():
        name = entry.name.removesuffix("-journal")
        if name.endswith(DRAFT) and _NAME.fullmatch(name.removesuffix(DRAFT)):
            entry.unlink(missing_ok=True)


@contextmanager
def _one_at_a_time(database: Path) -> Iterator[None]:
    """No other backup of this database is made meanwhile, in whatever program."""
    locks = private_subfolder(database.parent, "locks")
    descriptor = open_private(locks / "backup.lock")
    try:
        if not lock_within(descriptor, _WAIT_S):
            msg = f"another backup of {database} has been under way for {_WAIT_S:g} s; try again later"
            raise StoreError(msg)
        yield
    finally:
        os.close(descriptor)


def _in_folder(database: Path, folder: Path, moment: datetime) -> Path:
    if folder.parent == database.parent:
        private_subfolder(folder.parent, folder.name)
    else:
        _make_folder(folder, database.parent)
    while (path := folder / f"askfirst-{moment:{_STAMP}}.sqlite3").exists():
        moment += timedelta(seconds=1)
    return path


def _make_folder(folder: Path, data: Path) -> None:
    try:
        if not folder.is_dir():
            folder.mkdir(parents=True, mode=0o700)
            hand_over(folder, data)
    except OSError as error:
        msg = f"the folder {folder} for backups cannot be made: {error.strerror}; see backup.dir"
        raise StoreError(msg) from error


def _elsewhere(to: Path, moment: datetime) -> Path:
    to = to.absolute()
    if to.is_dir():
        to /= f"askfirst-{moment:{_STAMP}}.sqlite3"
    if to.exists():
        msg = f"{to} exists already; choose another name, or a folder"
        raise StoreError(msg)
    if not to.parent.is_dir():
        msg = f"there is no folder {to.parent} to put the backup into"
        raise StoreError(msg)
    return to


def _check_room(database: Path, folder: Path, spare: int) -> None:
    wal = database.with_name(f"{database.name}-wal")
    try:
        needed = database.stat().st_size + (wal.stat().st_size if wal.exists() else 0)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        msg = f"the room in {folder} cannot be seen: {error.strerror}"
        raise StoreError(msg) from error
    if free < needed + spare:
        msg = (
            f"a copy of {database} needs {needed:,} bytes and leaves {spare:,} free, but {free:,} are free "
            f"in {folder}; make room, or set backup.dir to a folder on another disk"
        )
        raise StoreFull(msg)


def _copy(database: Path, draft: Path, stop: Stop | None) -> None:
    os.close(open_private(draft))  # SQLite would make it readable for others
    with translated(database), reading(database, stop) as connection:
        connection.execute("VACUUM INTO ?", (str(draft),))


def _compare(database: Path, before: Contents, copied: Contents) -> None:
    same = (before.revision, before.instance_id) == (copied.revision, copied.instance_id)
    fewer = [table for table in COUNTED if copied.rows[table] < before.rows[table]]
    if not same or fewer:
        what = f"has fewer rows in {', '.join(fewer)}" if fewer else "is of another schema or instance"
        msg = f"the copy of {database} {what} than what it was made of; it was thrown away"
        raise StoreError(msg)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_draft(draft: Path) -> None:
    draft.unlink(missing_ok=True)
    draft.with_name(f"{draft.name}-journal").unlink(missing_ok=True)
