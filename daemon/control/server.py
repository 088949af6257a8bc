"""ControlServer: takes the commands of this machine's users through a Unix socket, in the daemon's loop.

Whatever comes in gets one line as its answer; who stalls loses the connection; who goes away does not undo
what was begun, since a decision is carried to its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path
from typing import Any

from daemon.control import wire
from daemon.control.lock import Holder
from daemon.control.operations import Operations, stopping
from daemon.control.peers import Peer, admitted, uid_of
from daemon.control.places import make_socket, remove_socket
from daemon.errors import ControlError, DaemonError, NotAllowed, NotUnderstood, OtherVersion
from daemon.plain import dumps
from daemon.version import own_version

_log = logging.getLogger(__name__)

MAX_CONNECTIONS = 32
"""More at the same time are told to try again."""

HELLO_LIMIT_S = 5.0
"""Who has not said hello by then is no command of ours."""

IDLE_LIMIT_S = 60.0
"""A connection that asks nothing for so long is closed."""

WRITE_LIMIT_S = 30.0
"""Who does not read the answer by then does not get it."""

_BACKLOG = 128
_LINGER_S = 1.0
_CANCEL_LIMIT_S = 1.0
_HELLO = "hello"


class ControlServer:
    """Serves on a socket in the data folder; its path is `path` once it is started.

    Args:
        operations: what can be asked.
        data_dir: the data folder, whose daemon lock the caller holds.
        own: what others see of this daemon.
        group: the users whose commands are taken besides our own and root's.
        version: the program's version, looked up if None.
    """

    def __init__(
        self,
        operations: Operations,
        data_dir: Path,
        own: Holder,
        *,
        group: str | None = None,
        version: str | None = None,
    ) -> None:
        self.path: Path | None = None
        self._operations = operations
        self._data_dir = data_dir
        self._own = own
        self._group = group
        self._version = version
        self._server: asyncio.Server | None = None
        self._conversations: dict[asyncio.Task[None], _Line] = {}
        self._held = False

    async def start(self) -> None:
        """Make the socket and serve.

        Raises:
            DaemonError: the socket cannot be made.
        """
        if self._version is None:
            self._version = await asyncio.to_thread(own_version)
        made, self.path = await asyncio.to_thread(make_socket, self._data_dir, self._group)
        self._server = await asyncio.start_server(
            self._met, sock=made, limit=wire.MAX_REQUEST, backlog=_BACKLOG
        )

    def hold(self) -> None:
        """Begin nothing new from now on; what is under way goes on."""
        self._held = True

    async def aclose(self, grace: float = 0.0) -> None:
        """Stop listening, let what is under way be answered, and remove the socket.

        Args:
            grace: most seconds to wait for it.
        """
        self.hold()
        if self._server is not None:
            self._server.close()
        for line in self._conversations.values():
            if not line.busy:
                line.break_off()
        conversations = set(self._conversations)
        if conversations:
            _, conversations = await asyncio.wait(conversations, timeout=grace)
        for task in conversations:
            task.cancel()
        if conversations:
            await asyncio.wait(conversations, timeout=_CANCEL_LIMIT_S)
        if self.path is not None:
            self.path = None
            await asyncio.to_thread(remove_socket, self._data_dir)

    async def _met(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, from its beginning to its end. Nothing that it does is raised."""
        task = asyncio.current_task()
        if task is None:  # asyncio calls this in a task of its own
            return
        line = _Line(reader, writer)
        crowded = len(self._conversations) >= MAX_CONNECTIONS
        self._conversations[task] = line
        try:
            if crowded:
                msg = f"{MAX_CONNECTIONS} commands are connected at the same time; try again in a moment"
                raise ControlError(msg)
            await self._converse(line)
        except DaemonError as error:
            await line.say(wire.error_line(error))
            await line.linger()
        except (OSError, TimeoutError, asyncio.CancelledError):
            pass  # it went away, it stalled, or we stop
        finally:
            del self._conversations[task]
            line.break_off()

    async def _converse(self, line: _Line) -> None:
        peer = await self._admit(line)
        request = await line.next_request(HELLO_LIMIT_S)
        if request is None:
            return
        self._check_hello(request)
        await line.say(dumps({"ok": self._greeting()}))
        while (request := await line.next_request(IDLE_LIMIT_S)) is not None:
            await self._answer(line, request, peer)

    async def _admit(self, line: _Line) -> Peer:
        try:
            uid = uid_of(line.endpoint)
        except OSError as error:
            msg = "this system does not tell who is at the other end, so that no command is taken"
            raise NotAllowed(msg) from error
        try:
            return await asyncio.to_thread(admitted, uid, self._group)
        except NotAllowed as refusal:
            _log.warning("a command was refused: %s", refusal)
            raise

    def _check_hello(self, request: wire.Request) -> None:
        version, protocol = request.given.get("version"), request.given.get("protocol")
        if request.do != _HELLO or not isinstance(version, str) or not isinstance(protocol, int):
            msg = "say hello first"
            raise NotUnderstood(msg)
        if (version, protocol) != (self._version, wire.PROTOCOL):
            msg = (
                f"the daemon ({self._own}) is version {self._version}, this command is version "
                f"{version[:50]}; restart the daemon"
            )
            raise OtherVersion(msg)

    def _greeting(self) -> dict[str, Any]:
        return {
            "version": self._version,
            "protocol": wire.PROTOCOL,
            "pid": self._own.pid,
            "since": self._own.since,
            "data_dir": self._data_dir,
        }

    async def _answer(self, line: _Line, request: wire.Request, peer: Peer) -> None:
        if self._held:
            raise stopping()
        line.busy = True
        work = asyncio.create_task(
            self._operations.carry_out(request.do, request.given, peer, line.tell), name=f"do {request.do}"
        )
        try:
            while not (await asyncio.wait({work}, timeout=wire.BUSY_EVERY_S))[0]:
                await line.say(dumps({"busy": True}))
            await line.say(await _answered(work, request.do))
        finally:
            work.cancel()  # only when we stop: a decision goes on in a task of its own
            line.busy = False


class _Line:
    """One connection. Saying something to somebody who went away does nothing.

    Attributes:
        busy: whether something that was asked is under way.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.busy = False
        self._reader = reader
        self._writer = writer

    @property
    def endpoint(self) -> Any:
        """The socket."""
        return self._writer.get_extra_info("socket")

    async def next_request(self, limit: float) -> wire.Request | None:
        """The next request, None at the end.

        Raises:
            NotUnderstood: what came is none.
            TimeoutError: nothing whole came in time.
        """
        try:
            async with asyncio.timeout(limit):
                line = await self._reader.readline()
        except ValueError as error:
            msg = f"a request has at most {wire.MAX_REQUEST:,} bytes"
            raise NotUnderstood(msg) from error
        if not line:
            return None
        return wire.read_request(line)

    async def say(self, line: bytes) -> None:
        """Send a line, to the end or not at all."""
        if self._writer.is_closing():
            return
        try:
            self._writer.write(line)
            async with asyncio.timeout(WRITE_LIMIT_S):
                await self._writer.drain()
        except (OSError, TimeoutError):
            self._writer.transport.abort()

    async def tell(self, value: Any) -> None:
        """Send a part of an answer."""
        await self.say(dumps({"part": value}))

    async def linger(self) -> None:
        """Let the last line be read: a socket that is closed with something unread in it takes it back."""
        with contextlib.suppress(OSError, TimeoutError, RuntimeError):
            self._writer.write_eof()
            async with asyncio.timeout(_LINGER_S):
                while await self._reader.read(wire.MAX_REQUEST):
                    pass

    def break_off(self) -> None:
        """End the connection."""
        self._writer.close()


async def _answered(work: asyncio.Task[Any], do: str) -> bytes:
    """The line that says what came of it."""
    try:
        value = work.result()
        # In a thread: a list of thousands of proposals takes a while.
        return await asyncio.to_thread(dumps, {"ok": value})
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        return wire.error_line(stopping())
    except Exception as error:  # noqa: BLE001 - whatever went wrong is the answer
        if not isinstance(error, tuple(wire.ERRORS.values())):
            _log.error("%s failed unexpectedly", do, exc_info=error)
            error = DaemonError(f"{do} failed unexpectedly, see the daemon's log: {type(error).__name__}")
        return wire.error_line(error)
