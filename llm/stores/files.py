"""The cache file as a file: private, replaced by one program at a time, put aside when it is damaged."""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PATIENCE = 2.0
"""Seconds to wait for another program's lock."""

KEPT_ASIDE = 3
"""Damaged files that are kept; older ones go, so that they cannot fill a disk."""


def identity(path: Path) -> tuple[int, int] | None:
    """Device and inode, which tell whether `path` still is the file that was opened; None without one."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def make_private(path: Path) -> None:
    """Make the file if it is not there, readable by its owner only; SQLite gives -wal and -shm the same mode.

    An existing file is never opened here: closing it would drop the locks that SQLite holds on it for
    another client of this process.

    Raises:
        OSError: it cannot be made, or is no regular file.
    """
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
    if path.is_symlink() or not path.is_file():
        msg = f"{path} is no regular file"
        raise OSError(msg)
    for each in _family(path):
        if each.exists() and each.stat().st_mode & 0o077:
            each.chmod(0o600)


def _family(path: Path) -> tuple[Path, Path, Path]:
    return path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")


def set_aside(path: Path) -> Path:
    """Rename the file, and its -wal, which must not meet the new file; the new name of the file."""
    pattern = re.compile(re.escape(path.name) + r"\.damaged-(\d+)")
    found = (pattern.fullmatch(each.name) for each in path.parent.iterdir())
    taken = sorted(int(match[1]) for match in found if match)
    for old in taken[: max(0, len(taken) - KEPT_ASIDE + 1)]:
        for each in _family(path.with_name(f"{path.name}.damaged-{old}")):
            each.unlink(missing_ok=True)
    moved = path.with_name(f"{path.name}.damaged-{(taken or [0])[-1] + 1}")
    for source, target in zip(_family(path), _family(moved), strict=True):
        with suppress(FileNotFoundError):
            source.rename(target)
    return moved


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other programs from making or replacing the file in `folder` meanwhile.

    Raises:
        OSError: another program holds it longer than `PATIENCE`, or the folder cannot be opened.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _acquire(handle, folder)
        yield
    finally:
        os.close(handle)


def _acquire(handle: int, folder: Path) -> None:
    end = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                msg = f"another program keeps {folder} locked"
                raise TimeoutError(msg) from None
            time.sleep(0.01)
        except OSError:  # a file system without locks: then without
            return
        else:
            return
