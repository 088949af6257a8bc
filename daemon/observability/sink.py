"""Where log lines go: a bounded queue, emptied by a thread, so that a reader who stalls stops nobody."""

from __future__ import annotations

import contextlib
import io
import os
import select
import threading
from collections import deque
from collections.abc import Callable
from typing import TextIO

from daemon.observability.journal import Journal, text_of

MAX_WAITING_BYTES = 1024 * 1024
"""Lines beyond this are dropped and counted; about 3,000 lines."""


class LineSink:
    """Writes lines to a stream from a thread of its own. `put` never waits and never raises.

    Args:
        stream: where to write; its file descriptor is used directly, when it has one, because a thread
            that is stuck inside Python's own buffers would abort the interpreter's exit.
        notice: makes the line that tells how many lines were lost, once there is room again.
        journal: takes the lines, which are then its entries; the stream gets what it refuses, as text.
        max_waiting: bytes that may wait.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        notice: Callable[[int], str],
        journal: Journal | None = None,
        max_waiting: int = MAX_WAITING_BYTES,
    ) -> None:
        self._stream = stream
        self._journal = journal
        self._fd = _own_descriptor(stream)
        self._notice = notice
        self._room = max_waiting
        self._lines: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._dropped = self._untold = 0
        self._thread = threading.Thread(target=self._work, name="log-writer", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """How many lines were lost so far."""
        return self._dropped

    @property
    def waiting(self) -> int:
        """How many lines wait to be written."""
        return len(self._lines)

    def put(self, line: str) -> None:
        """Take one line, newline included, or drop and count it when too much waits already."""
        data = line.encode("utf-8", errors="backslashreplace")
        with self._changed:
            if self._closing or len(data) > self._room:
                self.lose()
                return
            self._room -= len(data)
            self._lines.append(data)
            self._changed.notify()

    def lose(self, count: int = 1) -> None:
        """Count lines that could not be made or written."""
        with self._changed:
            self._dropped += count
            self._untold += count

    def close(self, limit: float) -> bool:
        """Write what waits, for at most `limit` seconds; tells whether everything was written."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(limit)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (data := self._next()) is not None:
            if not self._write(data):
                self.lose()
            elif not self._lines and self._untold:
                self._tell_lost()
        if self._fd is not None:
            os.close(self._fd)
        if self._journal is not None:
            self._journal.close()

    def _next(self) -> bytes | None:
        """The next line, waiting for it; None at the end."""
        with self._changed:
            while not (self._lines or self._closing):
                self._changed.wait()
            if not self._lines:
                return None
            data = self._lines.popleft()
            self._room += len(data)
            return data

    def _tell_lost(self) -> None:
        with self._changed:
            count, self._untold = self._untold, 0
        if not self._write(self._notice(count).encode()):
            with self._changed:
                self._untold += count  # said later, behind the next line that gets through

    def _write(self, data: bytes) -> bool:
        if self._journal is not None:
            if self._journal.send(data):
                return True
            data = text_of(data)
        try:
            if self._fd is None:
                self._stream.write(data.decode())
                self._stream.flush()
            else:
                _write_all(self._fd, data)
        except (OSError, ValueError):  # the reader is gone, or the stream was closed
            return False
        return True


def _own_descriptor(stream: TextIO) -> int | None:
    """A copy: were the stream closed, its number could come to mean another file, such as the database."""
    with contextlib.suppress(OSError, io.UnsupportedOperation, AttributeError, ValueError):
        return os.dup(stream.fileno())
    return None


def _write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:  # somebody made the shared terminal or pipe non-blocking
            select.select([], [fd], [], 1.0)
