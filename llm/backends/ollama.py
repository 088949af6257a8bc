"""OllamaBackend: local inference through an Ollama server, on its own /api."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from llm.backends.address import Address, guard_clear_text, parse_address
from llm.backends.http import HttpExchange, reading_from
from llm.client import LLMClient
from llm.config import LLMConfig
from llm.errors import BadRequest, DeadlineExceeded, LLMError, ModelNotFound
from llm.events import Observer
from llm.middleware.base import Middleware
from llm.types import LLMRequest, LLMResponse
from llm.wire.ollama import OllamaModel, chat_body, read_chat, read_models, same_model

__all__ = ["OllamaBackend", "OllamaModel", "ollama_address"]

PORT = 11434
PROBE_SECONDS = 5.0
"""Longest wait of a health check and of the list of models; neither loads a model."""

_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - read, not bound
"""OLLAMA_HOST is written for the server: where it listens everywhere, it is asked on this machine."""


class OllamaBackend(LLMClient):
    """A model served by Ollama.

    The server is `config.api_base`, else `$OLLAMA_HOST`, else this machine at port 11434. `config.api_key` is
    only sent over https, as to Ollama's cloud: a local server needs none, and LLM_API_KEY may be another's.

    Raises:
        ConfigurationError: the address cannot be used.
    """

    backend: ClassVar[str] = "ollama"

    def __init__(
        self,
        config: LLMConfig,
        *,
        middleware: Sequence[Middleware] = (),
        observers: Sequence[Observer] = (),
    ) -> None:
        super().__init__(config, middleware=middleware, observers=observers)
        self._address = ollama_address(config)
        guard_clear_text(self._address, key=None, backend=self.backend)
        way_out = "start it with `ollama serve`, or set LLM_API_BASE to where it runs"
        self._exchange = HttpExchange(config, way_out=way_out)

    async def send(self, request: LLMRequest) -> LLMResponse:
        """Ask /api/chat; raises what `llm.errors` lists."""
        body = chat_body(request, num_ctx=self.config.context_length)
        try:
            payload = await self._call("POST", "/api/chat", body)
        except ModelNotFound as error:
            msg = (
                f"Ollama at {self._address.origin} has no model {request.model!r}; "
                f"get it with `ollama pull {request.model}`"
            )
            raise ModelNotFound(msg) from error
        except BadRequest as error:
            if "context size" not in str(error):
                raise
            msg = (
                f"{error}; shorten the prompt or raise LLM_CONTEXT_LENGTH (now {self.config.context_length})"
            )
            raise BadRequest(msg) from error
        with reading_from(self._address.origin):
            return read_chat(payload, request, backend=self.backend)

    async def health_check(self) -> bool:
        """Whether the server answers and has the model, within 5 s. Never raises, never loads a model."""
        try:
            async with asyncio.timeout(self._probe_seconds()):
                await self._call("GET", "/api/version")
                models = await self._models()
        except (LLMError, TimeoutError):
            return False
        return any(same_model(self.config.model, model.name) for model in models)

    async def list_models(self) -> list[OllamaModel]:
        """The models that the server has, within 5 s.

        Raises:
            LLMError: the server cannot be reached or does not answer as Ollama does.
        """
        try:
            async with asyncio.timeout(self._probe_seconds()):
                return await self._models()
        except TimeoutError as error:
            msg = f"Ollama at {self._address.origin} did not list its models in time"
            raise DeadlineExceeded(msg) from error

    async def fingerprint(self, model: str) -> str:
        """The digest of the model's weights, which `ollama pull` may change under the same name."""
        models = await self.list_models()
        return next((each.digest for each in models if same_model(model, each.name)), "")

    async def _models(self) -> list[OllamaModel]:
        payload = await self._call("GET", "/api/tags")
        with reading_from(self._address.origin):
            return read_models(payload)

    def _probe_seconds(self) -> float:
        return min(PROBE_SECONDS, self.config.timeout)

    async def _call(self, method: str, path: str, body: Any = None) -> Any:
        headers = {}
        if self.config.api_key and self._address.scheme == "https":
            headers["Authorization"] = f"Bearer {self.config.api_key}"
        return await self._exchange.request_json(
            method, self._address.full_url(path), headers=headers, body=body
        )

    async def _release(self) -> None:
        await self._exchange.aclose()


def ollama_address(config: LLMConfig, environ: Mapping[str, str] | None = None) -> Address:
    """Where the Ollama server is.

    Args:
        config: its `api_base` wins; one that ends in /api or /v1 means the server above it.
        environ: the environment to read OLLAMA_HOST from, `os.environ` if None.

    Raises:
        ConfigurationError: the address cannot be used; names the variable.
    """
    source = os.environ if environ is None else environ
    host = source.get("OLLAMA_HOST", "").strip().strip("\"'")
    if config.api_base is not None:
        address = parse_address(config.api_base)
    elif host:
        address = _from_ollama_host(host)
    else:
        return Address("http", "127.0.0.1", PORT)
    path = address.path.removesuffix("/v1").removesuffix("/api")
    return replace(address, path=path, host=_EVERYWHERE.get(address.host, address.host))


def _from_ollama_host(text: str) -> Address:
    """Read OLLAMA_HOST as Ollama's own client does: "host", "host:port", ":port", "[::1]:port" or a URL.

    Port 11434 is meant where none is named, but a whole URL has the port of its scheme.
    """
    scheme, given, rest = text.rpartition("://")
    if not given and text.count(":") > 1 and not text.startswith("["):
        rest = f"[{text}]"  # an IPv6 address without brackets
    if rest.startswith((":", "/")):
        rest = f"127.0.0.1{rest}"
    address = parse_address(f"{scheme or 'http'}://{rest}", "OLLAMA_HOST")
    return address if given else replace(address, port=address.port or PORT)
