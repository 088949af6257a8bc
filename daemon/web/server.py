"""The HTTP server: uvicorn on a socket of ours, without its signal handlers and without its idle tick."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Iterator

from starlette.types import ASGIApp

from daemon.errors import AddressInUse, DaemonError
from daemon.lean import without

with without("watchfiles"):  # with it uvicorn could start itself again when a source file changes
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 64
"""More at the same time are answered with 503."""

REQUEST_LIMIT_S = 5
"""A connection that has sent no whole request after this many seconds is closed."""

CLOSE_LIMIT_S = 1
"""Requests under way get this many seconds when the server stops."""


class WebServer:
    """Serves one ASGI application on one address.

    `bind` takes the address, early, so that a taken port is known before anything else happens; `start`
    serves. Port 0 means any free one; `address` tells which.
    """

    def __init__(self, host: str, port: int) -> None:
        self._wanted = (host, port)
        self._socket: socket.socket | None = None
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that are bound, or those wished for before `bind`."""
        if self._socket is None:
            return self._wanted
        host, port = self._socket.getsockname()[:2]
        return str(host), int(port)

    @property
    def url(self) -> str:
        """The address as people and curl want it."""
        host, port = self.address
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def bind(self) -> None:
        """Take the address.

        Raises:
            AddressInUse: another program has it.
            DaemonError: it cannot be had for another reason.
        """
        host, port = self._wanted
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._socket = socket.create_server((host, port), family=family, backlog=MAX_CONNECTIONS)
        except OSError as error:
            raise _bind_error(error, host, port) from error

    async def start(self, app: ASGIApp) -> None:
        """Serve `app` on the bound address until `aclose`."""
        if self._socket is None:
            self.bind()
        config = uvicorn.Config(
            app,
            http=_Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,  # it would need a tick a second
            proxy_headers=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_keep_alive=REQUEST_LIMIT_S,
            timeout_graceful_shutdown=CLOSE_LIMIT_S,
        )
        self._server = _Server(config)
        sockets = [self._socket] if self._socket else None
        self._task = asyncio.create_task(self._server.serve(sockets), name="web server")
        started = asyncio.create_task(self._server.ready.wait())
        await asyncio.wait({self._task, started}, return_when=asyncio.FIRST_COMPLETED)
        if not started.done():
            started.cancel()
            await self._task  # raises what went wrong

    async def ended(self) -> None:
        """Return when the server has ended, wanted or not.

        Raises:
            Exception: what it broke on.
        """
        if self._task is not None:
            await asyncio.shield(self._task)

    async def aclose(self) -> None:
        """Stop listening and end the connections."""
        if self._server is not None and self._task is not None:
            self._server.stop.set()
            await asyncio.gather(self._task, return_exceptions=True)
        self.release()

    def release(self) -> None:
        """Give back the address of a server that was never started."""
        if self._socket is not None:
            self._socket.close()


class _Server(uvicorn.Server):
    """Uvicorn that sleeps when nobody asks anything: its own loop wakes ten times a second."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()
        self.stop = asyncio.Event()

    async def main_loop(self) -> None:
        await self.on_tick(0)
        self.ready.set()
        await self.stop.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # signals are the lifecycle's


class _Protocol(H11Protocol):
    """Closes a connection that opens and then says nothing, or says it byte by byte."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        self._expect_request()

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._forget_deadline()
        elif before is None or before.response_complete:  # type: ignore[redundant-expr]  # it begins as None
            self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_deadline()
        super().connection_lost(exc)

    def _expect_request(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(REQUEST_LIMIT_S, self.transport.close)

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def _bind_error(error: OSError, host: str, port: int) -> DaemonError:
    way_out = "set another one: web.port in the configuration, or ASKFIRST_WEB__PORT"
    if error.errno == errno.EADDRINUSE:
        return AddressInUse(f"port {port} on {host} is taken by another program; {way_out}")
    if error.errno == errno.EACCES:
        return DaemonError(f"port {port} on {host} needs rights that this user lacks; {way_out}")
    text = f"cannot listen on {host} port {port}: {error.strerror or error}"
    return DaemonError(f"{text}; see web.host and web.port (ASKFIRST_WEB__HOST, ASKFIRST_WEB__PORT)")
