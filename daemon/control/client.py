"""Connection: asks a running daemon, one request after the other."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from daemon.control import wire
from daemon.control.peers import uid_of
from daemon.errors import ControlError, DaemonGone, DaemonSilent, NotAllowed, OtherVersion
from daemon.plain import loads
from daemon.version import own_version


class Connection:
    """One connection to a daemon, made by `open`.

    Attributes:
        greeting: what the daemon said about itself: version, pid, since, data_dir.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.greeting: Mapping[str, Any] = {}
        self._reader = reader
        self._writer = writer
        self._turn = asyncio.Lock()

    @classmethod
    async def open(cls, path: Path, data_dir: Path) -> Connection:
        """Connect and say hello; the caller limits the time.

        Args:
            path: the socket.
            data_dir: the data folder whose daemon is meant.

        Raises:
            OSError: nobody listens there.
            OtherVersion: the daemon is of another version.
            NotAllowed: it does not take our commands, or somebody else pretends to be it.
            ControlError: it takes no more commands now.
        """
        reader, writer = await asyncio.open_unix_connection(str(path), limit=wire.MAX_ANSWER)
        connection = cls(reader, writer)
        try:
            await asyncio.to_thread(_check_server, writer.get_extra_info("socket"), path, data_dir)
            await connection._greet()
        except BaseException:
            await connection.aclose()
            raise
        return connection

    async def _greet(self) -> None:
        version = await asyncio.to_thread(own_version)
        hello = {"version": version, "protocol": wire.PROTOCOL}
        async for answer in self._answers(wire.Request("hello", hello)):
            self.greeting = answer["ok"]
        if (self.greeting.get("version"), self.greeting.get("protocol")) != (version, wire.PROTOCOL):
            msg = f"the daemon (pid {self.greeting.get('pid')}) is of another version; restart it"
            raise OtherVersion(msg)

    async def ask(self, do: str, **given: Any) -> Any:
        """Have `do` done; returns what came of it.

        Raises:
            DaemonGone: the daemon ended meanwhile; whether it did it is not known.
            DaemonSilent: it has said nothing for too long.
            Exception: what it raised, of the same class.
        """
        value = None
        async with self._turn:
            async for answer in self._answers(wire.Request(do, given)):
                value = answer.get("ok", value)
        return value

    async def parts(self, do: str, **given: Any) -> AsyncIterator[Any]:
        """As `ask`, for what is answered in parts: each of them as soon as it is there."""
        async with self._turn:
            async for answer in self._answers(wire.Request(do, given)):
                if "part" in answer:
                    yield answer["part"]

    async def aclose(self) -> None:
        """End the connection."""
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()

    async def _answers(self, request: wire.Request) -> AsyncIterator[Mapping[str, Any]]:
        """Every line that answers `request`, to the last one."""
        try:
            self._writer.write(request.line())
            await self._writer.drain()
        except OSError:
            pass  # the daemon may have said why before it hung up
        while True:
            answer = await self._next_answer()
            if "error" in answer:
                raise wire.read_error(answer["error"])
            yield answer
            if "ok" in answer:
                return

    async def _next_answer(self) -> Mapping[str, Any]:
        try:
            async with asyncio.timeout(wire.SILENT_S):
                line = await self._reader.readline()
        except TimeoutError as error:
            msg = f"the daemon ({self._who()}) has said nothing for {wire.SILENT_S:g} s; it seems to be stuck"
            raise DaemonSilent(msg) from error
        except OSError:
            line = b""
        if not line.endswith(b"\n"):
            raise self._gone()
        return _read(line)

    def _gone(self) -> DaemonGone:
        msg = (
            f"the daemon ({self._who()}) ended before it had answered; whether it did what was asked "
            "is not known: `askfirst proposals list --all` shows what became of it"
        )
        return DaemonGone(msg)

    def _who(self) -> str:
        return f"pid {self.greeting['pid']}" if "pid" in self.greeting else "not introduced"


def _read(line: bytes) -> Mapping[str, Any]:
    try:
        answer = loads(line)
    except ValueError as error:
        raise _not_ours(line) from error
    if not isinstance(answer, Mapping) or not answer.keys() & {"ok", "error", "part", "busy"}:
        raise _not_ours(line)
    return answer


def _not_ours(line: bytes) -> ControlError:
    """A kind of value that we do not know is a sign of another version."""
    try:
        json.loads(line)
    except ValueError:
        return ControlError("what answers on the daemon's socket is no daemon of this program")
    return OtherVersion("the daemon answered something that this version does not know; restart the daemon")


def _check_server(endpoint: Any, path: Path, data_dir: Path) -> None:
    """Nobody but the owner of the data (or root) may pose as its daemon."""
    uid = uid_of(endpoint)
    if uid not in {0, os.geteuid(), data_dir.stat().st_uid}:
        msg = f"what listens on {path} is not the daemon of {data_dir}: it belongs to another user"
        raise NotAllowed(msg)


async def connected(path: Path, data_dir: Path) -> Connection | None:
    """A connection to the daemon of `data_dir` that listens on `path`, None when nobody does.

    Raises:
        OtherVersion, NotAllowed, ControlError: see `Connection.open`.
    """
    try:
        connection = await Connection.open(path, data_dir)
    except (OSError, DaemonGone, DaemonSilent):
        return None
    if connection.greeting.get("data_dir") != data_dir:
        await connection.aclose()
        return None
    return connection
