"""The worker's end of the JSON lines: requests in, answers out, refusals by a code of `llm.errors`."""

from __future__ import annotations

import json
import os
import queue
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, TextIO

_LEAVE_SECONDS = 1.0
"""A step of a large model cannot be interrupted, and there is nothing to save: leave soon."""

Message = dict[str, Any]


class Refused(Exception):
    """A request or a model that cannot be served; `code` is that of an error class of `llm.errors`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class StdinEnded(Exception):
    """The parent closed our stdin or died."""


def take_stdout() -> TextIO:
    """Keep stdout for the protocol and send what the engine prints there to stderr."""
    wire = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="replace")
    os.dup2(2, 1)
    return wire


def say(wire: TextIO, messages: Iterable[Message]) -> None:
    """Write messages to the parent, all of them at once: one wake-up there."""
    lines = "".join(json.dumps(message, ensure_ascii=False) + "\n" for message in messages)
    if lines:
        wire.write(lines)
        wire.flush()


class Inbox:
    """What the parent says: a queue of requests, of which some are no longer wanted.

    A thread of its own reads and does nothing else, so that a cancellation is known in the middle of a step.
    """

    def __init__(self, lines: Iterator[str]) -> None:
        self._requests: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._lines = lines
        self._wanted: set[int] = set()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._lines:
            message = json.loads(line)
            if "cancel" in message:
                self._wanted.discard(message["cancel"])
            else:
                self._wanted.add(message["id"])
                self._requests.put(message)
        self._wanted.clear()
        self._requests.put(None)
        time.sleep(_LEAVE_SECONDS)
        os._exit(0)

    def take(self, *, wait: bool) -> list[Message]:
        """The requests that came since the last time, in order; with `wait` at least one.

        Raises:
            StdinEnded: there will be no more.
        """
        taken = [self._requests.get()] if wait else []
        with suppress(queue.Empty):
            while None not in taken:
                taken.append(self._requests.get_nowait())
        if None in taken:
            raise StdinEnded
        return [request for request in taken if request is not None and self.wanted(request["id"])]

    def wanted(self, number: int) -> bool:
        """Whether somebody still waits for request `number`."""
        return number in self._wanted

    def forget(self, number: int) -> None:
        """Request `number` is done with."""
        self._wanted.discard(number)


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, without the help pages that huggingface_hub adds."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def failure(error: Exception) -> Message:
    """What the parent is told of an exception."""
    if isinstance(error, Refused):
        return {"code": error.code, "message": str(error)}
    return {"code": "server", "message": f"mlx-lm failed: {first_line(error)}"}
