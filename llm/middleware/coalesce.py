"""Identical calls under way at the same time are one call to the backend.

The call runs in a task of its own, for as long as somebody waits for it: whoever is cancelled or out of time
leaves the others alone, and the last one to leave ends the call. Its pieces are kept until it is over, so
that who comes late to a stream reads it from its beginning. They are bounded by what bounds every reply, the
backend's cap on its bytes.

Identical means the same key, which the response cache fills in; a call that declined the cache has none, and
is always made. What an identical call keeps, and how old a kept reply it would take, makes no difference
here: the answer under way is new.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from contextvars import copy_context
from copy import copy

from llm.caller import new_call_id
from llm.deadline import deadline
from llm.errors import BadReply, CallCancelled, LLMError
from llm.events import Coalesced
from llm.middleware.base import Handler, Middleware, StreamHandler
from llm.types import Chunk, LLMRequest, LLMResponse, StreamEnd, TextChunk, ThinkingChunk


class Coalesce(Middleware):
    """Lets identical calls share the one that is under way."""

    def __init__(self) -> None:
        self._flights: dict[bytes, _Flight] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def complete(self, request: LLMRequest, call_next: Handler) -> LLMResponse:
        """Wait for the identical call under way, else make this one."""
        if request.key is None:
            return await call_next(request)
        started = time.perf_counter()
        flight, joined = self._board(request, lambda flight: _call(flight, request, call_next))
        rider = flight.enter()
        try:
            while not flight.over:
                await flight.news()
        finally:
            await self._leave(flight, rider)
        return _renamed(flight.result(joined=True), started) if joined else flight.result()

    def stream(self, request: LLMRequest, call_next: StreamHandler) -> AsyncGenerator[Chunk, None]:
        """The same in pieces, from the first one on."""
        return call_next(request) if request.key is None else self._stream(request, call_next)

    async def _stream(self, request: LLMRequest, call_next: StreamHandler) -> AsyncGenerator[Chunk, None]:
        started = time.perf_counter()
        flight, joined = self._board(request, lambda flight: _read(flight, request, call_next))
        rider = flight.enter()
        first: float | None = None
        told = 0
        try:
            while True:
                for chunk in flight.chunks[told:]:
                    told += 1
                    if first is None:
                        first = time.perf_counter() - started
                    yield chunk
                if told < len(flight.chunks):
                    continue
                if flight.over:
                    break
                await flight.news()
        finally:
            await self._leave(flight, rider)
        response = flight.result(joined=joined)
        if not told:  # the call under way is no stream
            first = time.perf_counter() - started
            if response.thinking:
                yield ThinkingChunk(response.thinking)
            if response.content:
                yield TextChunk(response.content)
        yield StreamEnd(_renamed(response, started, first) if joined else response)

    def _board(self, request: LLMRequest, fly: Callable[[_Flight], Awaitable[None]]) -> tuple[_Flight, bool]:
        """The call under way with this key, and whether it was begun by another one."""
        key = request.key or b""
        flight = self._flights.get(key)
        if flight is not None:
            self.emit(Coalesced(backend=self.backend, model=request.model, caller=request.caller))
            return flight, True
        flight = self._flights[key] = _Flight(key)
        context = copy_context()
        # Not the one of whoever began it: his deadline is not that of the others.
        context.run(deadline.set, flight)
        flight.task = asyncio.get_running_loop().create_task(self._fly(flight, fly), context=context)
        self._tasks.add(flight.task)
        flight.task.add_done_callback(self._tasks.discard)
        return flight, False

    async def _fly(self, flight: _Flight, fly: Callable[[_Flight], Awaitable[None]]) -> None:
        try:
            await fly(flight)
        except asyncio.CancelledError:
            flight.error = CallCancelled("the call that this one shared was cancelled")
            raise
        except Exception as error:  # noqa: BLE001 - raised by each of those who wait for it
            flight.error = error
        finally:
            self._forget(flight)
            flight.over = True
            flight.tell()

    async def _leave(self, flight: _Flight, rider: Callable[[], bool] | None) -> None:
        """Nobody waits any more: the call ends, and has ended when this returns."""
        flight.riders -= 1
        if flight.riders or flight.over or flight.task is None:
            return
        flight.late = rider is not None and rider()
        self._forget(flight)
        flight.task.cancel()
        await asyncio.wait({flight.task})

    def _forget(self, flight: _Flight) -> None:
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]

    async def aclose(self) -> None:
        """End what is still under way."""
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


class _Flight:
    """One call to the backend and those who wait for it."""

    __slots__ = ("_waiting", "chunks", "end", "error", "key", "late", "over", "response", "riders", "task")

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.chunks: list[Chunk] = []  # of a stream, but for its end
        self.response: LLMResponse | None = None
        self.error: Exception | None = None
        self.task: asyncio.Task[None] | None = None
        self.riders = 0
        self.end: float | None = -math.inf
        self.over = self.late = False
        self._waiting: list[asyncio.Future[None]] = []

    def enter(self) -> Callable[[], bool] | None:
        """One more who waits; what tells whether his deadline has passed."""
        self.riders += 1
        mine = deadline.get()
        end = None if mine is None else mine.when()
        self.end = None if end is None or self.end is None else max(self.end, end)
        return None if mine is None else mine.expired

    def when(self) -> float | None:
        """The latest deadline of those who wait, None if one of them has none."""
        return self.end

    def expired(self) -> bool:
        """Whether the last one who left was out of time."""
        return self.late

    async def news(self) -> None:
        """Wait for the next piece, or the end."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        await future

    def tell(self) -> None:
        """There is a next piece, or the end."""
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def result(self, *, joined: bool = False) -> LLMResponse:
        """The answer, or what each of those who waited raises; only who began it knows it by its id."""
        if self.response is not None and self.error is None:
            return self.response
        raise _again(self.error, joined=joined) from None if self.error is None else self.error.__cause__


async def _call(flight: _Flight, request: LLMRequest, call_next: Handler) -> None:
    flight.response = await call_next(request)


async def _read(flight: _Flight, request: LLMRequest, call_next: StreamHandler) -> None:
    async with aclosing(call_next(request)) as source:
        async for chunk in source:
            if type(chunk) is StreamEnd:
                flight.response = chunk.response
            else:
                flight.chunks.append(chunk)
                flight.tell()
    if flight.response is None:
        msg = "the stream ended without its end; the answer is not whole"
        raise BadReply(msg)


def _again(error: Exception | None, *, joined: bool) -> Exception:
    """The same failure for one of several, each of which gets a traceback of its own."""
    if error is None:
        return CallCancelled("the call that this one shared was cancelled")
    if not isinstance(error, LLMError):
        return error
    own = copy(error)
    own.call_id = "" if joined else error.call_id
    return own


def _renamed(response: LLMResponse, started: float, first: float | None = None) -> LLMResponse:
    """The answer to a call that shared another one's: under its own name, and as long as it took."""
    return response.stamped(
        call_id=new_call_id(),
        latency=time.perf_counter() - started,
        first_token=first,
        cached=response.cached,
    )
