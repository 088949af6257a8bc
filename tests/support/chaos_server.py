"""A model server that misbehaves in every way that networks and servers are known for, one way per path.

    async with ChaosServer() as server:
        client = OllamaBackend(LLMConfig(api_base=f"{server.url}/slow_loris"))

The first part of the path chooses the behaviour. Behaviours that never end are ended with the server.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import struct
import zlib
from collections.abc import Awaitable, Callable

from tests.support.loopback import LoopbackServer, SeenRequest, http_message

CANARY = "sk-canary-0123456789abcdefghij"
"""A key that tests send, and that servers here echo wherever they can."""

DRIP_SECONDS = 0.05
BOMB_BYTES = 64 * 1024 * 1024

GOOD = {
    "model": "m",
    "message": {"role": "assistant", "content": "hi"},
    "done": True,
    "done_reason": "stop",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hi"}}],
    "content": [{"type": "text", "text": "hi"}],
    "stop_reason": "end_turn",
}
"""One body that is a whole answer on each of the three wires."""

_GOOD = json.dumps(GOOD).encode()

Behaviour = Callable[["ChaosServer", SeenRequest, asyncio.StreamWriter], Awaitable[None]]
_BEHAVIOURS: dict[str, Behaviour] = {}


class ChaosServer(LoopbackServer):
    """Behaves as the first part of the path says; `stolen` counts requests that followed a redirect."""

    def __init__(self) -> None:
        super().__init__()
        self.stolen = 0

    async def answer(self, request: SeenRequest, writer: asyncio.StreamWriter) -> None:
        name = request.path.split("/")[1]
        await _BEHAVIOURS[name](self, request, writer)
        await writer.drain()


def behaviours() -> list[str]:
    """Every behaviour but "good"."""
    return sorted(set(_BEHAVIOURS) - {"good", "stolen"})


def _behaviour(function: Behaviour) -> Behaviour:
    _BEHAVIOURS[function.__name__] = function
    return function


def _answers(name: str, message: bytes) -> None:
    async def answer(_server: ChaosServer, _request: SeenRequest, writer: asyncio.StreamWriter) -> None:
        writer.write(message)

    _BEHAVIOURS[name] = answer


_answers("good", http_message(200, _GOOD))
_answers("truncated", http_message(200, _GOOD[:40], length=len(_GOOD) + 500))
_answers("garbage", http_message(200, b"\x00\xff{]nul!"))
_answers("login_page", http_message(200, b"<html>log in to HotelNet</html>", {"Content-Type": "text/html"}))
_answers("not_http", b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
_answers("nested", http_message(200, b"[" * 200_000 + b"]" * 200_000))
_answers("endless_integer", http_message(200, _GOOD[:-1] + b',"eval_count":' + b"9" * 100_000 + b"}"))
_answers("not_a_number", http_message(200, _GOOD[:-1] + b',"eval_count":NaN,"prompt_eval_count":-1e999}'))
_answers("wrong_types", http_message(200, b'{"choices":{"0":null},"message":[1],"content":7,"done":true}'))
_answers("empty", http_message(200))
_answers("null", http_message(200, b"null"))
_answers("many_headers", http_message(200, _GOOD, {f"X-{n}": "v" * 1000 for n in range(2000)}))
_answers("hangs_up", b"")
_answers("gzip_truncated", http_message(200, gzip.compress(_GOOD)[:-20], {"Content-Encoding": "gzip"}))
_answers("unknown_encoding", http_message(200, _GOOD, {"Content-Encoding": "br"}))
_answers("error_inside_200", http_message(200, json.dumps({"error": f"no luck with {CANARY}"}).encode()))


def _refuses(status: int, headers: dict[str, str] | None = None) -> None:
    said = json.dumps(
        {"error": {"message": f"refused: Authorization: Bearer {CANARY} (x-api-key {CANARY[:14]}...)"}}
    )
    _answers(f"status_{status}", http_message(status, said.encode(), headers))


for _status in (400, 401, 403, 404, 500):
    _refuses(_status)
for _status in (429, 503):
    _refuses(_status, {"Retry-After": "86400"})


@_behaviour
async def slow_loris(_server: ChaosServer, _request: SeenRequest, writer: asyncio.StreamWriter) -> None:
    """Headers at once, then a byte at a time for ever."""
    writer.write(http_message(200, length=10_000_000))
    await _drip(writer, _GOOD * 1000)


@_behaviour
async def header_drip(_server: ChaosServer, _request: SeenRequest, writer: asyncio.StreamWriter) -> None:
    """The headers themselves come a byte at a time."""
    await _drip(writer, b"HTTP/1.1 200 OK\r\n" + b"X-Slow: " + b"a" * 100_000)


async def _drip(writer: asyncio.StreamWriter, data: bytes) -> None:
    for position in range(len(data)):
        writer.write(data[position : position + 1])
        await writer.drain()
        await asyncio.sleep(DRIP_SECONDS)


@_behaviour
async def silent(_server: ChaosServer, _request: SeenRequest, _writer: asyncio.StreamWriter) -> None:
    """Takes the request and says nothing, for ever."""
    await asyncio.Event().wait()


@_behaviour
async def reset(_server: ChaosServer, _request: SeenRequest, writer: asyncio.StreamWriter) -> None:
    """Resets the connection before any answer."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@_behaviour
async def huge(_server: ChaosServer, _request: SeenRequest, writer: asyncio.StreamWriter) -> None:
    """An honest Content-Length of far more than anybody wants."""
    writer.write(http_message(200, b'{"content":"', length=BOMB_BYTES))
    for _ in range(BOMB_BYTES >> 20):
        writer.write(b"A" * (1 << 20))
        await writer.drain()


@_behaviour
async def endless(_server: ChaosServer, _request: SeenRequest, writer: asyncio.StreamWriter) -> None:
    """Chunk after chunk without an end."""
    writer.write(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    line = b'{"message":{"content":"' + b"again " * 2000 + b'"},"done":false}\n'
    while True:
        writer.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
        await writer.drain()


@_behaviour
async def gzip_bomb(_server: ChaosServer, _request: SeenRequest, writer: asyncio.StreamWriter) -> None:
    """About 64 KB that unpack to 64 MB; packed piecewise, so that the test process stays small too."""
    packer = zlib.compressobj(9, wbits=zlib.MAX_WBITS | 16)
    packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(BOMB_BYTES >> 20)) + packer.flush()
    writer.write(http_message(200, packed, {"Content-Encoding": "gzip"}))


@_behaviour
async def after_the_gzip(_server: ChaosServer, _request: SeenRequest, writer: asyncio.StreamWriter) -> None:
    """A whole gzip body, and then rubbish without an end, which zlib would collect."""
    writer.write(
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nConnection: close\r\n\r\n" + gzip.compress(_GOOD)
    )
    while True:
        writer.write(b"A" * 65536)
        await writer.drain()


@_behaviour
async def redirect(server: ChaosServer, _request: SeenRequest, writer: asyncio.StreamWriter) -> None:
    """Sends the client, prompt and key and all, elsewhere; the address carries a password to be hidden."""
    target = server.origin.replace("127.0.0.1", f"user:{CANARY}@localhost")
    writer.write(http_message(307, headers={"Location": f"{target}/stolen/{CANARY}"}))


@_behaviour
async def stolen(server: ChaosServer, _request: SeenRequest, writer: asyncio.StreamWriter) -> None:
    """Where the redirect leads."""
    server.stolen += 1
    writer.write(http_message(200, _GOOD))


@_behaviour
async def lone_surrogate(_server: ChaosServer, _request: SeenRequest, writer: asyncio.StreamWriter) -> None:
    """Half an emoji and a NUL inside a text: an answer, but not one that SQLite could store as it is."""
    writer.write(http_message(200, _GOOD.replace(b'"hi"', rb'"\ud83c half\u0000"')))
