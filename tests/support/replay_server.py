"""Replays recorded exchanges of real model servers, and keeps the requests that it was sent.

    async with ReplayServer("chat_nostream", "version", "tags") as server:
        client = OllamaBackend(LLMConfig(api_base=server.url))
        ...
        assert server.seen[0].path == "/api/chat"

Recordings are JSON files in tests/recordings/ollama: {"request": {method, path, body}, "response": {status,
headers, body | chunks}}. `chunks` are sent one HTTP chunk each.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from pathlib import Path
from typing import Any

from tests.support.loopback import LoopbackServer, SeenRequest, http_message

RECORDINGS = Path(__file__).parents[1] / "recordings" / "ollama"

_OURS = frozenset({"content-length", "transfer-encoding", "connection"})


def recording(name: str) -> dict[str, Any]:
    """One recorded exchange by its name."""
    loaded: dict[str, Any] = json.loads((RECORDINGS / f"{name}.json").read_text(encoding="utf-8"))
    return loaded


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

    Fitting means the same method and path. Among several, the one with the same model and messages wins,
    else the first. Nothing fitting is answered 404, as Ollama does.

    Args:
        exchanges: names of recordings, or exchanges themselves (see `canned`).
        mount: path in front of every recorded path, for base URLs with a path.
    """

    def __init__(self, *exchanges: str | dict[str, Any], mount: str = "") -> None:
        super().__init__()
        self._mount = mount
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
        exact = [e for e in same if _subject(e["request"].get("body")) == _subject(request.body)]
        return next(iter([*exact, *same]), None)

    async def answer(self, request: SeenRequest, writer: asyncio.StreamWriter) -> None:
        exchange = self._queue.popleft() if self._queue else self._fitting(request)
        if exchange is None:
            writer.write(http_message(404, b"404 page not found", {"Content-Type": "text/plain"}))
            await writer.drain()
            return
        await _replay(exchange["response"], writer)


def _loaded(exchange: str | dict[str, Any]) -> dict[str, Any]:
    return recording(exchange) if isinstance(exchange, str) else exchange


def _subject(body: Any) -> Any:
    return (body.get("model"), body.get("messages")) if isinstance(body, dict) else None


async def _replay(response: dict[str, Any], writer: asyncio.StreamWriter) -> None:
    headers = {name: value for name, value in response["headers"].items() if name.lower() not in _OURS}
    status = response["status"]
    if "chunks" not in response:
        writer.write(http_message(status, response["body"].encode(), headers))
        await writer.drain()
        return
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    writer.write(
        f"HTTP/1.1 {status} X\r\n{lines}Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n".encode()
    )
    for chunk in [*(c["text"] for c in response["chunks"]), ""]:
        data = chunk.encode()
        writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        await writer.drain()
