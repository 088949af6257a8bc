"""A model server in a mood, OpenAI's kind: its first answers are written beforehand, then it is well."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from tests.support.loopback import LoopbackServer, SeenRequest, http_message

HANG = object()
"""An answer that never comes."""

RESET = object()
"""The connection is closed without an answer."""

Answer = bytes | object


def refusal(
    status: int, message: str = "not now", headers: dict[str, str] | None = None, **words: str
) -> bytes:
    """A refusing answer in OpenAI's shape."""
    body = {"error": {"message": message, **words}}
    return http_message(status, json.dumps(body).encode(), headers)


def completion(content: str = "Leeks.", *, model: str = "stub", finish: str = "stop") -> bytes:
    """A whole answer."""
    body = {
        "model": model,
        "choices": [
            {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": content}}
        ],
        "usage": {"prompt_tokens": 12, "completion_tokens": 5, "total_tokens": 17},
    }
    return http_message(200, json.dumps(body).encode())


class MoodyServer(LoopbackServer):
    """Answers as it is told.

    Args:
        first: its first answers, one for each request.
        then: every answer after them; a function of the request's body makes one.

    Attributes:
        asked: how many completions it was asked for.
        most_at_once: how many of them it had in hand at the same time, at most.
        pause: seconds before each answer.
    """

    def __init__(
        self, *first: Answer, then: Answer | Callable[[Any], Answer] | None = None, pause: float = 0.0
    ) -> None:
        super().__init__()
        self._script = list(first)
        self._then = completion() if then is None else then
        self.pause = pause
        self.asked = self.most_at_once = self._in_hand = 0

    @property
    def url(self) -> str:
        return f"{self.origin}/v1"

    async def answer(self, request: SeenRequest, writer: asyncio.StreamWriter) -> None:
        if request.method == "GET":
            writer.write(http_message(200, b'{"data": [{"id": "stub"}]}'))
            return
        self.asked += 1
        self._in_hand += 1
        self.most_at_once = max(self.most_at_once, self._in_hand)
        try:
            await self._answer(request, writer)
        finally:
            self._in_hand -= 1

    async def _answer(self, request: SeenRequest, writer: asyncio.StreamWriter) -> None:
        found = self._script.pop(0) if self._script else self._then
        if callable(found):
            found = found(request.body)
        await asyncio.sleep(self.pause)
        if found is HANG:
            await asyncio.Event().wait()
        if isinstance(found, bytes):
            writer.write(found)
            await writer.drain()
