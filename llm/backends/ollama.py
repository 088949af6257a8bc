"""OllamaBackend: local inference through an Ollama server, on its own /api."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from itertools import count
from typing import Any, ClassVar

from llm.backends.address import Address, guard_clear_text, parse_address
from llm.backends.http import HttpExchange, reading_from
from llm.client import LLMClient
from llm.config import LLMConfig
from llm.errors import BadRequest, DeadlineExceeded, LLMError, ModelNotFound, NotSupported
from llm.events import Observer, ParameterDropped
from llm.middleware.base import Middleware
from llm.overflow import ROUNDS, TooLong, is_surely_too_long, may_be_too_long, shortened, too_long
from llm.types import Capabilities, Chunk, Embeddings, EmbedRequest, LLMRequest, LLMResponse
from llm.wire.ollama import (
    ChatStream,
    OllamaModel,
    always_thinks,
    chat_body,
    embed_body,
    is_older,
    read_capabilities,
    read_chat,
    read_embed,
    read_models,
    same_model,
)
from llm.wire.vectors import Vectors, batches, check_sizes

__all__ = ["OllamaBackend", "OllamaModel", "ollama_address"]

PORT = 11434
PROBE_SECONDS = 5.0
"""Longest wait of a health check and of the list of models; neither loads a model."""

_REFUSES_LONG = (0, 12, 6)
"""The first version that refuses a prompt longer than the context when it is told to (`truncate: false`)."""

_log = logging.getLogger(__name__)

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
        self.server_address = self._address.host_and_port
        guard_clear_text(self._address, key=None, backend=self.backend)
        way_out = "start it with `ollama serve`, or set LLM_API_BASE to where it runs"
        self._exchange = HttpExchange(config, way_out=way_out)
        secret = config.api_key if self._address.scheme == "https" else None
        self._headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        self._able: dict[str, Capabilities] = {}
        self._told: set[str] = set()  # models that were asked to think and cannot
        self._is_old: bool | None = None

    async def send(self, request: LLMRequest) -> LLMResponse:
        """Ask /api/chat; raises what `llm.errors` lists."""
        attempt = await self._fitting(request)
        for round_ in count(1):
            try:
                payload = await self._call("POST", "/api/chat", self._body(attempt))
            except BadRequest as error:
                attempt = self._second_try(attempt, error, round_)
            else:
                break
        with reading_from(self._address.origin):
            return read_chat(payload, request, backend=self.backend)

    async def send_stream(self, request: LLMRequest) -> AsyncGenerator[Chunk, None]:
        """The same in pieces; closing it ends the work in the server at once."""
        attempt = await self._fitting(request)
        for round_ in count(1):
            source = self._exchange.chunks(
                "POST",
                self._url("/api/chat"),
                ChatStream(request, backend=self.backend),
                headers=self._headers,
                body=self._body(attempt, stream=True),
            )
            begun = False
            try:
                async with aclosing(source) as chunks:
                    async for chunk in chunks:
                        begun = True
                        yield chunk
            except BadRequest as error:
                if begun:
                    raise
                attempt = self._second_try(attempt, error, round_)
            else:
                return

    def _body(self, request: LLMRequest, *, stream: bool = False) -> dict[str, Any]:
        able = self._able.get(request.model)
        return chat_body(
            request,
            num_ctx=self.config.context_length,
            stream=stream,
            thinks=None if able is None else able.thinking,
            keep_alive=self.config.keep_alive,
        )

    async def _fitting(self, request: LLMRequest) -> LLMRequest:
        """The request with what the model cannot take left out, and short enough for an old server."""
        if request.think and not always_thinks(request.model) and not await self._can_think(request.model):
            request = self._without_thinking(request)
        context = self.config.context_length
        if may_be_too_long(request.messages, context) and await self._cuts_silently():
            if self.config.overflow == "trim":
                return shortened(request, TooLong(context=context)) or request
            if is_surely_too_long(request.messages, context):
                msg = (
                    f"the prompt is longer than the context, and this Ollama would cut it without a word; "
                    f"shorten it, raise LLM_CONTEXT_LENGTH (now {context}) or update Ollama"
                )
                raise BadRequest(msg)
        return request

    def _second_try(self, request: LLMRequest, error: BadRequest, round_: int) -> LLMRequest:
        """What to ask instead of what was refused.

        Raises:
            BadRequest: nothing; the refusal, with the way out that Ollama has for it.
        """
        if request.think and "does not support thinking" in str(error):
            return self._without_thinking(request)
        told = too_long(str(error))
        if told is not None and self.config.overflow == "trim" and round_ <= ROUNDS:
            shorter = shortened(request, told, context=self.config.context_length)
            if shorter is not None:
                _log.warning(
                    "a prompt for %s is longer than its context; the oldest turns or the middle of the "
                    "longest are left out (LLM_OVERFLOW=trim)",
                    request.model,
                )
                return shorter
        raise self._explained(error, request.model) from error.__cause__

    def _without_thinking(self, request: LLMRequest) -> LLMRequest:
        """Said once a model: that it thinks is a wish, and no reason to fail."""
        able = self._able.get(request.model) or Capabilities(model=request.model)
        self._able[request.model] = replace(able, thinking=False)
        if request.model not in self._told:
            self._told.add(request.model)
            _log.warning("%s does not take think: left out of every call", request.model)
            self.emit(
                ParameterDropped(
                    backend=self.name, model=request.model, caller=request.caller, parameter="think"
                )
            )
        return replace(request, think=False)

    async def _can_think(self, model: str) -> bool:
        """Whether it can, as far as is known: a server that does not say is asked, and may refuse."""
        try:
            return (await self._capabilities(model)).thinking
        except LLMError:
            return True

    async def _capabilities(self, model: str) -> Capabilities:
        if model not in self._able:
            payload = await self._call("POST", "/api/show", {"model": model})
            with reading_from(self._address.origin):
                self._able[model] = read_capabilities(payload, model)
        return self._able[model]

    async def _cuts_silently(self) -> bool:
        """Whether the server is so old that it knows no `truncate: false`; a newer one refuses exactly."""
        if self._is_old is None:
            try:
                payload = await self._call("GET", "/api/version")
            except LLMError:
                return False  # the call itself will say what is wrong
            self._is_old = is_older(payload, _REFUSES_LONG)
        return self._is_old

    def _explained(self, error: BadRequest, model: str) -> BadRequest:
        """The refusal with the way out that Ollama has for it."""
        if isinstance(error, ModelNotFound):
            return ModelNotFound(
                f"Ollama at {self._address.origin} has no model {model!r}; get it with `ollama pull {model}`"
            )
        if isinstance(error, NotSupported) and "embeddings" in str(error):
            return NotSupported(f"{error}; {model} is no embedding model: set LLM_EMBED_MODEL to one")
        if too_long(str(error)) is not None:
            return BadRequest(
                f"{error}; shorten the prompt or raise LLM_CONTEXT_LENGTH (now {self.config.context_length})"
            )
        return error

    async def send_embed(self, request: EmbedRequest) -> Embeddings:
        """Ask /api/embed, some texts at a time; raises what `llm.errors` lists.

        A text longer than the model's context is refused, or cut with `config.overflow` "trim".
        """
        vectors: Vectors = ()
        tokens = 0
        for part in batches(request):
            body = embed_body(
                part, truncate=self.config.overflow == "trim", keep_alive=self.config.keep_alive
            )
            try:
                payload = await self._call("POST", "/api/embed", body)
            except BadRequest as error:
                raise self._explained(error, request.model) from error.__cause__
            with reading_from(self._address.origin):
                found, counted = read_embed(payload, part)
            vectors, tokens = vectors + found, tokens + counted
        check_sizes(vectors)
        return Embeddings(vectors=vectors, model=request.model, backend=self.backend, prompt_tokens=tokens)

    async def capabilities(self) -> Capabilities:
        """What the configured model can do, from /api/show; asked once, and nothing is loaded.

        Raises:
            LLMError: the server cannot be reached, or does not have the model.
        """
        try:
            async with asyncio.timeout(self._probe_seconds()):
                return await self._capabilities(self.config.model)
        except TimeoutError as error:
            msg = f"Ollama at {self._address.origin} did not describe its model in time"
            raise DeadlineExceeded(msg) from error
        except BadRequest as error:
            raise self._explained(error, self.config.model) from error.__cause__

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
        return await self._exchange.request_json(method, self._url(path), headers=self._headers, body=body)

    def _url(self, path: str) -> str:
        return self._address.full_url(path)

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
