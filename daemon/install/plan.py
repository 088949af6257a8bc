"""What an installation does, as steps that can be shown first and carried out afterwards."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.errors import DaemonError
from daemon.install.machine import Machine, shown
from daemon.install.marked import is_ours, is_untouched

if TYPE_CHECKING:
    from daemon.install.machine import Done

ASIDE = ".yours"
"""Ending of a file that was in our place, or that somebody changed: it is kept beside ours."""


class StepFailed(DaemonError):
    """A step of an installation did not work; the message says which and what it said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file to be written. What differs from it and was not written by us is kept beside it.

    Attributes:
        path: where it goes.
        text: its whole content.
        mode: who may read it.
    """

    path: Path
    text: str
    mode: int = 0o644

    def __str__(self) -> str:
        return f"write {self.path} ({self.mode:04o})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """A folder that must be there.

    Attributes:
        path: where it goes.
        mode: who may use it; one that is there keeps its own.
        owner: name of its user and group; None for whoever installs.
    """

    path: Path
    mode: int = 0o755
    owner: str | None = None

    def __str__(self) -> str:
        return f"make the folder {self.path} ({self.mode:04o}{f', for {self.owner}' if self.owner else ''})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A command to be run.

    Attributes:
        words: the command line.
        why: what it is good for.
        unneeded: tells whether it would change nothing, given whether an earlier step has changed something.
        may_fail: a failure is told and the rest goes on.
        help: how to go on when it fails.
    """

    words: tuple[str, ...]
    why: str
    unneeded: Callable[[Machine, bool], bool] = lambda _machine, _changed: False
    may_fail: bool = False
    help: str = ""

    def __str__(self) -> str:
        return f"run {shown(self.words)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """A file of ours to be removed; a changed one is kept beside its place.

    Attributes:
        path: where it is.
    """

    path: Path

    def __str__(self) -> str:
        return f"remove {self.path}"


Step = File | Folder | Call | Removal


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The steps, in their order, and what a person should know.

    Attributes:
        steps: what is done.
        notes: what is good to know beforehand or still to be done.
    """

    steps: tuple[Step, ...]
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class Carrier:
    """Carries a plan out.

    Args:
        machine: where.
        tell: told of each change as it is made.

    Attributes:
        changed: whether anything was changed so far.
    """

    machine: Machine
    tell: Callable[[str], None]
    changed: bool = field(default=False)

    def carry_out(self, steps: Sequence[Step]) -> None:
        """Do every step that is needed.

        Raises:
            StepFailed: one did not work; those before it were done.
        """
        for step in steps:
            try:
                self._do(step)
            except OSError as error:
                msg = f"could not {step}: {error.strerror or error}"
                raise StepFailed(msg) from error

    def _do(self, step: Step) -> None:
        match step:
            case File():
                self._write(step)
            case Folder():
                self._make(step)
            case Removal():
                self._remove(step)
            case Call():
                self._call(step)

    def _write(self, step: File) -> None:
        place = self.machine.place(step.path)
        before = _read(place)
        if before == step.text:
            return
        place.parent.mkdir(parents=True, exist_ok=True)
        if before is not None and not is_untouched(before):
            self._keep_aside(step.path, place)
        draft = place.with_name(f".{place.name}.new")
        draft.unlink(missing_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, step.mode)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            os.fchmod(descriptor, step.mode)
            stream.write(step.text)
            stream.flush()
            os.fsync(descriptor)
        draft.replace(place)
        self._changed(f"wrote {step.path}")

    def _keep_aside(self, path: Path, place: Path) -> None:
        place.replace(place.with_name(place.name + ASIDE))
        self.tell(f"kept what was there as {path}{ASIDE}")

    def _make(self, step: Folder) -> None:
        place = self.machine.place(step.path)
        if place.is_dir():
            return
        place.mkdir(parents=True, mode=step.mode)
        place.chmod(step.mode)
        if step.owner is not None and os.geteuid() == 0 and self.machine.is_real:
            user = pwd.getpwnam(step.owner)
            os.chown(place, user.pw_uid, user.pw_gid)
        self._changed(f"made the folder {step.path}")

    def _remove(self, step: Removal) -> None:
        place = self.machine.place(step.path)
        text = _read(place)
        if text is None or not is_ours(text):
            return
        if is_untouched(text):
            place.unlink()
        else:
            self._keep_aside(step.path, place)
        with contextlib.suppress(OSError):  # a folder of drop-ins goes with its last one
            if place.parent.name.endswith(".service.d"):
                place.parent.rmdir()
        self._changed(f"removed {step.path}")

    def _call(self, step: Call) -> None:
        if not self.machine.is_real:
            return
        if step.unneeded(self.machine, self.changed):
            return
        done = self.machine.call(*step.words)
        if done.code == 0:
            self._changed(f"ran {shown(step.words)}")
            return
        said = f"{shown(step.words)} failed: {_last_words(done)}{f'; {step.help}' if step.help else ''}"
        if not step.may_fail:
            raise StepFailed(said)
        self.tell(said)

    def _changed(self, what: str) -> None:
        self.changed = True
        self.tell(what)


def user_exists(name: str) -> bool:
    """Whether this machine has a user of that name."""
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def readable_by(file: Path, name: str) -> bool:
    """Whether a file's mode lets a user read it; one who does not exist yet has what all others have."""
    found = file.stat()
    if found.st_mode & stat.S_IROTH:
        return True
    try:
        user = pwd.getpwnam(name)
    except KeyError:
        return False
    by_group = found.st_gid in os.getgrouplist(name, user.pw_gid) and found.st_mode & stat.S_IRGRP
    return bool(by_group or (found.st_uid == user.pw_uid and found.st_mode & stat.S_IRUSR))


def group_of(name: str) -> str:
    """The name of a user's own group; the user's name when there is no such user yet."""
    try:
        return grp.getgrgid(pwd.getpwnam(name).pw_gid).gr_name
    except KeyError:
        return name


def _read(place: Path) -> str | None:
    try:
        return place.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None


def _last_words(done: Done) -> str:
    lines = [line.strip() for line in (done.err or done.out).splitlines() if line.strip()]
    return " / ".join(lines[-3:]) or f"exit status {done.code}"
