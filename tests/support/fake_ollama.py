"""An Ollama made for tests: it answers whatever is asked, in the shapes that a real one was recorded with.

A word is a token. A reply to a schema is the smallest JSON that fits it; any other reply counts words, so
that it is as long as it may be and the same for the same request.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from llm.config import DEFAULT_MODELS
from llm.sample import smallest
from tests.support.loopback import LoopbackServer, SeenRequest, http_message

CHAT = ("completion", "tools")
EMBEDDING = ("embedding",)

_JSON = {"Content-Type": "application/json; charset=utf-8"}


def model(name: str, size: int = 986_061_892, capabilities: Sequence[str] | None = CHAT) -> dict[str, Any]:
    """One entry of /api/tags; `capabilities` None as an older server sends it."""
    entry: dict[str, Any] = {
        "name": name,
        "model": name,
        "modified_at": "2026-08-22T10:00:00.123456789Z",
        "size": size,
        "digest": "65ec06548149b04c096a120e4a6da9d4017ea809c91734ea5631e89f96ddc57b",
        "details": {"format": "gguf", "family": "qwen2", "parameter_size": "1.5B"},
    }
    if capabilities is not None:
        entry["capabilities"] = list(capabilities)
    return entry


class FakeOllama(LoopbackServer):
    """Serves /api/version, /api/tags and /api/chat.

    Args:
        models: entries of /api/tags, see `model`; without any it has the default model of LLMConfig.
        empty: no model at all.
        silent: accept connections and never answer.
    """

    def __init__(self, *models: dict[str, Any], empty: bool = False, silent: bool = False) -> None:
        super().__init__(keep_alive=True)
        self._models = [] if empty else list(models) or [model(DEFAULT_MODELS["ollama"])]
        self._silent = silent

    async def answer(self, request: SeenRequest, writer: asyncio.StreamWriter) -> None:
        if self._silent:
            await asyncio.Event().wait()
        match request.method, request.path:
            case "GET", "/api/version":
                self._send(writer, 200, {"version": "0.32.15"})
            case "GET", "/api/tags":
                self._send(writer, 200, {"models": self._models})
            case "POST", "/api/chat":
                self._send(writer, *self._chat(request.body))
            case _:
                writer.write(http_message(404, b"404 page not found", {"Content-Type": "text/plain"}))
        await writer.drain()

    def _send(self, writer: asyncio.StreamWriter, status: int, payload: dict[str, Any]) -> None:
        # As Go writes JSON: compact, and with < > & escaped.
        text = json.dumps(payload, separators=(",", ":"), ensure_ascii=False)
        for character in "<>&":
            text = text.replace(character, f"\\u{ord(character):04x}")
        writer.write(http_message(status, text.encode(), {**_JSON, "Connection": "keep-alive"}))

    def _chat(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        name = body["model"]
        if name not in {entry["name"] for entry in self._models}:
            return 404, {"error": f"model '{name}' not found"}
        schema = body.get("format")
        limit = body["options"]["num_predict"]
        text = json.dumps(smallest(schema)) if schema else " ".join(str(n) for n in range(1, 1001))
        words = text.split()
        cut = len(words) > limit
        return 200, {
            "model": name,
            "created_at": "2026-10-24T22:30:00.123456789Z",
            "message": {"role": "assistant", "content": " ".join(words[:limit]) if cut else text},
            "done": True,
            "done_reason": "length" if cut else "stop",
            "total_duration": 1_234_567,
            "load_duration": 12_345,
            "prompt_eval_count": sum(len(turn["content"].split()) for turn in body["messages"]),
            "prompt_eval_duration": 123_456,
            "eval_count": min(len(words), limit),
            "eval_duration": 1_000_000,
        }
