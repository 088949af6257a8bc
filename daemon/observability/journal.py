"""Lines for journald as native entries: a message for people, and each value as a field to search by.

The protocol is https://systemd.io/JOURNAL_NATIVE_PROTOCOL/: one datagram an entry, fields as lines, values of
several lines with their length. What is too large for a datagram goes in a sealed file in memory.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from daemon.observability.redact import escaped

SOCKET = Path("/run/systemd/journal/socket")
"""Where journald takes entries."""

IDENTIFIER = "askfirst"
"""What `journalctl -t` knows us by, as it does for lines on standard error."""

FIELDS: Mapping[str, str] = MappingProxyType(
    {
        "agent": "AGENT",
        "call_id": "CALL_ID",
        "logger": "LOGGER",
        "proposal": "PROPOSAL_ID",
        "run_id": "RUN_ID",
    }
)
"""The values that have a field of their own name; that of any other begins with `PREFIX`."""

PREFIX = "ASKFIRST_"

PRIORITIES: Mapping[str, int] = MappingProxyType(
    {"critical": 2, "error": 3, "warning": 4, "info": 6, "debug": 7}
)
"""syslog's numbers, by the names of our levels."""

_NAME_BYTES = 64  # a longer name of a field is not taken
_SEND_BUFFER = 8 * 1024 * 1024
_TOO_LARGE = frozenset({errno.EMSGSIZE, errno.ENOBUFS})
_OTHERS = re.compile(r"[^A-Z0-9_]")


def entry_of(event: Mapping[str, Any], message: str) -> str:
    """One entry as a JSON object of texts, for the thread that writes it.

    Args:
        event: the values of a line, without secrets.
        message: what a person reads.
    """
    fields = {
        "MESSAGE": message,
        "PRIORITY": str(PRIORITIES.get(str(event.get("level")), PRIORITIES["info"])),
        "SYSLOG_IDENTIFIER": IDENTIFIER,
    }
    for name, value in event.items():
        if value is not None and value != "" and name != "level":
            fields[_field_name(name)] = _field_text(value)
    return json.dumps(fields, ensure_ascii=False)


def _field_name(name: str) -> str:
    known = FIELDS.get(name)
    return known or f"{PREFIX}{_OTHERS.sub('_', name.upper())}"[:_NAME_BYTES]


def _field_text(value: Any) -> str:
    """A value as text; line ends stay, and nothing else that drives a terminal."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "\n".join(map(escaped, text.split("\n")))


def datagram_of(fields: Mapping[str, str]) -> bytes:
    """An entry as the protocol has it."""
    parts: list[bytes] = []
    for name, value in fields.items():
        key, data = name.encode("ascii"), value.encode("utf-8", errors="backslashreplace")
        if b"\n" in data:
            parts += (key, b"\n", struct.pack("<Q", len(data)), data, b"\n")
        else:
            parts += (key, b"=", data, b"\n")
    return b"".join(parts)


def text_of(line: bytes) -> bytes:
    """An entry as lines for standard error, each with its priority, as journald reads them there."""
    fields = json.loads(line)
    priority = fields["PRIORITY"]
    return "".join(f"<{priority}>{each}\n" for each in fields["MESSAGE"].split("\n")).encode(
        "utf-8", errors="backslashreplace"
    )


class Journal:
    """The way to journald. Nothing is connected: after a restart of it the next entry goes to the new one.

    Args:
        path: its socket.
    """

    def __init__(self, path: Path = SOCKET) -> None:
        self._path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)

    def send(self, line: bytes) -> bool:
        """Send an entry of `entry_of`, waiting while journald is behind; whether it was taken."""
        data = datagram_of(json.loads(line))
        try:
            self._socket.sendto(data, self._path)
        except OSError as error:
            return error.errno in _TOO_LARGE and self._send_file(data)
        return True

    def _send_file(self, data: bytes) -> bool:
        """The same in a file that nobody can change any more."""
        try:
            file = os.memfd_create("askfirst-log", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except (AttributeError, OSError):
            return False
        try:
            with memoryview(data) as rest:
                written = 0
                while written < len(rest):
                    written += os.write(file, rest[written:])
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
            fcntl.fcntl(file, fcntl.F_ADD_SEALS, seals)
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", file))
            self._socket.sendmsg([], [rights], 0, self._path)
        except OSError:
            return False
        finally:
            os.close(file)
        return True

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()
