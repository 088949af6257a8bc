"""Files that only their owner may read, whatever the umask: folder 0700, files 0600."""

from __future__ import annotations

import logging
import os
import pwd
import shutil
import stat
from pathlib import Path

from daemon.errors import StoreError

_log = logging.getLogger(__name__)

_FOLDER_MODE = 0o700
_FILE_MODE = 0o600
_OTHERS = 0o077

MARKER = "instance"
"""File beside the database that holds its instance id: it tells of a database that was lost or emptied."""

FULL_BELOW = 1024 * 1024
"""With fewer bytes than this on a disk it counts as full, whatever a failed write was called."""

RESERVE = "reserve"
"""File beside the database that keeps some room on the disk for it."""

DAEMON_LOCK = "daemon.lock"
"""File beside the database that a running daemon holds locked; it holds the daemon's process number."""

_LEDGER = ("llm_usage.sqlite3", "llm_usage.sqlite3-wal", "llm_usage.sqlite3-shm")
# What the data folder may hold although another program or an earlier start made it with a loose mode.
_CONTROL = ("control.path", "control.sock", DAEMON_LOCK)
_PARTS = ("agents", "backups", "hooks", "llm_cache", "locks", "lost+found", "plugins")
_OURS = frozenset({MARKER, RESERVE, *_PARTS, *_CONTROL, *_LEDGER})


def private_folder(folder: Path, database: str) -> None:
    """Make sure that `folder` exists and is ours alone.

    Args:
        folder: the data folder.
        database: name of the database file; a folder that holds it is known to be Askfirst's own.

    Raises:
        StoreError: it cannot be made, belongs to somebody else, or is shared with other things.
    """
    missing = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=_FOLDER_MODE)
    except FileExistsError as error:
        msg = f"{folder} is a file; set daemon.data_dir to a folder"
        raise StoreError(msg) from error
    except OSError as error:
        msg = f"{folder} cannot be made: {error.strerror}; set daemon.data_dir to a folder that you may write"
        raise StoreError(msg) from error
    if missing:
        folder.chmod(_FOLDER_MODE)  # whatever the umask made of it
    state = folder.stat()
    _check_owner(folder, state)
    if state.st_mode & _OTHERS:
        _check_own_use(folder, database)
        _tighten(folder, _FOLDER_MODE)


def private_subfolder(folder: Path, name: str) -> Path:
    """The folder `name` in the data folder, made if it is missing; it is as private as the data folder is.

    Raises:
        StoreError: it cannot be made.
    """
    path = folder / name
    try:
        if not path.is_dir():
            path.mkdir(mode=_FOLDER_MODE, exist_ok=True)
            hand_over(path, folder)
    except OSError as error:
        msg = f"{path} cannot be made: {error.strerror}; check who owns {folder} and the disk"
        raise StoreError(msg) from error
    return path


def private_file(path: Path) -> None:
    """Make sure that an existing file is ours alone; it is not opened, since that would drop SQLite's locks.

    Raises:
        StoreError: it is no regular file or belongs to somebody else.
    """
    state = path.stat()
    _check_owner(path, state)
    if not stat.S_ISREG(state.st_mode):
        msg = f"{path} is no regular file; move it away or set daemon.data_dir to another folder"
        raise StoreError(msg)
    if state.st_mode & _OTHERS:
        _tighten(path, _FILE_MODE)


def open_private(path: Path, flags: int = 0) -> int:
    """Open a file for reading and writing, made with mode 0600 if it is missing; returns its descriptor.

    Raises:
        StoreError: it cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | flags, _FILE_MODE)
    except OSError as error:
        msg = f"{path} cannot be opened: {error.strerror}; check who owns it and whether the disk is writable"
        raise StoreError(msg) from error
    state = os.fstat(descriptor)
    if stat.S_IMODE(state.st_mode) != _FILE_MODE and state.st_uid == os.geteuid():
        os.fchmod(descriptor, _FILE_MODE)
    hand_over(descriptor, path.parent)
    return descriptor


def read_marker(folder: Path) -> str | None:
    """The instance id that the marker in `folder` names, None without a marker."""
    try:
        return (folder / MARKER).read_text("utf-8", "replace").strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        msg = f"{folder / MARKER} cannot be read: {error.strerror}"
        raise StoreError(msg) from error


def write_marker(folder: Path, instance_id: str) -> None:
    """Write the marker, whole or not at all."""
    write_private(folder / MARKER, f"{instance_id}\n", draft=folder / f"{MARKER}.new")


def write_private(path: Path, text: str, *, draft: Path) -> None:
    """Write a file that only its owner may read, whole or not at all.

    Args:
        path: the file; what was there is replaced.
        text: what it shall hold.
        draft: where it is written first, in the same folder.

    Raises:
        StoreError: it cannot be written.
    """
    descriptor = open_private(draft, os.O_TRUNC)
    try:
        os.write(descriptor, text.encode())
        os.fsync(descriptor)
    except OSError as error:
        msg = f"{draft} cannot be written: {error.strerror}"
        raise StoreError(msg) from error
    finally:
        os.close(descriptor)
    draft.replace(path)


def out_of_room(folder: Path) -> bool:
    """Whether the disk of `folder` has less than `FULL_BELOW` bytes left; blocks."""
    try:
        return shutil.disk_usage(folder).free < FULL_BELOW
    except OSError:
        return False


def flush_folder(folder: Path) -> None:
    """Make sure that what was renamed or removed in `folder` is so after a power cut too.

    Raises:
        OSError: the disk failed.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_owner(path: Path, state: os.stat_result) -> None:
    me = os.geteuid()
    if me not in {state.st_uid, 0}:
        msg = (
            f"{path} belongs to the user {_user(state.st_uid)}, not to {_user(me)}; "
            "run the program as that user or set daemon.data_dir to a folder of your own"
        )
        raise StoreError(msg)


def _check_own_use(folder: Path, database: str) -> None:
    """Refuse to close a folder that other things live in: /tmp, a home, a project."""
    names = {entry.name for entry in folder.iterdir()}
    known = any(name.startswith(database) for name in names)
    if not known and not names <= _OURS:
        msg = (
            f"{folder} is open to other users and holds other things; set daemon.data_dir to a folder "
            f"for Askfirst alone, or close it yourself: chmod 700 {folder}"
        )
        raise StoreError(msg)


def _tighten(path: Path, mode: int) -> None:
    before = stat.S_IMODE(path.stat().st_mode)
    try:
        path.chmod(mode)
        kept = stat.S_IMODE(path.stat().st_mode) & _OTHERS
    except OSError:
        kept = before
    if kept:
        msg = (
            f"{path} can be read by other users and its mode cannot be changed; "
            "use a file system that keeps permissions, or mount it with umask=077"
        )
        raise StoreError(msg)
    _log.warning("%s was open to other users (mode %04o); it is %04o now", path, before, mode)


def hand_over(made: int | Path, folder: Path) -> None:
    """What root makes in the folder of the service's user must stay usable for that user."""
    if os.geteuid() != 0:
        return
    owner = folder.stat()
    state = made.stat() if isinstance(made, Path) else os.fstat(made)
    if state.st_uid != owner.st_uid:
        os.chown(made, owner.st_uid, owner.st_gid)


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)
