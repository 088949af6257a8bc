"""A model server that misbehaves in every way that networks and servers are known for, one way per path.

    async with ChaosServer() as server:
        client = OllamaBackend(LLMConfig(api_base=f"{server.url}/slow_loris"))

The first part of the path chooses the behaviour, the rest of it and the request choose the wire: Ollama's,
OpenAI's or Anthropic's, as one body or as a stream. Behaviours that never end are ended with the server.
`ChaosProcess` runs it in a process of its own, where its buffers are not counted as the client's.
"""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import socket
import struct
import subprocess
import sys
import urllib.request
import zlib
from collections.abc import Awaitable, Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any, Self

from tests.support.canary import CANARY
from tests.support.loopback import LoopbackServer, SeenRequest, http_message

DRIP_SECONDS = 0.05
BOMB_BYTES = 64 * 1024 * 1024
ANSWER = "hi"
"""What a good reply says."""

Behaviour = Callable[["ChaosServer", SeenRequest, asyncio.StreamWriter], Awaitable[None]]
_BEHAVIOURS: dict[str, Behaviour] = {}
_NO_FAULT = frozenset({"good", "stolen", "stolen_so_far"})


class ChaosServer(LoopbackServer):
    """Behaves as the first part of the path says; `stolen` counts requests that followed a redirect."""

    def __init__(self) -> None:
        super().__init__()
        self.stolen = 0

    async def answer(self, request: SeenRequest, writer: asyncio.StreamWriter) -> None:
        name = request.path.split("/")[1]
        await _BEHAVIOURS[name](self, request, writer)
        await writer.drain()


class ChaosProcess:
    """A ChaosServer in a process of its own, from `with` to its end."""

    def __enter__(self) -> Self:
        root = Path(__file__).parents[2]
        command = [sys.executable, "-c", "from tests.support.chaos_server import main; main()"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
        assert self.url, "the server did not start"
        return self

    @property
    def stolen(self) -> int:
        """How many requests followed a redirect until now."""
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(f"{self.url}/stolen_so_far", timeout=20) as response:
            return int(response.read())

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=20)  # closes its stdin, which ends it


def main() -> None:
    """Serve until stdin ends; the address is the first line on stdout."""

    _bomb()  # takes a while to make, which is not the client's to wait for

    async def serve() -> None:
        async with ChaosServer() as server:
            print(server.url, flush=True)
            await asyncio.to_thread(sys.stdin.read)

    asyncio.run(serve())


def behaviours() -> list[str]:
    """Every behaviour that is a fault."""
    return sorted(set(_BEHAVIOURS) - _NO_FAULT)


# What the three wires say when all is well: JSON texts, and how they are framed.


def _payloads(request: SeenRequest) -> list[str]:
    """A good reply to `request` as the JSON texts that it is made of; the last but none ends it."""
    match _wire(request):
        case "openai":
            replies = _OPENAI_EVENTS if _streams(request) else [_OPENAI_BODY]
        case "anthropic":
            replies = _ANTHROPIC_EVENTS if _streams(request) else [_ANTHROPIC_BODY]
        case _:
            replies = _OLLAMA_LINES if _streams(request) else [_OLLAMA_BODY]
    return [json.dumps(reply) for reply in replies]


def _wire(request: SeenRequest) -> str:
    if request.path.endswith("/chat/completions"):
        return "openai"
    return "anthropic" if request.path.endswith("/messages") else "ollama"


def _streams(request: SeenRequest) -> bool:
    return isinstance(request.body, dict) and request.body.get("stream") is True


def _framed(request: SeenRequest, payloads: Iterable[str]) -> bytes:
    """The bytes of a body: JSON lines, server-sent events or one JSON text."""
    if not _streams(request):
        return "".join(payloads).encode()
    if _wire(request) == "ollama":
        return "".join(f"{payload}\n" for payload in payloads).encode()
    done = "data: [DONE]\n\n" if _wire(request) == "openai" else ""
    return ("".join(f"data: {payload}\n\n" for payload in payloads) + done).encode()


def _good(request: SeenRequest, change: Callable[[str], str] = str) -> bytes:
    """A whole good body, each JSON text of it changed by `change`."""
    return _framed(request, [change(payload) for payload in _payloads(request)])


def _content_type(request: SeenRequest) -> dict[str, str]:
    if not _streams(request):
        return {"Content-Type": "application/json"}
    kind = "application/x-ndjson" if _wire(request) == "ollama" else "text/event-stream"
    return {"Content-Type": kind}


_OLLAMA_BODY = {
    "model": "m",
    "message": {"role": "assistant", "content": ANSWER},
    "done": True,
    "done_reason": "stop",
}
_OLLAMA_LINES: list[dict[str, Any]] = [
    {"model": "m", "message": {"role": "assistant", "content": ANSWER}, "done": False},
    {"model": "m", "message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "stop"},
]


def _openai(delta: dict[str, Any], reason: str | None) -> dict[str, Any]:
    return {"model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}


_OPENAI_BODY = {
    "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": ANSWER}}],
}
_OPENAI_EVENTS = [_openai({"role": "assistant", "content": ANSWER}, None), _openai({}, "stop")]

_ANTHROPIC_BODY = {"model": "m", "content": [{"type": "text", "text": ANSWER}], "stop_reason": "end_turn"}
_ANTHROPIC_EVENTS: list[dict[str, Any]] = [
    {"type": "message_start", "message": {"model": "m", "content": [], "usage": {"input_tokens": 1}}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": ANSWER}},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 1}},
    {"type": "message_stop"},
]


# Replies that are there at once, and wrong.


def _behaviour(function: Behaviour) -> Behaviour:
    _BEHAVIOURS[function.__name__] = function
    return function


def _answers(name: str, message: Callable[[SeenRequest], bytes]) -> None:
    async def answer(_server: ChaosServer, request: SeenRequest, writer: asyncio.StreamWriter) -> None:
        writer.write(message(request))

    _BEHAVIOURS[name] = answer


def _replies(
    name: str,
    body: Callable[[SeenRequest], bytes],
    headers: dict[str, str] | None = None,
    *,
    missing: int = 0,
) -> None:
    """A behaviour that answers 200 with `body`, and promises `missing` bytes more than there are."""

    def message(request: SeenRequest) -> bytes:
        data = body(request)
        return http_message(200, data, _content_type(request) | (headers or {}), length=len(data) + missing)

    _answers(name, message)


def _with(member: str) -> Callable[[SeenRequest], bytes]:
    """A good body, one member added to each of its JSON objects."""
    return lambda request: _good(request, lambda payload: f"{payload[:-1]},{member}}}")


def _instead(payload: str) -> Callable[[SeenRequest], bytes]:
    """A body that is framed as it should be and says something else."""
    return lambda request: _framed(request, [payload])


_WRONG = '{"choices":{"0":null},"message":[1],"content":7,"done":true,"type":"content_block_delta","delta":7}'
_LUCKLESS = json.dumps({"type": "error", "error": {"type": "api_error", "message": f"no luck with {CANARY}"}})
_PAGE = b"<html>log in to HotelNet</html>"

_replies("good", _good)
_replies("truncated", lambda request: _good(request)[:40], missing=500)
_replies("garbage", lambda _: b"\x00\xff{]nul!")
_replies("login_page", lambda _: _PAGE, {"Content-Type": "text/html"})
_answers("not_http", lambda _: b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
_replies("nested", _instead("[" * 200_000 + "]" * 200_000))
_replies("endless_integer", _with('"eval_count":' + "9" * 100_000))
_replies("not_a_number", _with('"eval_count":NaN,"prompt_eval_count":-1e999'))
_replies("wrong_types", _instead(_WRONG))
_replies("empty", lambda _: b"")
_replies("null", _instead("null"))
_replies("many_headers", _good, {f"X-{n}": "v" * 1000 for n in range(2000)})
_answers("hangs_up", lambda _: b"")
_replies("gzip_truncated", lambda request: gzip.compress(_good(request))[:-20], {"Content-Encoding": "gzip"})
_replies("unknown_encoding", _good, {"Content-Encoding": "br"})
_replies("error_inside_200", _instead(_LUCKLESS))
_replies(  # half an emoji and a NUL: an answer, but not one that SQLite could store as it is
    "lone_surrogate",
    lambda request: _good(request, lambda payload: payload.replace(f'"{ANSWER}"', r'"\ud83c half\u0000"')),
)


def _refuses(status: int, headers: dict[str, str] | None = None) -> None:
    said = f"refused: Authorization: Bearer {CANARY} (x-api-key {CANARY[:14]}...)"
    body = json.dumps({"error": {"message": said}}).encode()
    _answers(f"status_{status}", lambda _: http_message(status, body, headers))


for _status in (400, 401, 403, 404, 500):
    _refuses(_status)
for _status in (429, 503):
    _refuses(_status, {"Retry-After": "86400"})


# Replies that take their time, or have no end.


def _chunked_head(request: SeenRequest) -> bytes:
    kind = _content_type(request)["Content-Type"]
    return f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()


def _chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def _begun(request: SeenRequest) -> bytes:
    """The head and the first words of a good reply, and then nothing that would end it."""
    payloads = _payloads(request)
    if not _streams(request):
        return _chunked_head(request) + _chunk(payloads[0][:-10].encode())
    words = next(i for i, payload in enumerate(payloads) if f'"{ANSWER}"' in payload)
    body = "".join(
        f"{payload}\n" if _wire(request) == "ollama" else f"data: {payload}\n\n"
        for payload in payloads[: words + 1]
    )
    return _chunked_head(request) + _chunk(body.encode())


def _more(request: SeenRequest, text: str) -> bytes:
    """A good reply's next words, as one HTTP chunk."""
    if not _streams(request):
        return _chunk(text.encode())
    (payload,) = (p for p in _payloads(request) if f'"{ANSWER}"' in p)
    payload = payload.replace(f'"{ANSWER}"', json.dumps(text))
    return _chunk(f"{payload}\n".encode() if _wire(request) == "ollama" else f"data: {payload}\n\n".encode())


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@_behaviour
async def slow_loris(_server: ChaosServer, request: SeenRequest, writer: asyncio.StreamWriter) -> None:
    """Headers at once, then a byte at a time for ever."""
    writer.write(http_message(200, headers=_content_type(request), length=10_000_000))
    await _drip(writer, _good(request) * 1000)


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
async def silent_midstream(_server: ChaosServer, request: SeenRequest, writer: asyncio.StreamWriter) -> None:
    """Begins well, and never goes on."""
    writer.write(_begun(request))
    await writer.drain()
    await asyncio.Event().wait()


@_behaviour
async def slow_midstream(_server: ChaosServer, request: SeenRequest, writer: asyncio.StreamWriter) -> None:
    """Begins well, and goes on for ever, a word at a time."""
    writer.write(_begun(request))
    while True:
        writer.write(_more(request, "again "))
        await writer.drain()
        await asyncio.sleep(DRIP_SECONDS)


@_behaviour
async def ends_midstream(_server: ChaosServer, request: SeenRequest, writer: asyncio.StreamWriter) -> None:
    """Begins well, and ends as if that were all: what a crashed runner looks like on some wires."""
    writer.write(_begun(request) + b"0\r\n\r\n")


@_behaviour
async def hangs_up_midstream(
    _server: ChaosServer, request: SeenRequest, writer: asyncio.StreamWriter
) -> None:
    """Begins well, and closes the connection without the end of the body."""
    writer.write(_begun(request))


@_behaviour
async def error_midstream(_server: ChaosServer, request: SeenRequest, writer: asyncio.StreamWriter) -> None:
    """Begins well, and then says what went wrong, inside the 200."""
    said = f"{_LUCKLESS}\n" if _wire(request) == "ollama" else f"data: {_LUCKLESS}\n\n"
    writer.write(_begun(request) + _chunk(said.encode()) + b"0\r\n\r\n")


@_behaviour
async def reset(_server: ChaosServer, _request: SeenRequest, writer: asyncio.StreamWriter) -> None:
    """Resets the connection before any answer."""
    _reset(writer)


@_behaviour
async def huge(_server: ChaosServer, request: SeenRequest, writer: asyncio.StreamWriter) -> None:
    """An honest Content-Length of far more than anybody wants."""
    writer.write(http_message(200, b'{"content":"', _content_type(request), length=BOMB_BYTES))
    await _flood(writer, itertools.repeat(b"A" * (1 << 20), BOMB_BYTES >> 20))


@_behaviour
async def endless(_server: ChaosServer, request: SeenRequest, writer: asyncio.StreamWriter) -> None:
    """Good words, chunk after chunk, without an end."""
    writer.write(_begun(request))
    await _flood(writer, itertools.repeat(_more(request, "again " * 2000)))


@_behaviour
async def no_line_end(_server: ChaosServer, request: SeenRequest, writer: asyncio.StreamWriter) -> None:
    """One line without an end."""
    writer.write(_chunked_head(request) + _chunk(b"data: {"))
    await _flood(writer, itertools.repeat(_chunk(b"A" * 65536)))


@_behaviour
async def blank_lines(_server: ChaosServer, request: SeenRequest, writer: asyncio.StreamWriter) -> None:
    """Signs of life and nothing else, as fast as they can be sent."""
    writer.write(_chunked_head(request))
    alive = b"\n" if _wire(request) == "ollama" else b": keepalive 1/2\n\n"
    await _flood(writer, itertools.repeat(_chunk(alive * 1000)))


async def _flood(writer: asyncio.StreamWriter, pieces: Iterable[bytes]) -> None:
    for piece in pieces:
        writer.write(piece)
        await writer.drain()


@cache
def _bomb() -> bytes:
    """Packed piecewise, so that the test process stays small too."""
    packer = zlib.compressobj(9, wbits=zlib.MAX_WBITS | 16)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(BOMB_BYTES >> 20)) + packer.flush()


_replies("gzip_bomb", lambda _: _bomb(), {"Content-Encoding": "gzip"})
"""About 64 KB that unpack to 64 MB."""


@_behaviour
async def after_the_gzip(_server: ChaosServer, request: SeenRequest, writer: asyncio.StreamWriter) -> None:
    """A whole gzip body, and then rubbish without an end, which zlib would collect."""
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nConnection: close\r\n\r\n"
    writer.write(head + gzip.compress(_good(request)))
    await _flood(writer, itertools.repeat(b"A" * 65536))


@_behaviour
async def redirect(server: ChaosServer, _request: SeenRequest, writer: asyncio.StreamWriter) -> None:
    """Sends the client, prompt and key and all, elsewhere; the address carries a password to be hidden."""
    target = server.origin.replace("127.0.0.1", f"user:{CANARY}@localhost")
    writer.write(http_message(307, headers={"Location": f"{target}/stolen/{CANARY}"}))


@_behaviour
async def stolen(server: ChaosServer, request: SeenRequest, writer: asyncio.StreamWriter) -> None:
    """Where the redirect leads."""
    server.stolen += 1
    writer.write(http_message(200, _good(request)))


@_behaviour
async def stolen_so_far(server: ChaosServer, _request: SeenRequest, writer: asyncio.StreamWriter) -> None:
    """How often a redirect was followed; for tests of the server in another process."""
    writer.write(http_message(200, str(server.stolen).encode()))
