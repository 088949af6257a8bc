"""A real HTTP server on loopback for tests; subclasses decide what it answers, byte by byte if need be."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class SeenRequest:
    """One request as it arrived; header names are lower-case."""

    method: str
    path: str
    headers: dict[str, str]
    raw_body: bytes

    @property
    def body(self) -> Any:
        """The JSON body, None without one."""
        return json.loads(self.raw_body) if self.raw_body else None


class LoopbackServer:
    """Accepts connections on 127.0.0.1 at a free port until its `async with` block ends.

    At the end every connection is cut and every handler awaited.

    Args:
        keep_alive: answer further requests on the same connection; `connections` counts them.
    """

    def __init__(self, *, keep_alive: bool = False) -> None:
        self.connections = 0
        self._keep_alive = keep_alive
        self.seen: list[SeenRequest] = []
        self.failures: list[BaseException] = []
        self._handlers: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        assert self._server is not None, "use it as `async with`"
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    @property
    def url(self) -> str:
        """The base URL for a client."""
        return self.origin

    async def answer(self, request: SeenRequest, writer: asyncio.StreamWriter) -> None:
        """Write the whole answer, headers and all."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in tuple(self._handlers):
            task.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)
        await self._server.wait_closed()
        if self.failures:
            raise self.failures[0]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        self.connections += 1
        try:
            while True:
                request = await _read_request(reader)
                self.seen.append(request)
                await self.answer(request, writer)
                if not self._keep_alive:
                    break
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client hung up, or the test is over: both are part of the game
        except Exception as error:  # noqa: BLE001 - shown to the test when the server closes
            self.failures.append(error)
        finally:
            self._handlers.discard(task)
            await _close(writer)


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    try:
        # What a client that has gone never reads is not waited for.
        await asyncio.wait_for(writer.wait_closed(), 0.2)
    except (OSError, TimeoutError, asyncio.CancelledError):
        writer.transport.abort()


async def _read_request(reader: asyncio.StreamReader) -> SeenRequest:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    start, *lines = head.rstrip("\r\n").split("\r\n")
    method, path, _ = start.split(" ", 2)
    pairs = [line.split(":", 1) for line in lines]
    headers = {name.lower(): value.strip() for name, value in pairs}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return SeenRequest(method, path, headers, body)


def http_message(
    status: int, body: bytes = b"", headers: dict[str, str] | None = None, *, length: int | None = None
) -> bytes:
    """A whole HTTP/1.1 answer; `length` overrides the honest Content-Length."""
    fields = {
        "Content-Type": "application/json",
        "Content-Length": str(len(body) if length is None else length),
        "Connection": "close",
        **(headers or {}),
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status} X\r\n{head}\r\n".encode("latin-1") + body
