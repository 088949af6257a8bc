"""Replays recorded exchanges of real model servers, and keeps the requests that it was sent.

    async with ReplayServer("chat_nostream", "version", "tags") as server:
        client = OllamaBackend(LLMConfig(api_base=server.url))
        ...
        assert server.seen[0].path == "/api/chat"

Recordings are JSON files in tests/recordings/ollama: {"request": {method, path, body}, "response": {status,
headers, headers_t_ms, body | chunks, end_t_ms}}. Each of `chunks` is {t_ms, text}: one HTTP chunk, and when
it came, in milliseconds from the request. They are sent as they came, one HTTP chunk each.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.loopback import LoopbackServer, SeenRequest, http_message

RECORDINGS = Path(__file__).parents[1] / "recordings" / "ollama"

_OURS = frozenset({"content-length", "transfer-encoding", "connection"})
_REFUSES = 400


def recording(name: str) -> dict[str, Any]:
    """One recorded exchange by its name."""
    loaded: dict[str, Any] = json.loads((RECORDINGS / f"{name}.json").read_text(encoding="utf-8"))
    return loaded


def recordings() -> dict[str, dict[str, Any]]:
    """Every recorded exchange that was answered, by its name."""
    found = {path.stem: recording(path.stem) for path in sorted(RECORDINGS.glob("*.json"))}
    return {
        name: exchange for name, exchange in found.items() if (exchange.get("response") or {}).get("status")
    }


def body_of(exchange: dict[str, Any]) -> bytes:
    """The whole body of a recorded reply, its chunks joined."""
    response = exchange["response"]
    parts = [chunk["text"] for chunk in response["chunks"]] if "chunks" in response else [response["body"]]
    return "".join(part or "" for part in parts).encode()


def canned(
    method: str, path: str, status: int, body: Any, headers: dict[str, str] | None = None
) -> dict[str, Any]:
    """An exchange made up for a test, formed like a recording; `body` is sent as JSON unless it is text."""
    text = body if isinstance(body, str) else json.dumps(body)
    fields = {"Content-Type": "application/json", **(headers or {})}
    return {
        "request": {"method": method, "path": path},
        "response": {"status": status, "headers": fields, "body": text},
    }


class ReplayServer(LoopbackServer):
    """Answers each request with the recording that fits it best, or with those queued by `play`.

    Fitting means the same method and path. Among several, the one wins that was asked the same of the same
    model, else one of the same model, and of those the one whose request has the most of this one's shape:
    streamed or not, with a schema, tools, thinking or a system turn or without, as many turns, the same limit
    of tokens. The first of equals wins.
    Nothing fitting is answered 404, as Ollama does.

    Args:
        exchanges: names of recordings, or exchanges themselves (see `canned`).
        mount: path in front of every recorded path, for base URLs with a path.
        pace: how much of the recorded waiting is done: 1 is all of it, 0 none.
        piece: cut bodies into HTTP chunks of so many bytes instead of where the real server cut them; 1 cuts
            at every position, in the middle of characters and of lines.
    """

    def __init__(
        self, *exchanges: str | dict[str, Any], mount: str = "", pace: float = 0.0, piece: int | None = None
    ) -> None:
        super().__init__()
        self._mount = mount
        self._pace = pace
        self._piece = piece
        self._exchanges = [_loaded(exchange) for exchange in exchanges]
        self._queue: deque[dict[str, Any]] = deque()

    @property
    def url(self) -> str:
        return self.origin + self._mount

    def play(self, *exchanges: str | dict[str, Any]) -> None:
        """Answer the next requests with these, in order, whatever is asked."""
        self._queue.extend(_loaded(exchange) for exchange in exchanges)

    def _fitting(self, request: SeenRequest) -> dict[str, Any] | None:
        path = request.path.removeprefix(self._mount)
        same = [
            e
            for e in self._exchanges
            if (e["request"]["method"], e["request"]["path"]) == (request.method, path)
        ]
        return max(same, key=lambda e: _likeness(e, request.body), default=None)

    async def answer(self, request: SeenRequest, writer: asyncio.StreamWriter) -> None:
        exchange = self._queue.popleft() if self._queue else self._fitting(request)
        if exchange is None:
            writer.write(http_message(404, b"404 page not found", {"Content-Type": "text/plain"}))
            await writer.drain()
            return
        await self._replay(exchange["response"], writer)

    async def _replay(self, response: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        headers = {name: value for name, value in response["headers"].items() if name.lower() not in _OURS}
        clock = _Clock(self._pace)
        await clock.reach(response.get("headers_t_ms", 0.0))
        if "chunks" not in response and self._piece is None:
            await clock.reach(response.get("end_t_ms", 0.0))
            writer.write(http_message(response["status"], response["body"].encode(), headers))
            await writer.drain()
            return
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        start = f"HTTP/1.1 {response['status']} X\r\n{lines}"
        writer.write(f"{start}Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n".encode())
        for moment, data in self._cut(response):
            await clock.reach(moment)
            writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            await writer.drain()
        await clock.reach(response.get("end_t_ms", 0.0))
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    def _cut(self, response: dict[str, Any]) -> Iterator[tuple[float, bytes]]:
        """What is sent when, in milliseconds: as recorded, or in pieces."""
        chunks = response.get("chunks") or [{"t_ms": 0.0, "text": response.get("body") or ""}]
        for chunk in chunks:
            data = chunk["text"].encode()
            size = self._piece or len(data)
            for position in range(0, len(data), size or 1):
                yield chunk["t_ms"], data[position : position + size]


class _Clock:
    """Waits for moments of a recording, at a pace of its own."""

    def __init__(self, pace: float) -> None:
        self._pace = pace
        self._started = asyncio.get_running_loop().time()

    async def reach(self, milliseconds: float) -> None:
        """Wait until this much of the recorded time has gone by."""
        left = self._started + milliseconds / 1000 * self._pace - asyncio.get_running_loop().time()
        if self._pace and left > 0:
            await asyncio.sleep(left)


def _loaded(exchange: str | dict[str, Any]) -> dict[str, Any]:
    return recording(exchange) if isinstance(exchange, str) else exchange


def _likeness(exchange: dict[str, Any], body: Any) -> tuple[bool, bool, bool, bool, int]:
    """How well a recording fits a request; the largest fits best."""
    recorded = exchange["request"].get("body")
    if not isinstance(recorded, dict) or not isinstance(body, dict):
        return (recorded == body, False, False, False, 0)
    streams = _streams(exchange, recorded) == _streams(exchange, body)
    same = all(recorded.get(key) == body.get(key) for key in ("model", "messages"))
    answers = exchange["response"]["status"] < _REFUSES
    ours, theirs = _shape(body), _shape(recorded)
    model = recorded.get("model") == body.get("model")
    return (same and streams, model, streams, answers, sum(ours[key] == theirs[key] for key in ours))


def _streams(exchange: dict[str, Any], body: dict[str, Any]) -> bool:
    """On /api a stream is what is sent unless it is declined; elsewhere it is asked for."""
    return bool(body.get("stream", exchange["request"]["path"].startswith("/api/")))


def _shape(body: dict[str, Any]) -> dict[str, Any]:
    turns = body.get("messages") or []
    roles = [turn.get("role") for turn in turns if isinstance(turn, dict)]
    options = body.get("options") or {}
    schema = body.get("format") or body.get("response_format")
    return {
        "model": body.get("model"),
        "schema": schema is not None,
        "tools": bool(body.get("tools")),
        "thinks": bool(body.get("think")),
        "system": "system" in roles or bool(body.get("system")),
        "turns": min(len(roles), 3),
        "limit": options.get("num_predict") or body.get("max_tokens"),
        "usage": bool(body.get("stream_options")),
    }
