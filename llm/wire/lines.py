"""A stream's bytes to its JSON values: NDJSON as Ollama sends it, server-sent events as all others do.

Pure and incremental: the network may cut anywhere, in the middle of a letter too. What is held back is at
most one line or event, and the bytes of the whole stream are counted before they come here.

Source of the format: the section "Server-sent events" of the HTML standard.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

from llm.errors import BadReply
from llm.wire.common import decode

DONE: Final = object()
"""Stands for the line `[DONE]`, with which OpenAI's streams end."""

_EVENTS = "text/event-stream"
_LINES = ("ndjson", "jsonl", "jsonlines", "json-seq")


class Framing(Protocol):
    """Cuts bytes into JSON values."""

    def feed(self, data: bytes) -> list[Any]:
        """The values that are whole with these bytes.

        Raises:
            BadReply: one of them is no JSON.
        """

    def finish(self) -> list[Any]:
        """What was left to be read when the last bytes had come."""


def framing(content_type: str) -> Framing:
    """How a reply of this Content-Type is cut; one that is no stream is taken as one value."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == _EVENTS:
        return EventStream()
    return JsonLines() if any(word in kind for word in _LINES) else WholeBody()


class WholeBody:
    """One JSON value: a server that answers in one piece although it was asked for a stream."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def feed(self, data: bytes) -> list[Any]:
        """Nothing yet."""
        self._pieces.append(data)
        return []

    def finish(self) -> list[Any]:
        """The value."""
        return [decode(b"".join(self._pieces))]


class _Lines:
    """Bytes to whole lines, without their ends."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []  # of the line that is not whole: joined once, however many they are

    @property
    def pending(self) -> bool:
        return bool(self._pieces)

    def feed(self, data: bytes) -> list[bytes]:
        if b"\n" not in data:
            self._pieces.append(data)
            return []
        lines = data.split(b"\n")
        rest = lines.pop()
        if self._pieces:
            self._pieces.append(lines[0])
            lines[0] = b"".join(self._pieces)
        self._pieces = [rest] if rest else []
        return lines

    def finish(self) -> bytes:
        return b"".join(self._pieces)


class JsonLines:
    """One JSON value a line; empty lines mean nothing."""

    def __init__(self) -> None:
        self._lines = _Lines()
        self._fault: BadReply | None = None

    def feed(self, data: bytes) -> list[Any]:
        """The values of the lines that are whole with these bytes."""
        if self._fault is not None:
            raise self._fault
        values: list[Any] = []
        for line in self._lines.feed(data):
            if not line or line.isspace():
                continue
            try:
                values.append(decode(line))
            except BadReply as error:
                if not values:
                    raise
                self._fault = error  # what came before it is given first
                break
        return values

    def finish(self) -> list[Any]:
        """The value of a last line without an end."""
        if self._fault is not None:
            raise self._fault
        line = self._lines.finish()
        return [decode(line)] if line.strip() else []


class EventStream:
    """Server-sent events: comments, ids and retry times are read over, as are events without data.

    An event named "error" becomes `{"error": ...}` where its data does not say so itself, and the name of
    any other is the `type` of a value that has none.
    """

    def __init__(self) -> None:
        self._lines = _Lines()
        self._data: list[bytes] = []
        self._name = b""
        self._after_return = False
        self._fault: BadReply | None = None

    def feed(self, data: bytes) -> list[Any]:
        """The values of the events that are whole with these bytes."""
        if self._is_fresh and _is_one_event(data):  # nearly always
            return [decode(data[6:-2])]
        if self._fault is not None:
            raise self._fault
        if b"\r" in data or self._after_return:
            data = self._with_plain_ends(data)
        values: list[Any] = []
        lines = self._lines.feed(data)
        lines.reverse()
        while lines:
            line = lines.pop()  # a long one is not held any more when its event is read
            if line:
                self._field(line)
            elif not self._data:
                self._name = b""
            elif not self._add_event(values):
                break
        return values

    def _add_event(self, values: list[Any]) -> bool:
        """Whether the event could be read; what came before one that cannot is given first."""
        try:
            values.append(self._event())
        except BadReply as error:
            if not values:
                raise
            self._fault = error
            return False
        return True

    @property
    def _is_fresh(self) -> bool:
        return not (
            self._data or self._name or self._after_return or self._lines.pending or self._fault is not None
        )

    def finish(self) -> list[Any]:
        """The value of a last event that lacks the empty line at its end."""
        if self._fault is not None:
            raise self._fault
        line = self._lines.finish()
        if line:
            self._field(line)
        return [self._event()] if self._data else []

    def _with_plain_ends(self, data: bytes) -> bytes:
        """Lines may end with CR LF, LF or CR; a CR at the very end may have its LF still to come."""
        if self._after_return and data.startswith(b"\n"):
            data = data[1:]
        self._after_return = data.endswith(b"\r") if data else self._after_return
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._name = value.strip()
        elif name == b"error":  # llama.cpp's servers of 2024 sent `error: {...}`
            self._data.append(value)
            self._name = b"error"

    def _event(self) -> Any:
        raw = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
        name = self._name
        self._data, self._name = [], b""
        if raw.strip() == b"[DONE]":
            return DONE
        if not name:
            return decode(raw)
        return _named(name, raw)


def _is_one_event(data: bytes) -> bool:
    """Whether it is one line of data with an object in it, and the empty line that ends the event."""
    return (
        data.startswith(b"data: {")
        and data.endswith(b"\n\n")
        and data.find(b"\n") == len(data) - 2
        and b"\r" not in data
    )


def _named(name: bytes, raw: bytes) -> Any:
    if name != b"error":
        value = decode(raw)
        if isinstance(value, dict) and "type" not in value:
            value["type"] = name.decode("utf-8", errors="replace")
        return value
    try:
        value = decode(raw)
    except BadReply:
        value = raw.decode("utf-8", errors="replace").strip()
    return value if isinstance(value, dict) and value.get("error") else {"error": value or "unnamed"}
