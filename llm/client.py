"""LLMClient: what a caller holds. A backend is a subclass that says how one request is sent."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AsyncExitStack
from contextvars import ContextVar
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self

from llm.config import LLMConfig
from llm.errors import CallCancelled, DeadlineExceeded, LLMError, ServerError
from llm.events import (
    CacheHit,
    CacheMiss,
    CallEvent,
    CallFailed,
    CallFinished,
    CallStarted,
    Observer,
)
from llm.middleware.base import Middleware, chain
from llm.structured import as_json_schema
from llm.types import LLMMessage, LLMRequest, LLMResponse

if TYPE_CHECKING:
    from llm.structured import Schema

_log = logging.getLogger(__name__)

# The running call's deadline, so that a call cut by it is not reported as cancelled by its caller.
_deadline: ContextVar[asyncio.Timeout | None] = ContextVar("llm_deadline", default=None)


class Stats:
    """Running totals of one client: an observer like any other."""

    def __init__(self) -> None:
        self.calls = self.errors = self.cache_hits = self.cache_misses = 0
        self.prompt_tokens = self.completion_tokens = 0
        self.seconds = 0.0

    def __call__(self, event: CallEvent) -> None:
        """Count one event."""
        match event:
            case CallStarted():
                self.calls += 1
            case CallFinished():
                self.prompt_tokens += event.prompt_tokens
                self.completion_tokens += event.completion_tokens
                self.seconds += event.latency
            case CallFailed():
                self.errors += 1
            case CacheHit():
                self.cache_hits += 1
            case CacheMiss():
                self.cache_misses += 1


class LLMClient(ABC):
    """A model that can be asked. Subclasses implement `send` and `health_check`; the rest is here.

    A call passes through the middleware (the cache and what else the factory put there) and then to
    `send`, all of it within one total deadline. Whatever goes wrong comes out as an `LLMError`.

    Args:
        config: how to reach the model; `config.backend` may differ from `backend` (a fallback).
        middleware: wrappers round `send`, the first one outermost.
        observers: called with every event of `llm.events`.
    """

    backend: ClassVar[str]

    def __init__(
        self,
        config: LLMConfig,
        *,
        middleware: Sequence[Middleware] = (),
        observers: Sequence[Observer] = (),
    ) -> None:
        self.config = config
        self._middleware = tuple(middleware)
        self._stats = Stats()
        self._observers: tuple[Observer, ...] = (self._stats, *observers)
        for wrapper in self._middleware:
            wrapper.connect(self.backend, self.emit)
        self._handle = chain(self._middleware, self._observed_send)
        self._in_flight: set[asyncio.Task[LLMResponse]] = set()
        self._closed = False

    @abstractmethod
    async def send(self, request: LLMRequest) -> LLMResponse:
        """Send one request to the backend and return its answer; no cache, no retry, no deadline.

        Raises:
            LLMError: anything that went wrong, translated.
        """

    @abstractmethod
    async def health_check(self) -> bool:
        """Whether the backend answers and has the model. Never raises, never loads a model."""

    async def generate(
        self,
        prompt: str,
        system_prompt: str | None = None,
        *,
        temperature: float | None = None,
        max_tokens: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        schema: Schema | None = None,
        cache: bool = True,
        timeout: float | None = None,  # noqa: ASYNC109 - the total deadline is part of the contract
    ) -> LLMResponse:
        """Answer one prompt.

        Args:
            prompt: what to ask.
            system_prompt: how the model shall behave.
            temperature: overrides the configuration; 0 is greedy.
            max_tokens: overrides the configuration.
            top_p: overrides the configuration.
            seed: overrides the configuration.
            schema: pydantic model class or JSON schema that the reply is constrained to.
            cache: False neither reads nor fills the response cache.
            timeout: total seconds, overrides the configuration.

        Raises:
            LLMError: see `llm.errors`.
        """
        turns = [LLMMessage("user", prompt)]
        if system_prompt:
            turns.insert(0, LLMMessage("system", system_prompt))
        return await self.chat(
            turns,
            temperature=temperature,
            max_tokens=max_tokens,
            top_p=top_p,
            seed=seed,
            schema=schema,
            cache=cache,
            timeout=timeout,
        )

    async def chat(
        self,
        messages: Sequence[LLMMessage],
        *,
        temperature: float | None = None,
        max_tokens: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        schema: Schema | None = None,
        cache: bool = True,
        timeout: float | None = None,  # noqa: ASYNC109 - the total deadline is part of the contract
    ) -> LLMResponse:
        """Answer a conversation of several turns; the options are those of `generate`.

        Raises:
            LLMError: see `llm.errors`.
            ValueError: `messages` is empty.
        """
        if not messages:
            msg = "chat() needs at least one message"
            raise ValueError(msg)
        # Checked by LLMConfig's own rules, so that a bad override is named like a bad setting.
        options = {
            "temperature": temperature,
            "max_tokens": max_tokens,
            "top_p": top_p,
            "seed": seed,
            "timeout": timeout,
        }
        overrides = {name: value for name, value in options.items() if value is not None}
        chosen = self.config.with_values(**overrides) if overrides else self.config
        request = LLMRequest(
            messages=tuple(messages),
            model=chosen.model,
            temperature=chosen.temperature,
            max_tokens=chosen.max_tokens,
            top_p=chosen.top_p,
            seed=chosen.seed,
            schema=None if schema is None else as_json_schema(schema),
            use_cache=cache,
        )
        return await self.complete(request, timeout=chosen.timeout)

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
        if self._closed:
            msg = f"this {self.backend} client is closed; get a new one from get_llm_client()"
            raise CallCancelled(msg)
        seconds = self.config.timeout if timeout is None else timeout
        task = asyncio.ensure_future(self._within(request, seconds))
        self._in_flight.add(task)
        task.add_done_callback(self._in_flight.discard)
        try:
            return await task
        except asyncio.CancelledError:
            if self._cut_by_closing():
                msg = f"the {self.backend} client was closed during the call"
                raise CallCancelled(msg) from None
            raise

    def _cut_by_closing(self) -> bool:
        """Whether a cancelled call was cancelled by `aclose` and not by its caller."""
        current = asyncio.current_task()
        return self._closed and not (current is not None and current.cancelling())

    async def _within(self, request: LLMRequest, seconds: float) -> LLMResponse:
        try:
            async with asyncio.timeout(seconds) as scope:
                _deadline.set(scope)
                response = await self._handle(request)
                return replace(response, call_id=uuid.uuid4().hex)
        except TimeoutError as error:
            msg = (
                f"{self.backend} gave no whole answer from {request.model} within {seconds:g} s; "
                "raise LLM_TIMEOUT, lower LLM_MAX_TOKENS or use a smaller model"
            )
            raise DeadlineExceeded(msg) from error

    async def _observed_send(self, request: LLMRequest) -> LLMResponse:
        started = time.perf_counter()
        self.emit(CallStarted(backend=self.backend, model=request.model))
        try:
            response = await self.send(request)
        except LLMError as error:
            self._emit_failure(request, started, error.code)
            raise
        except asyncio.CancelledError:
            scope = _deadline.get()
            late = scope is not None and scope.expired()
            code = DeadlineExceeded.code if late else CallCancelled.code
            self._emit_failure(request, started, code)
            raise
        except Exception as error:
            # The promise of the error tree: whatever a backend or its library throws, callers see LLMError.
            self._emit_failure(request, started, ServerError.code)
            msg = f"the {self.backend} backend failed unexpectedly ({type(error).__name__})"
            raise ServerError(msg) from error
        response = replace(response, latency=time.perf_counter() - started)
        self.emit(
            CallFinished(
                backend=self.backend,
                model=request.model,
                latency=response.latency,
                prompt_tokens=response.prompt_tokens,
                completion_tokens=response.completion_tokens,
            )
        )
        return response

    def _emit_failure(self, request: LLMRequest, started: float, code: str) -> None:
        latency = time.perf_counter() - started
        self.emit(CallFailed(backend=self.backend, model=request.model, latency=latency, code=code))

    def emit(self, event: CallEvent) -> None:
        """Tell every observer what happened; one that raises is logged and does not cost the answer."""
        for observer in self._observers:
            try:
                observer(event)
            except Exception:  # noqa: BLE001 - an observer may be anybody's code
                _log.warning("an observer failed on %s", type(event).__name__, exc_info=True)

    def get_stats(self) -> dict[str, Any]:
        """Totals since the client was made: calls, errors, cache hits and misses, tokens, seconds."""
        stats = self._stats
        return {
            "backend": self.backend,
            "model": self.config.model,
            "calls": stats.calls,
            "errors": stats.errors,
            "cache_hits": stats.cache_hits,
            "cache_misses": stats.cache_misses,
            "prompt_tokens": stats.prompt_tokens,
            "completion_tokens": stats.completion_tokens,
            "tokens_used": stats.prompt_tokens + stats.completion_tokens,
            "seconds": stats.seconds,
        }

    async def aclose(self) -> None:
        """Cancel calls under way (they raise `CallCancelled`) and give back connections and processes."""
        if self._closed:
            return
        self._closed = True
        tasks = tuple(self._in_flight)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        async with AsyncExitStack() as stack:  # one that fails to close does not keep the others open
            for close in (self._release, *(wrapper.aclose for wrapper in reversed(self._middleware))):
                stack.push_async_callback(close)

    async def _release(self) -> None:
        """Close what the backend itself holds open; called once, after the last call ended."""
        return

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()
