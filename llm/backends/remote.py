"""RemoteBackend: OpenAI, Anthropic, and every server that speaks as one of the two."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, fields, replace
from typing import ClassVar

from llm.backends.address import Address, guard_clear_text, parse_address
from llm.backends.http import HttpExchange, reading_from
from llm.client import LLMClient
from llm.config import LLMConfig
from llm.errors import (
    AuthenticationFailed,
    BadRequest,
    ConfigurationError,
    LLMError,
    ModelNotFound,
    NotSupported,
)
from llm.events import Observer, ParameterDropped
from llm.middleware.base import Middleware
from llm.overflow import ROUNDS, shortened, too_long
from llm.types import Capabilities, Chunk, Embeddings, EmbedRequest, LLMRequest, LLMResponse
from llm.wire import anthropic, openai
from llm.wire.gateways import OPENAI, Gateway, gateway_of
from llm.wire.takes import EVERYTHING, Takes
from llm.wire.vectors import Vectors, batches, check_sizes, openai_body, read_openai

OPENAI_BASE = "https://api.openai.com/v1"
ANTHROPIC_BASE = "https://api.anthropic.com/v1"
PROBE_SECONDS = 5.0
"""Longest wait of a health check."""

_VENDORS = ("openai.com", "anthropic.com")
_DEFAULTS = {f.name: f.default for f in fields(LLMConfig)}

_log = logging.getLogger(__name__)


async def openai_chat(
    exchange: HttpExchange,
    request: LLMRequest,
    *,
    base: str,
    key: str | None,
    backend: str,
    takes: Takes | None = None,
    headers: Mapping[str, str] | None = None,
) -> LLMResponse:
    """Ask an OpenAI-compatible server for one chat completion.

    Args:
        exchange: sends it.
        request: the call.
        base: base URL, usually ending in /v1.
        key: bearer key, None for a server that needs none.
        backend: name of the backend for the response.
        takes: what may be sent for the model; everything if None.
        headers: what to send instead of the bearer key.

    Raises:
        LLMError: see `llm.errors`.
    """
    payload = await exchange.request_json(
        "POST",
        f"{base.rstrip('/')}/chat/completions",
        headers=_bearer(key) if headers is None else headers,
        body=openai.chat_body(request, takes or EVERYTHING),
    )
    with reading_from(parse_address(base).origin):
        return openai.read_chat(payload, request, backend=backend)


def openai_stream(
    exchange: HttpExchange,
    request: LLMRequest,
    *,
    base: str,
    key: str | None,
    backend: str,
    takes: Takes | None = None,
    headers: Mapping[str, str] | None = None,
) -> AsyncGenerator[Chunk, None]:
    """The same in pieces, an async generator; the arguments are those of `openai_chat`.

    Raises:
        LLMError: see `llm.errors`; raised while it is read.
    """
    return exchange.chunks(
        "POST",
        f"{base.rstrip('/')}/chat/completions",
        openai.ChatStream(request, backend=backend),
        headers=_bearer(key) if headers is None else headers,
        body=openai.chat_body(request, takes or EVERYTHING, stream=True),
    )


async def openai_embed(
    exchange: HttpExchange, request: EmbedRequest, *, base: str, headers: Mapping[str, str], backend: str
) -> Embeddings:
    """Ask an OpenAI-compatible server for embeddings, some texts at a time.

    Args:
        exchange: sends it.
        request: the texts.
        base: base URL, usually ending in /v1.
        headers: with the key, if the server needs one.
        backend: name of the backend for the answer.

    Raises:
        LLMError: see `llm.errors`.
    """
    vectors: Vectors = ()
    tokens = 0
    for part in batches(request):
        payload = await exchange.request_json(
            "POST", f"{base.rstrip('/')}/embeddings", headers=headers, body=openai_body(part)
        )
        with reading_from(parse_address(base).origin):
            found, counted = read_openai(payload, part)
        vectors, tokens = vectors + found, tokens + counted
    check_sizes(vectors)
    return Embeddings(vectors=vectors, model=request.model, backend=backend, prompt_tokens=tokens)


def _bearer(key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


@dataclass(frozen=True, slots=True)
class Service:
    """Which service is asked, and how it wants to be spoken to.

    Attributes:
        address: its base URL, path included.
        speaks_anthropic: the Messages API if true, chat completions otherwise.
        gateway: in what it differs from OpenAI, if it speaks as that does.
    """

    address: Address
    speaks_anthropic: bool
    gateway: Gateway = OPENAI

    @property
    def is_vendor(self) -> bool:
        """Whether it is OpenAI or Anthropic itself, and no gateway."""
        return _within(self.address.host, *_VENDORS)


def _within(host: str, *domains: str) -> bool:
    return any(host == domain or host.endswith(f".{domain}") for domain in domains)


def choose_service(config: LLMConfig) -> Service:
    """Find the service from the base and, without one, from the model's name: "claude..." is Anthropic's.

    A gateway is spoken to as OpenAI is, whatever model is asked for, unless its path says /anthropic.

    Raises:
        ConfigurationError: LLM_API_BASE cannot be used.
    """
    if config.api_base is None:
        anthropics = config.model.removeprefix("anthropic/").startswith("claude")
        return Service(parse_address(ANTHROPIC_BASE if anthropics else OPENAI_BASE), anthropics)
    address = parse_address(config.api_base)
    path = address.path.removesuffix("/chat/completions").removesuffix("/messages")
    says_so = path.removesuffix("/v1").endswith("/anthropic")
    anthropics = says_so or _within(address.host, "anthropic.com")
    gateway = gateway_of(address.host, private=address.is_private)
    if path.endswith("/anthropic"):
        path += "/v1"
    return Service(replace(address, path=path or gateway.base), anthropics, gateway)


class RemoteBackend(LLMClient):
    """A model behind an HTTP API: OpenAI's, Anthropic's or a compatible one.

    Raises:
        ConfigurationError: LLM_API_BASE cannot be used, or the key would travel in clear text.
    """

    backend: ClassVar[str] = "remote"

    def __init__(
        self,
        config: LLMConfig,
        *,
        middleware: Sequence[Middleware] = (),
        observers: Sequence[Observer] = (),
    ) -> None:
        super().__init__(config, middleware=middleware, observers=observers)
        self._service = service = choose_service(config)
        guard_clear_text(service.address, key=config.api_key, backend=self.backend)
        self.server_address = service.address.host_and_port
        self.provider_name = "anthropic" if service.speaks_anthropic else service.gateway.provider
        self._exchange = HttpExchange(config, way_out="check the network and LLM_API_BASE")
        self._base = service.address.full_url("")
        self._version = _checked_version(config.api_version)
        self._headers = self._authorization()
        self._takes: dict[str, Takes] = {}
        self._dropped: set[tuple[str, str]] = set()

    def _authorization(self) -> dict[str, str]:
        key = self.config.api_key
        if not self._service.speaks_anthropic:
            return self._service.gateway.authorization(key)
        return {"anthropic-version": self._version} | ({"x-api-key": key} if key else {})

    async def send(self, request: LLMRequest) -> LLMResponse:
        """Ask the service; a parameter that it says the model cannot take is left out from then on.

        Raises:
            LLMError: see `llm.errors`.
        """
        self._need_key()
        tries = _Tries()
        while True:
            takes = self._known(request)
            try:
                return await self._ask(request, takes)
            except BadRequest as error:
                request = self._second_try(request, takes, error, tries)

    async def send_stream(self, request: LLMRequest) -> AsyncGenerator[Chunk, None]:
        """The same in pieces; what the model cannot take is found out before the first piece.

        Raises:
            LLMError: see `llm.errors`.
        """
        self._need_key()
        tries = _Tries()
        begun = False
        while True:
            takes = self._known(request)
            try:
                async with aclosing(self._ask_stream(request, takes)) as chunks:
                    async for chunk in chunks:
                        begun = True
                        yield chunk
            except BadRequest as error:
                if begun:
                    raise
                request = self._second_try(request, takes, error, tries)
            else:
                return

    async def send_embed(self, request: EmbedRequest) -> Embeddings:
        """Ask for vectors, some texts at a time.

        Raises:
            NotSupported: Anthropic makes none.
            LLMError: see `llm.errors`.
        """
        self._need_key()
        if self._service.speaks_anthropic:
            msg = "Anthropic makes no embeddings; use OpenAI, ollama or llamacpp for them"
            raise NotSupported(msg)
        return await openai_embed(
            self._exchange, request, base=self._base, headers=self._headers, backend=self.backend
        )

    async def capabilities(self) -> Capabilities:
        """What the configured model can do as far as its name tells; nobody is asked."""
        model, takes = self.config.model, self._takes_of(self.config.model)
        if self._service.speaks_anthropic:
            return replace(anthropic.capabilities(anthropic.full_name(model), takes), model=model)
        return openai.capabilities(model, self._service.gateway, takes)

    def _second_try(self, request: LLMRequest, takes: Takes, error: BadRequest, tries: _Tries) -> LLMRequest:
        """What to ask instead of what was refused: without a parameter, or with less text.

        Raises:
            BadRequest: nothing; the refusal as it is.
        """
        tries.takes.append(takes)
        narrower = None if isinstance(error, ModelNotFound) else takes.after(str(error))
        if narrower is not None and narrower not in tries.takes:
            self._takes[request.model] = narrower
            return request
        told = too_long(str(error))
        if told is not None and self.config.overflow == "trim" and tries.cuts < ROUNDS:
            tries.cuts += 1
            shorter = shortened(request, told)
            if shorter is not None:
                _log.warning(
                    "a prompt for %s is longer than its context; the oldest turns or the middle of the "
                    "longest are left out (LLM_OVERFLOW=trim)",
                    request.model,
                )
                return shorter
        raise error

    def _known(self, request: LLMRequest) -> Takes:
        """What the model takes as far as is known; what is asked for and cannot be sent is said once."""
        takes = self._takes_of(request.model)
        fresh = [
            name
            for name in takes.without(request)
            if (request.model, name) not in self._dropped and getattr(request, name) != _DEFAULTS.get(name)
        ]
        if fresh:
            self._dropped |= {(request.model, name) for name in fresh}
            _log.warning("%s does not take %s: left out of every call", request.model, " and ".join(fresh))
            for name in fresh:
                self.emit(
                    ParameterDropped(
                        backend=self.name, model=request.model, caller=request.caller, parameter=name
                    )
                )
        return takes

    def _takes_of(self, model: str) -> Takes:
        found = self._takes.get(model)
        if found is None:
            service = self._service
            if service.speaks_anthropic:
                found = anthropic.takes(anthropic.full_name(model), self._version)
            elif service.gateway.names_say:
                found = openai.takes(model, vendor=True)
            else:
                found = service.gateway.takes
            self._takes[model] = found
        return found

    def _need_key(self) -> None:
        if self.config.api_key or self._service.address.secret or not self._service.is_vendor:
            return
        origin = self._service.address.origin
        msg = f"{origin} needs a key: set LLM_API_KEY, or LLM_BACKEND to a local backend"
        raise AuthenticationFailed(msg)

    async def _ask(self, request: LLMRequest, takes: Takes) -> LLMResponse:
        if self._service.speaks_anthropic:
            return await self._ask_anthropic(request, takes)
        return await openai_chat(
            self._exchange,
            request,
            base=self._base,
            key=None,
            backend=self.backend,
            takes=takes,
            headers=self._headers,
        )

    async def _ask_anthropic(self, request: LLMRequest, takes: Takes) -> LLMResponse:
        named = self._named(request)
        payload = await self._exchange.request_json(
            "POST",
            f"{self._base}/messages",
            headers=self._headers,
            body=anthropic.messages_body(named, takes),
        )
        with reading_from(self._service.address.origin):
            return anthropic.read_message(payload, named, backend=self.backend)

    def _ask_stream(self, request: LLMRequest, takes: Takes) -> AsyncGenerator[Chunk, None]:
        if not self._service.speaks_anthropic:
            return openai_stream(
                self._exchange,
                request,
                base=self._base,
                key=None,
                backend=self.backend,
                takes=takes,
                headers=self._headers,
            )
        named = self._named(request)
        return self._exchange.chunks(
            "POST",
            f"{self._base}/messages",
            anthropic.MessageStream(named, backend=self.backend),
            headers=self._headers,
            body=anthropic.messages_body(named, takes, stream=True),
        )

    def _named(self, request: LLMRequest) -> LLMRequest:
        """With the model's whole name, if it is Anthropic that is asked."""
        if not self._service.is_vendor:
            return request
        return replace(request, model=anthropic.full_name(request.model))

    async def health_check(self) -> bool:
        """Whether the service lists its models for this key, within 5 s. Never raises, costs no tokens."""
        try:
            self._need_key()
            async with asyncio.timeout(min(PROBE_SECONDS, self.config.timeout)):
                await self._exchange.request_json("GET", f"{self._base}/models", headers=self._headers)
        except (LLMError, TimeoutError):
            return False
        return True

    async def _release(self) -> None:
        await self._exchange.aclose()


@dataclass(slots=True)
class _Tries:
    """What was tried during one call, so that it ends."""

    takes: list[Takes] = field(default_factory=list)
    cuts: int = 0


def _checked_version(version: str | None) -> str:
    """Anthropic's version, which is a date."""
    if version is None:
        return anthropic.VERSION
    if re.fullmatch(r"\d{4}-\d{2}-\d{2}", version) is None:
        msg = f"LLM_API_VERSION (api_version) must be a date such as {anthropic.VERSION}, not {version!r}"
        raise ConfigurationError(msg)
    return version
