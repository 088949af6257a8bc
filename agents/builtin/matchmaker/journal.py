"""Several files of a folder changed as one: a redo journal whose rename is the moment at which it happens.

Three files cannot be replaced in one step. So the new content of all of them goes into one journal first:

1. the new contents are written to the disk beside the files (so that a full disk is noticed here),
2. the journal, which holds them too, is written, flushed and renamed into place: the commit point,
3. each file is replaced by a rename, and the journal is removed.

A crash before 2 leaves everything as it was. After 2, whoever opens the folder next finishes what the journal
says. A file that is neither as the journal found it nor as it shall become was changed by somebody in
between: then nothing is touched and a person is asked.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from agents.errors import AgentError, SourceError

JOURNAL = ".askfirst-journal.json"
"""Name of the journal inside the folder."""
_STAGED = ".{}.askfirst-new"
LOCK_SECONDS = 10.0
"""How long to wait for another program that has the folder."""
_POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What becomes of one file.

    Attributes:
        name: the file, inside the folder.
        old: its text now, None when it does not exist.
        new: its text then, None when it shall not exist.
    """

    name: str
    old: str | None
    new: str | None


@contextmanager
def locked(folder: Path, names: Sequence[str], seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Have the folder for oneself, after finishing what an interrupted program left half done.

    The lock is on the folder itself, so that no lock file lies about.

    Args:
        folder: the folder.
        names: the files that may be changed in it.
        seconds: how long to wait for another program.

    Raises:
        SourceError: the folder cannot be opened, or an interrupted change cannot be finished.
        AgentError: another program has it for longer than that.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        msg = (
            f"{folder}: {error.strerror or error}; the setting 'folder' must name a folder with "
            "offers.csv and needs.csv"
        )
        raise SourceError(msg) from error
    try:
        _lock(descriptor, folder, seconds)
        recover(folder, names)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() >= deadline:
                msg = (
                    f"{folder}: another program has had the folder for {seconds:g} s; try again when it "
                    "is done"
                )
                raise AgentError(msg) from error
            time.sleep(_POLL_SECONDS)
        except OSError as error:
            msg = (
                f"{folder}: it cannot be locked ({error.strerror}); a network folder may need locking "
                "switched on"
            )
            raise SourceError(msg) from error
        else:
            return


def commit(folder: Path, changes: Sequence[Change]) -> None:
    """Change all files or none; the folder must be locked.

    Raises:
        AgentError: it cannot be done; unless the message says otherwise, nothing was changed.
    """
    try:
        staged = [_stage(folder / change.name, change.new) for change in changes]
        journal = _stage(folder / JOURNAL, _journal_text(changes))
        _replace(journal, folder / JOURNAL)
    except OSError as error:
        _discard(folder, [change.name for change in changes])
        msg = f"{error.filename or folder}: {error.strerror or error}; nothing was changed"
        raise AgentError(msg) from error
    try:
        _sync_folder(folder)
        for change, ready in zip(changes, staged, strict=True):
            _put(folder / change.name, ready)
        _finish(folder)
    except OSError as error:
        msg = (
            f"{error.filename or folder}: {error.strerror or error}; the change is decided and kept in "
            f"{JOURNAL}, "
            "and will be finished when the folder is used next"
        )
        raise AgentError(msg) from error


def recover(folder: Path, names: Sequence[str]) -> bool:
    """Finish what an interrupted `commit` decided; the folder must be locked.

    Returns:
        Whether there was something to finish.

    Raises:
        SourceError: the journal cannot be read, or a file was changed by somebody else in between.
    """
    journal = folder / JOURNAL
    if not journal.exists():
        _discard(folder, names)
        return False
    try:
        entries = _entries(journal)
        pending = [name for name, entry in entries.items() if not _is_done(folder / name, entry)]
        for name in pending:
            content = entries[name]["content"]
            _put(folder / name, None if content is None else _stage(folder / name, content))
        _finish(folder)
    except OSError as error:
        msg = (
            f"{error.filename or folder}: {error.strerror or error}; an interrupted change ({JOURNAL}) "
            "cannot be finished"
        )
        raise SourceError(msg) from error
    _discard(folder, names)
    return True


def _journal_text(changes: Sequence[Change]) -> str:
    files = {
        change.name: {"old": _hash(change.old), "new": _hash(change.new), "content": change.new}
        for change in changes
    }
    return json.dumps({"version": 1, "files": files}, ensure_ascii=False, indent=1)


def _entries(journal: Path) -> Mapping[str, Mapping[str, str | None]]:
    """The files of a journal, checked."""
    try:
        files: dict[str, dict[str, str | None]] = json.loads(journal.read_text(encoding="utf-8"))["files"]
        whole = all(entry["new"] == _hash(entry["content"]) and "old" in entry for entry in files.values())
    except (ValueError, TypeError, KeyError, AttributeError):
        whole = False
    if not whole:
        msg = (
            f"{journal}: an interrupted change was written here, and it was altered since; check the "
            "files and delete it"
        )
        raise SourceError(msg)
    return files


def _is_done(path: Path, entry: Mapping[str, str | None]) -> bool:
    """Whether the file is as it shall become.

    Raises:
        SourceError: it is neither that nor as it was.
    """
    now = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None
    if now not in {entry["old"], entry["new"]}:
        msg = (
            f"{path}: it was changed while a match was only half written. The other half is in "
            f"{path.parent / JOURNAL}. "
            "Delete that file to go on with the files as they are now, or bring this file back and run again"
        )
        raise SourceError(msg)
    return now == entry["new"]


def _hash(text: str | None) -> str | None:
    return None if text is None else hashlib.sha256(text.encode("utf-8")).hexdigest()


def _stage(path: Path, text: str | None) -> Path | None:
    """Write `text` beside `path`, safely on the disk, with the mode and owner of `path`."""
    if text is None:
        return None
    target = path.resolve()
    staged = target.with_name(_STAGED.format(target.name))
    with os.fdopen(
        os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb"
    ) as file:
        file.write(text.encode("utf-8"))
        file.flush()
        _keep_owner_and_mode(file.fileno(), target)
        os.fsync(file.fileno())
    return staged


def _keep_owner_and_mode(descriptor: int, target: Path) -> None:
    """As the file it replaces; a new file is as private as the one it came from, the journal more so."""
    like = target if target.exists() else target.with_name("offers.csv")
    if target.name == JOURNAL or not like.exists():
        return
    old = like.stat()
    with suppress(PermissionError):  # only the owner or root may give a file away; its content matters more
        os.fchown(descriptor, old.st_uid, old.st_gid)
    os.fchmod(descriptor, old.st_mode & 0o7777)


def _put(path: Path, staged: Path | None) -> None:
    """Replace `path` by the staged file, or remove it."""
    if staged is None:
        path.unlink(missing_ok=True)
        _sync_folder(path.parent)
    else:
        _replace(staged, path)
        _sync_folder(path.resolve().parent)


def _replace(staged: Path | None, path: Path) -> None:
    if staged is not None:
        os.replace(staged, path.resolve())  # noqa: PTH105 - the rename of the C library, atomic by POSIX


def _finish(folder: Path) -> None:
    (folder / JOURNAL).unlink()
    _sync_folder(folder)


def _discard(folder: Path, names: Sequence[str]) -> None:
    """Remove what was written beside the files and never used."""
    for name in (*names, JOURNAL):
        target = (folder / name).resolve()
        staged = target.with_name(_STAGED.format(target.name))
        if staged.exists():
            with suppress(OSError):
                staged.unlink()


def _sync_folder(folder: Path) -> None:
    """Put the names of a folder safely on the disk, as far as the file system can."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # some network file systems cannot sync a folder
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
