"""A file that is being pulled: what the hub says of it, and the part of it that has come so far."""

from __future__ import annotations

import hashlib
import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from llm.backends.pulled import MANIFEST, PART, beside, write_private

PIECE = 1024 * 1024
"""Bytes that are written and hashed at once."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """What the hub says of a file.

    Attributes:
        tag: names the content; the SHA-256 for a large file.
        size: bytes.
        commit: of the repository.
        url: where the bytes are.
        ours: whether that is the hub itself, which may see the token.
    """

    tag: str
    size: int
    commit: str
    url: str
    ours: bool

    @property
    def sha256(self) -> str | None:
        """The sum that the hub names, None if it names none."""
        return self.tag if _SHA256.fullmatch(self.tag) else None


class PartFile:
    """The bytes of a file that have come so far, hashed as they are written; every method may block.

    Args:
        path: the file that it will become.
        remote: what it is a part of; a part of something else is emptied.
    """

    def __init__(self, path: Path, remote: RemoteFile) -> None:
        self._path = beside(path, PART)
        self._sha256 = hashlib.sha256()
        self._wanted = remote
        self.size = 0
        self.validator = ""
        flags = os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        self._file = os.fdopen(os.open(self._path, flags, 0o600), "r+b")
        if self._belongs():
            while piece := self._file.read(PIECE):
                self._sha256.update(piece)
                self.size += len(piece)
        if self.size > remote.size or not self.size:
            self.restart()

    def _belongs(self) -> bool:
        """Whether what is here is the beginning of the file that is wanted."""
        try:
            said = json.loads(beside(self._path, MANIFEST).read_text(encoding="utf-8"))
            self.validator = said["validator"]
            return bool(self._wanted.tag) and said["tag"] == self._wanted.tag
        except (OSError, ValueError, KeyError, TypeError):
            return False

    @property
    def sha256(self) -> str:
        """Of what has come."""
        return self._sha256.hexdigest()

    @property
    def is_whole(self) -> bool:
        """Whether all has come and is what the hub promised, as far as it promised anything."""
        wanted = self._wanted
        return self.size == wanted.size and (wanted.sha256 or self.sha256) == self.sha256

    def note(self, validator: str) -> None:
        """Keep what tells whether the server still has the same bytes."""
        self.validator = validator
        write_private(beside(self._path, MANIFEST), {"tag": self._wanted.tag, "validator": validator})

    def add(self, piece: bytes) -> None:
        """Write and hash the next bytes."""
        self._file.write(piece)
        self._file.flush()
        self._sha256.update(piece)
        self.size += len(piece)

    def restart(self) -> None:
        """Throw away what has come."""
        self._file.seek(0)
        self._file.truncate()
        self._sha256 = hashlib.sha256()
        self.size, self.validator = 0, ""

    def start_over_for(self, remote: RemoteFile) -> None:
        """The hub means another file by now."""
        self._wanted = remote
        self.restart()

    def starts_with(self, magic: bytes) -> bool:
        """Whether these are the first bytes."""
        self._file.seek(0)
        return self._file.read(len(magic)) == magic

    def become(self, path: Path) -> None:
        """Put the whole file where it belongs, on the disk and not in a buffer."""
        os.fsync(self._file.fileno())
        self._path.replace(path)
        beside(self._path, MANIFEST).unlink(missing_ok=True)
        with suppress(OSError):
            handle = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    def discard(self) -> None:
        """Leave nothing."""
        for each in (beside(self._path, MANIFEST), self._path):
            each.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file; it stays."""
        self._file.close()
