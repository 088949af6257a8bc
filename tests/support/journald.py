"""A receiver of native journal entries, as journald is one, and lines that are for it."""

from __future__ import annotations

import array
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import pytest


def fields_of(data: bytes) -> dict[str, str]:
    """What a datagram says, read as the protocol says it must be."""
    found: dict[str, str] = {}
    while data:
        line, _, rest = data.partition(b"\n")
        if b"=" in line:
            name, _, value = line.partition(b"=")
        else:
            (length,) = struct.unpack("<Q", rest[:8])
            name, value, rest = line, rest[8 : 8 + length], rest[8 + length :]
            assert rest[:1] == b"\n"
            rest = rest[1:]
        found[name.decode("ascii")] = value.decode("utf-8")
        data = rest
    return found


class Journald:
    """Takes entries at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(30)

    def entry(self) -> dict[str, str]:
        """The next entry, waiting for it."""
        data, ancillary, _, _ = self._socket.recvmsg(1 << 20, socket.CMSG_SPACE(4))
        for _, kind, content in ancillary:
            assert kind == socket.SCM_RIGHTS
            self.files += 1
            (file,) = array.array("i", content)
            os.lseek(file, 0, os.SEEK_SET)
            with os.fdopen(file, "rb") as stream:
                data = stream.read()
        return fields_of(data)

    def entries(self, count: int) -> list[dict[str, str]]:
        """So many of them."""
        return [self.entry() for _ in range(count)]

    def close(self) -> None:
        """Be gone, as while journald restarts."""
        self._socket.close()
        self.path.unlink(missing_ok=True)


@contextmanager
def journald_at(path: Path) -> Iterator[Journald]:
    """One that takes entries meanwhile."""
    receiver = Journald(path)
    try:
        yield receiver
    finally:
        receiver.close()


@contextmanager
def leading_to_the_journal(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TextIO]:
    """A stream of which systemd said in the environment that it leads to the journal; it writes a file."""
    with path.open("w") as stream:
        state = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{state.st_dev}:{state.st_ino}")
        yield stream
