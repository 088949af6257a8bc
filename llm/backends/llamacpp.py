"""LlamaCppBackend: a llama.cpp of our own in a child process, so that a fresh machine has a model."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from llm.backends.child import Launch, engine_environment
from llm.backends.host import EngineHost
from llm.backends.http import HttpExchange
from llm.backends.known import PACKAGED
from llm.backends.models import model_file
from llm.backends.remote import openai_chat
from llm.client import LLMClient
from llm.config import LLMConfig
from llm.errors import BadReply, BadRequest, ConnectionFailed, LLMError, ModelNotFound
from llm.events import Observer
from llm.middleware.base import Middleware
from llm.types import LLMRequest, LLMResponse

_SCRIPT = Path(__file__).parent.parent / "engines" / "llamacpp_server.py"
_INSTALL = "pip install 'askfirst[llamacpp]'"

_IDLE_SECONDS = 300
"""After so long without a call llama.cpp unloads the model; it is back within a second."""

_TOO_LONG = re.compile(r"\((\d+) tokens\) exceeds the available context size \((\d+) tokens\)")


def unavailable_reason(model: str) -> str | None:
    """Why `model` cannot run here, with the way out; None when it can. Imports and loads nothing."""
    try:
        _require_engine()
        model_file(model)
    except LLMError as error:
        return str(error)
    return None


@lru_cache(maxsize=8)
def _sha256(path: Path, size: int, modified: int) -> str:  # noqa: ARG001 - part of the key: the file may change
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify(name: str, path: Path) -> None:
    """Refuse a packaged model that is not the one known: it is native code's input."""
    status = path.stat()
    if _sha256(path, status.st_size, status.st_mtime_ns) != PACKAGED[name].sha256:
        msg = f"{path} is not the {name} that askfirst knows (SHA-256 differs); {PACKAGED[name].install}"
        raise ModelNotFound(msg)


def _require_engine() -> None:
    if find_spec("xllamacpp") is None:
        msg = f"the embedded llama.cpp is not installed; {_INSTALL}"
        raise ConnectionFailed(msg)


def _threads() -> int:
    """One core stays free for the rest of the machine; with both of two cores llama.cpp is slower."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores - 1)


class LlamaCppBackend(LLMClient):
    """llama.cpp in a child process, one call at a time, asked over HTTP on loopback.

    The process starts at the first call and is replaced when it died. Its port takes a random key that no
    other process knows.

    Args:
        config: `model` is a name of `PACKAGED` or the path of a .gguf file.
        middleware: as in `LLMClient`.
        observers: as in `LLMClient`.
    """

    backend: ClassVar[str] = "llamacpp"

    def __init__(
        self, config: LLMConfig, *, middleware: Sequence[Middleware] = (), observers: Sequence[Observer] = ()
    ) -> None:
        super().__init__(config, middleware=middleware, observers=observers)
        self._key = secrets.token_urlsafe(32)
        self._host = EngineHost(self.backend, _SCRIPT, self._launch)
        self._exchange = HttpExchange(config, way_out="call again: the engine starts anew if it died")

    async def send(self, request: LLMRequest) -> LLMResponse:
        """Answer one request.

        Raises:
            ModelNotFound: no such model, or its file is no model.
            ConnectionFailed: xllamacpp is not installed.
            BadRequest: the prompt is longer than the context, or the schema cannot be followed.
            ServerError: the process died.
        """
        async with self._host.turn() as process:
            address = (await process.ready())["address"]
            try:
                response = await openai_chat(
                    self._exchange, request, base=f"{address}/v1", key=self._key, backend=self.backend
                )
            except (ConnectionFailed, BadReply) as error:
                raise await process.blame(error) from error
            except BadRequest as error:
                raise _translated(error) from error
        return replace(response, model=request.model)

    async def health_check(self) -> bool:
        """Whether engine and model are installed and, if it runs, the server answers; loads nothing."""
        if await asyncio.to_thread(unavailable_reason, self.config.model) is not None:
            return False
        process = self._host.current
        if process is None or not process.is_ready:
            return True
        try:
            address = (await process.ready())["address"]
            await self._exchange.request_json("GET", f"{address}/health")
        except LLMError:
            return False
        return True

    async def _release(self) -> None:
        await self._exchange.aclose()
        await self._host.aclose()

    def _launch(self) -> Launch:
        """What the child is started with."""
        _require_engine()
        path = model_file(self.config.model)
        if self.config.model in PACKAGED:
            _verify(self.config.model, path)
        settings = {
            "model": str(path),
            "name": self.config.model,
            "key": self._key,
            "context_length": self.config.context_length,
            "threads": _threads(),
            "idle_seconds": _IDLE_SECONDS,
            "install": _INSTALL,
        }
        return Launch(settings=settings, environ=engine_environment(), secrets=(self._key,))


def _translated(error: BadRequest) -> BadRequest:
    found = _TOO_LONG.search(str(error))
    if found is None:
        return error
    msg = (
        f"the prompt has {found[1]} tokens and the context {found[2]}; shorten the prompt or raise "
        "LLM_CONTEXT_LENGTH (up to what the model was trained with)"
    )
    return BadRequest(msg)
