"""LLMClient: what a caller holds. A backend is a subclass that says how one request is sent."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from functools import wraps
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar, Unpack, overload
from weakref import WeakSet

from llm.caller import current_caller, new_call_id, under_call
from llm.config import LLMConfig
from llm.deadline import deadline
from llm.errors import (
    BadReply,
    CallCancelled,
    DeadlineExceeded,
    NotSupported,
)
from llm.events import CallEvent, Observer
from llm.middleware.base import Middleware, chain, chain_embeds, chain_streams
from llm.options import SETTINGS, CallOptions, ReplyOptions, cache_mode, refuse_unknown
from llm.stats import Stats
from llm.streams import LLMStream
from llm.structured import as_json_schema, ask, validate
from llm.types import (
    Capabilities,
    Chunk,
    Embeddings,
    EmbedRequest,
    JSONSchema,
    LLMMessage,
    LLMRequest,
    LLMResponse,
    StreamEnd,
    TextChunk,
)
from llm.watch import Watch

if TYPE_CHECKING:
    from pydantic import BaseModel

    from llm.middleware.accountant import BudgetStatus
    from llm.stores.base import StoreStats
    from llm.structured import Schema

    Model = TypeVar("Model", bound=BaseModel)

Request = TypeVar("Request", LLMRequest, EmbedRequest)
Answer = TypeVar("Answer", LLMResponse, Embeddings)

_log = logging.getLogger(__name__)

Check = Callable[[Any], Coroutine[Any, Any, bool]]

_VARIANTS = 64  # different sets of options whose checked configuration is kept


class LLMClient(ABC):
    """A model that can be asked. Subclasses implement `send` and `health_check`; the rest is here.

    A call passes through the middleware (the cache and what else the factory put there) and then to
    `send`, all of it within one total deadline. Whatever goes wrong comes out as an `LLMError`.

    Args:
        config: how to reach the model; `config.backend` may differ from `backend` (a fallback).
        middleware: wrappers round `send`, the first one outermost.
        observers: called with every event of `llm.events`.
        name: what events and messages call it, where one program has several; the backend's name if empty.

    Attributes:
        provider_name: whose model it is, in the words of OpenTelemetry's conventions; empty: as the backend.
        server_address: host and port of its server; empty for an engine of our own.
    """

    backend: ClassVar[str]
    provider_name: str = ""
    server_address: str = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "health_check" in cls.__dict__:  # here, so that a backend has nothing to do for it
            check = _telling(cls.health_check)
            cls.health_check = check  # type: ignore[method-assign, assignment]  # replaced on purpose

    def __init__(
        self,
        config: LLMConfig,
        *,
        middleware: Sequence[Middleware] = (),
        observers: Sequence[Observer] = (),
        name: str = "",
    ) -> None:
        self.config = config
        self.name = name or self.backend
        self._middleware = tuple(middleware)
        self._stats = Stats()
        self._observers: tuple[Observer, ...] = (self._stats, *observers)
        self._connect()
        self._quick = [w.at_once for w in self._middleware if type(w).at_once is not Middleware.at_once]
        self._handle = chain(self._middleware, self._observed_send)
        self._handle_stream = chain_streams(self._middleware, self._observed_stream)
        self._handle_embed = chain_embeds(self._middleware, self._observed_embed)
        self._variants: dict[tuple[Any, ...], LLMConfig] = {}
        self._in_flight: set[asyncio.Timeout] = set()
        self._streams: WeakSet[LLMStream] = WeakSet()
        self._drained: asyncio.Future[None] | None = None
        self._closed = False

    def rename(self, name: str) -> None:
        """Call it `name` in events and messages, where one program has several of its kind."""
        self.name = name
        self._connect()

    def _connect(self) -> None:
        for wrapper in self._middleware:
            wrapper.connect(self.name, self.emit)

    # What a backend implements.

    @abstractmethod
    async def send(self, request: LLMRequest) -> LLMResponse:
        """Send one request to the backend and return its answer; no cache, no retry, no deadline.

        Raises:
            LLMError: anything that went wrong, translated.
        """

    async def send_stream(self, request: LLMRequest) -> AsyncGenerator[Chunk, None]:
        """The same in pieces, an async generator; a backend that cannot gives its whole answer as one piece.

        Closing the generator must end the work at the other end. A source that ends without its end is a
        `BadReply`, never a short answer.

        Raises:
            LLMError: anything that went wrong, translated.
        """
        response = await self.send(request)
        if response.content:
            yield TextChunk(response.content)
        yield StreamEnd(response)

    async def send_embed(self, request: EmbedRequest) -> Embeddings:
        """Turn texts into vectors of length 1.

        Raises:
            NotSupported: this backend cannot.
            LLMError: anything else that went wrong, translated.
        """
        del request
        msg = f"the {self.backend} backend makes no embeddings; use ollama, remote, llamacpp or mlx for them"
        raise NotSupported(msg)

    @abstractmethod
    async def health_check(self) -> bool:
        """Whether the backend answers and has the model. Never raises, never loads a model."""

    async def capabilities(self) -> Capabilities:
        """What the configured model can do, as far as is known without loading it.

        Raises:
            LLMError: the backend had to be asked, and did not answer.
        """
        return Capabilities(model=self.config.model)

    async def fingerprint(self, model: str) -> str:  # noqa: ARG002 - for those that override it
        """What tells apart two models of one name, such as the digest of its weights; empty when unknown.

        The response cache asks now and then, and never takes a reply of the one for a reply of the other.
        """
        return ""

    async def _release(self) -> None:
        """Close what the backend itself holds open; called once, after the last call ended."""
        return

    # What a caller uses.

    async def generate(
        self, prompt: str, system_prompt: str | None = None, **options: Unpack[ReplyOptions]
    ) -> LLMResponse:
        """Answer one prompt.

        Args:
            prompt: what to ask.
            system_prompt: how the model shall behave.
            options: see `CallOptions`.

        Raises:
            LLMError: see `llm.errors`.
        """
        request, seconds = self._request(_turns(prompt, system_prompt), options)
        return await self.complete(request, timeout=seconds)

    async def chat(self, messages: Sequence[LLMMessage], **options: Unpack[ReplyOptions]) -> LLMResponse:
        """Answer a conversation of several turns; the options are those of `CallOptions`.

        Raises:
            LLMError: see `llm.errors`.
            ValueError: `messages` is empty.
        """
        request, seconds = self._request(messages, options)
        return await self.complete(request, timeout=seconds)

    def stream(
        self, prompt: str, system_prompt: str | None = None, **options: Unpack[ReplyOptions]
    ) -> LLMStream:
        """Answer one prompt in pieces, as they come; nothing is sent before the first piece is asked for.

        The arguments are those of `generate`; errors are raised while it is read.
        """
        return self.stream_chat(_turns(prompt, system_prompt), **options)

    def stream_chat(self, messages: Sequence[LLMMessage], **options: Unpack[ReplyOptions]) -> LLMStream:
        """Answer a conversation in pieces; see `stream` and `chat`.

        Raises:
            ConfigurationError: an option cannot work.
            ValueError: `messages` is empty.
        """
        request, seconds = self._request(messages, options)
        return self.complete_stream(request, timeout=seconds)

    @overload
    async def structured(
        self,
        prompt: str,
        schema: type[Model],
        system_prompt: str | None = None,
        **options: Unpack[CallOptions],
    ) -> Model: ...

    @overload
    async def structured(
        self,
        prompt: str,
        schema: JSONSchema,
        system_prompt: str | None = None,
        **options: Unpack[CallOptions],
    ) -> Any: ...

    async def structured(
        self, prompt: str, schema: Schema, system_prompt: str | None = None, **options: Unpack[CallOptions]
    ) -> Any:
        """Answer one prompt with an object that fits `schema`.

        Args:
            prompt: what to ask; the schema's fields are written below it.
            schema: a pydantic model class, or a JSON schema.
            system_prompt: how the model shall behave.
            options: see `CallOptions`.

        Returns:
            An instance of the model class; plain data for a JSON schema.

        Raises:
            SchemaMismatch: the reply does not fit, also after the model was shown its mistake once.
            LLMError: see `llm.errors`.
        """
        response = await ask(self, _turns(prompt, system_prompt), schema, **options)
        return validate(schema, response.content)

    async def embed(
        self,
        texts: Sequence[str],
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - the total deadline is part of the contract
        task: str = "",
    ) -> Embeddings:
        """Turn texts into vectors of length 1, with `config.embed_model` or else `config.model`.

        Args:
            texts: what to embed, each not empty.
            timeout: total seconds, overrides the configuration.
            task: what it is for, in the ledger.

        Raises:
            NotSupported: the backend or the model makes no embeddings.
            ValueError: one of the texts is empty, or is no text.
            LLMError: see `llm.errors`.
        """
        chosen = tuple(texts)
        if isinstance(texts, str) or not all(text and isinstance(text, str) for text in chosen):
            msg = "embed() takes a list of texts, none of them empty"
            raise ValueError(msg)
        model = self.config.embed_model or self.config.model
        if not chosen:
            return Embeddings(vectors=(), model=model, backend=self.backend)
        request = EmbedRequest(texts=chosen, model=model, caller=current_caller(task))
        seconds = self.config.timeout if timeout is None else timeout
        return await self._within(self._handle_embed, request, seconds)

    # How a call is made.

    def _request(self, messages: Sequence[LLMMessage], options: ReplyOptions) -> tuple[LLMRequest, float]:
        """The finished request, every default filled in, and its total seconds."""
        if not messages:
            msg = "chat() needs at least one message"
            raise ValueError(msg)
        refuse_unknown(options)
        chosen = self._chosen(options) if options else self.config
        schema = options.get("schema")
        request = LLMRequest(
            messages=tuple(messages),
            model=chosen.model,
            temperature=chosen.temperature,
            max_tokens=chosen.max_tokens,
            top_p=chosen.top_p,
            seed=chosen.seed,
            schema=None if schema is None else as_json_schema(schema),
            stop=tuple(options.get("stop") or ()),
            think=chosen.think,
            tools=tuple(options.get("tools") or ()),
            cache=cache_mode(options.get("cache", True), chosen.cache_mode),
            max_age=chosen.cache_max_age,
            caller=current_caller(options.get("task", "")),
            template=options.get("template", ""),
        )
        return request, chosen.timeout

    def _chosen(self, options: ReplyOptions) -> LLMConfig:
        """The configuration with the options that are settings too, checked by its own rules and kept."""
        given = {SETTINGS[name]: value for name, value in options.items() if name in SETTINGS}
        overrides = {name: value for name, value in given.items() if value is not None}
        if not overrides:
            return self.config
        key = tuple((name, type(value), value) for name, value in overrides.items())
        found = self._variants.get(key)
        if found is None:
            found = self.config.with_values(**overrides)
            if len(self._variants) >= _VARIANTS:
                self._variants.clear()
            self._variants[key] = found
        return found

    async def complete(
        self,
        request: LLMRequest,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - the total deadline is part of the contract
    ) -> LLMResponse:
        """Answer a finished request within the total deadline.

        Raises:
            LLMError: see `llm.errors`.
        """
        if self._quick and not self._closed:
            for answer in self._quick:
                found = answer(request)
                if found is not None:
                    return found
        return await self._within(self._handle, request, self.config.timeout if timeout is None else timeout)

    def complete_stream(
        self,
        request: LLMRequest,
        *,
        timeout: float | None = None,
    ) -> LLMStream:
        """Answer a finished request in pieces within the total deadline.

        Raises:
            CallCancelled: the client is closed.
        """
        self._refuse_when_closed()
        seconds = self.config.timeout if timeout is None else timeout
        stream = LLMStream(
            self._handle_stream(request),
            seconds=seconds,
            too_late=lambda: self._too_late(request.model, seconds),
        )
        self._streams.add(stream)
        return stream

    async def _within(
        self, handle: Callable[[Request], Awaitable[Answer]], request: Request, seconds: float
    ) -> Answer:
        """Run one call within its deadline; closing the client ends it by moving the deadline to now."""
        self._refuse_when_closed()
        try:
            async with asyncio.timeout(seconds) as scope:
                self._in_flight.add(scope)
                token = deadline.set(scope)
                try:
                    response = await handle(request)
                finally:
                    deadline.reset(token)
                    self._leave(scope)
        except TimeoutError as error:
            if self._closed:
                msg = f"the {self.name} client was closed during the call"
                raise CallCancelled(msg) from None
            late = self._too_late(request.model, seconds)
            late.call_id = getattr(error.__cause__, "call_id", "")  # the timer's cancellation has been there
            raise late from error
        # The watch has named what came from a backend; a middleware may have answered without one.
        return response if response.call_id else replace(response, call_id=new_call_id())

    def _leave(self, scope: asyncio.Timeout) -> None:
        self._in_flight.discard(scope)
        if self._drained is not None and not self._in_flight and not self._drained.done():
            self._drained.set_result(None)

    def _refuse_when_closed(self) -> None:
        if self._closed:
            msg = f"this {self.name} client is closed; get a new one from get_llm_client()"
            raise CallCancelled(msg)

    def _too_late(self, model: str, seconds: float) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"{self.name} gave no whole answer from {model} within {seconds:g} s; "
            "raise LLM_TIMEOUT, lower LLM_MAX_TOKENS or use a smaller model"
        )

    async def _observed_send(self, request: LLMRequest) -> LLMResponse:
        watch = Watch(self, request, "chat")
        try:
            with under_call(watch.call_id):
                response = await self.send(request)
        except BaseException as error:  # noqa: BLE001 - told to the observers, and raised again
            raise watch.failed(error) from watch.cause(error)
        return watch.finished(response)

    async def _observed_embed(self, request: EmbedRequest) -> Embeddings:
        watch = Watch(self, request, "embed")
        try:
            with under_call(watch.call_id):
                found = await self.send_embed(request)
        except BaseException as error:  # noqa: BLE001 - told to the observers, and raised again
            raise watch.failed(error) from watch.cause(error)
        return watch.embedded(found)

    async def _observed_stream(self, request: LLMRequest) -> AsyncGenerator[Chunk, None]:
        watch = Watch(self, request, "chat")
        source = self.send_stream(request)
        try:
            async with aclosing(source):
                async for chunk in source:
                    if watch.first is None:
                        watch.begun()
                    if type(chunk) is StreamEnd:
                        yield StreamEnd(watch.finished(chunk.response))
                        return
                    yield chunk
            raise self._unended()  # noqa: TRY301 - told to the observers like any other failure
        except BaseException as error:
            if watch.done:
                raise
            raise watch.failed(error) from watch.cause(error)

    def _unended(self) -> BadReply:
        msg = f"the stream of {self.name} ended without its end; the answer is not whole"
        return BadReply(msg, broken=True)

    @property
    def is_closed(self) -> bool:
        """Whether `aclose` was called."""
        return self._closed

    def emit(self, event: CallEvent) -> None:
        """Tell every observer what happened; one that raises is logged and does not cost the answer."""
        for observer in self._observers:
            try:
                observer(event)
            except Exception:  # noqa: BLE001 - an observer may be anybody's code
                _log.warning("an observer failed on %s", type(event).__name__, exc_info=True)

    def get_stats(self) -> dict[str, Any]:
        """Totals since the client was made: calls, errors, retries, hits and misses, tokens, seconds."""
        return {"backend": self.backend, "model": self.config.model, **self._stats.totals()}

    async def budgets(self) -> tuple[BudgetStatus, ...]:
        """How far the budgets are used that pay for its calls, those of other programs' calls included."""
        return tuple([status for wrapper in self._middleware for status in await wrapper.budgets()])

    async def cache_stats(self) -> StoreStats | None:
        """How full the file of its response cache is, None without a cache; makes no file for it."""
        found = [await wrapper.stats() for wrapper in self._middleware]
        return next((stats for stats in found if stats is not None), None)

    async def flush(self) -> None:
        """Write the ledger of calls now; what calls cost whose price had to be looked up is told by then."""
        for wrapper in self._middleware:
            await wrapper.flush()

    async def aclose(self) -> None:
        """End calls under way (they raise `CallCancelled`) and give back connections and processes."""
        if self._closed:
            return
        self._closed = True
        msg = f"the {self.name} client was closed during the call"
        streams = tuple(self._streams)
        for stream in streams:
            stream.interrupt(CallCancelled(msg))
        for scope in tuple(self._in_flight):
            scope.reschedule(0.0)
        if self._in_flight:
            self._drained = asyncio.get_running_loop().create_future()
            await self._drained
        for stream in streams:
            await stream.landed()
        async with AsyncExitStack() as stack:  # one that fails to close does not keep the others open
            for close in (self._release, *(wrapper.aclose for wrapper in reversed(self._middleware))):
                stack.push_async_callback(close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()


def _telling(check: Check) -> Check:
    """The health check, which tells the middleware when it found the backend well: an open breaker closes."""

    @wraps(check)
    async def checked(self: LLMClient) -> bool:
        healthy = await check(self)
        if healthy:
            for wrapper in self._middleware:
                wrapper.revived()
        return healthy

    return checked


def _turns(prompt: str, system_prompt: str | None) -> list[LLMMessage]:
    turn = LLMMessage("user", prompt)
    return [LLMMessage("system", system_prompt), turn] if system_prompt else [turn]
