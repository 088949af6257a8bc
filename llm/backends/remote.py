"""RemoteBackend: OpenAI, Anthropic, and every server that speaks as one of the two."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from llm.backends.address import Address, guard_clear_text, parse_address
from llm.backends.http import HttpExchange, folded, reading_from
from llm.client import LLMClient
from llm.config import LLMConfig
from llm.errors import AuthenticationFailed, BadRequest, LLMError, ModelNotFound
from llm.events import Observer
from llm.middleware.base import Middleware
from llm.types import Chunk, LLMRequest, LLMResponse
from llm.wire import anthropic, openai
from llm.wire.takes import Takes

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
) -> LLMResponse:
    """Ask an OpenAI-compatible server for one chat completion.

    Args:
        exchange: sends it.
        request: the call.
        base: base URL, usually ending in /v1.
        key: bearer key, None for a server that needs none.
        backend: name of the backend for the response.
        takes: what may be sent for the model; everything if None.

    Raises:
        LLMError: see `llm.errors`.
    """
    payload = await exchange.request_json(
        "POST",
        f"{base.rstrip('/')}/chat/completions",
        headers=_bearer(key),
        body=openai.chat_body(request, takes or Takes()),
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
) -> AsyncGenerator[Chunk, None]:
    """The same in pieces, an async generator; the arguments are those of `openai_chat`.

    Raises:
        LLMError: see `llm.errors`; raised while it is read.
    """
    values = exchange.stream(
        "POST",
        f"{base.rstrip('/')}/chat/completions",
        headers=_bearer(key),
        body=openai.chat_body(request, takes or Takes(), stream=True),
    )
    return folded(values, openai.ChatStream(request, backend=backend), parse_address(base).origin)


def _bearer(key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


@dataclass(frozen=True, slots=True)
class Service:
    """Which service is asked, and how it wants to be spoken to.

    Attributes:
        address: its base URL, path included.
        speaks_anthropic: the Messages API if true, chat completions otherwise.
    """

    address: Address
    speaks_anthropic: bool

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
    if not path or path.endswith("/anthropic"):
        path += "/v1"
    return Service(replace(address, path=path), anthropics)


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
        self._service = choose_service(config)
        guard_clear_text(self._service.address, key=config.api_key, backend=self.backend)
        self._exchange = HttpExchange(config, way_out="check the network and LLM_API_BASE")
        self._takes: dict[str, Takes] = {}

    async def send(self, request: LLMRequest) -> LLMResponse:
        """Ask the service; a parameter that it says the model cannot take is left out from then on.

        Raises:
            LLMError: see `llm.errors`.
        """
        self._need_key()
        tried: list[Takes] = []
        while True:
            takes = self._known(request)
            tried.append(takes)
            try:
                return await self._ask(request, takes)
            except BadRequest as error:
                if not self._narrowed(request, takes, error, tried):
                    raise

    async def send_stream(self, request: LLMRequest) -> AsyncGenerator[Chunk, None]:
        """The same in pieces; what the model cannot take is found out before the first piece.

        Raises:
            LLMError: see `llm.errors`.
        """
        self._need_key()
        tried: list[Takes] = []
        begun = False
        while True:
            takes = self._known(request)
            tried.append(takes)
            try:
                async with aclosing(self._ask_stream(request, takes)) as chunks:
                    async for chunk in chunks:
                        begun = True
                        yield chunk
            except BadRequest as error:
                if begun or not self._narrowed(request, takes, error, tried):
                    raise
            else:
                return

    def _narrowed(self, request: LLMRequest, takes: Takes, error: BadRequest, tried: Sequence[Takes]) -> bool:
        """Whether the complaint names a parameter that can be left out, which it is from now on."""
        narrower = None if isinstance(error, ModelNotFound) else takes.after(str(error))
        if narrower is None or narrower in tried:
            return False
        self._takes[request.model] = narrower
        _warn(request, narrower)
        return True

    def _known(self, request: LLMRequest) -> Takes:
        """What the model takes as far as is known; said once, when it is asked for the first time."""
        if request.model not in self._takes:
            if self._service.speaks_anthropic:
                found = anthropic.takes(anthropic.full_name(request.model))
            else:
                found = openai.takes(request.model, vendor=self._service.is_vendor)
            self._takes[request.model] = found
            _warn(request, found)
        return self._takes[request.model]

    def _need_key(self) -> None:
        address = self._service.address
        if self._service.is_vendor and not self.config.api_key and not address.secret:
            msg = f"{address.origin} needs a key: set LLM_API_KEY, or LLM_BACKEND to a local backend"
            raise AuthenticationFailed(msg)

    async def _ask(self, request: LLMRequest, takes: Takes) -> LLMResponse:
        if self._service.speaks_anthropic:
            return await self._ask_anthropic(request, takes)
        return await openai_chat(
            self._exchange,
            request,
            base=self._service.address.full_url(""),
            key=self.config.api_key,
            backend=self.backend,
            takes=takes,
        )

    async def _ask_anthropic(self, request: LLMRequest, takes: Takes) -> LLMResponse:
        if self._service.is_vendor:
            request = replace(request, model=anthropic.full_name(request.model))
        payload = await self._exchange.request_json(
            "POST",
            self._service.address.full_url("/messages"),
            headers=self._headers(),
            body=anthropic.messages_body(request, takes),
        )
        with reading_from(self._service.address.origin):
            return anthropic.read_message(payload, request, backend=self.backend)

    def _ask_stream(self, request: LLMRequest, takes: Takes) -> AsyncGenerator[Chunk, None]:
        if not self._service.speaks_anthropic:
            return openai_stream(
                self._exchange,
                request,
                base=self._service.address.full_url(""),
                key=self.config.api_key,
                backend=self.backend,
                takes=takes,
            )
        if self._service.is_vendor:
            request = replace(request, model=anthropic.full_name(request.model))
        values = self._exchange.stream(
            "POST",
            self._service.address.full_url("/messages"),
            headers=self._headers(),
            body=anthropic.messages_body(request, takes, stream=True),
        )
        fold = anthropic.MessageStream(request, backend=self.backend)
        return folded(values, fold, self._service.address.origin)

    def _headers(self) -> dict[str, str]:
        key = self.config.api_key
        if not self._service.speaks_anthropic:
            return _bearer(key)
        return {"anthropic-version": anthropic.VERSION} | ({"x-api-key": key} if key else {})

    async def health_check(self) -> bool:
        """Whether the service lists its models for this key, within 5 s. Never raises, costs no tokens."""
        try:
            self._need_key()
            async with asyncio.timeout(min(PROBE_SECONDS, self.config.timeout)):
                url = self._service.address.full_url("/models")
                await self._exchange.request_json("GET", url, headers=self._headers())
        except (LLMError, TimeoutError):
            return False
        return True

    async def _release(self) -> None:
        await self._exchange.aclose()


_SAMPLING: Mapping[str, Callable[[Takes], bool]] = {
    "temperature": lambda takes: takes.temperature,
    "top_p": lambda takes: takes.top_p and takes.both,
    "seed": lambda takes: takes.seed,
}


def _warn(request: LLMRequest, takes: Takes) -> None:
    """Say what the model cannot take, unless it is a default that nobody chose."""
    asked: Mapping[str, Any] = {name: getattr(request, name) for name in _SAMPLING}
    dropped = [
        name
        for name, value in asked.items()
        if value is not None and value != _DEFAULTS[name] and not _SAMPLING[name](takes)
    ]
    if dropped:
        _log.warning("%s does not take %s: left out of every call", request.model, " and ".join(dropped))
