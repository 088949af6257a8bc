"""Breaker: leave a backend alone that failed several times in a row, and find out by itself when it is back.

    closed --5 failures in a row--> open --30 s--> one call tries --it works--> closed
                                     ^                  |
                                     '--twice as long---' it fails (5 minutes at most)

While it is open a call costs microseconds instead of a deadline, and the router asks another backend. There
is always a way back: the call that tries, and any health check that finds the backend well.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Literal, TypeVar

from llm.deadline import was_late
from llm.errors import BreakerOpen, ConnectionFailed, DeadlineExceeded, ServerError
from llm.events import BreakerClosed, BreakerOpened
from llm.middleware.base import EmbedHandler, Handler, Middleware, StreamHandler, never_sent
from llm.types import Chunk, Embeddings, EmbedRequest, LLMRequest, LLMResponse, StreamEnd

FAILURES = 5
"""So many in a row open it."""

FIRST_SECONDS = 30.0
LONGEST_SECONDS = 300.0

PATIENCE = 1.0
"""Seconds; a deadline that left the backend less than this says nothing about the backend."""

Request = TypeVar("Request", LLMRequest, EmbedRequest)
Answer = TypeVar("Answer", LLMResponse, Embeddings)
_Verdict = Literal["well", "ill", "unknown"]

_ILL = (ConnectionFailed, ServerError, DeadlineExceeded)
"""Other errors say nothing: many are raised before anything was sent, and a refusal needs no breaker."""


class Breaker(Middleware):
    """Refuses calls to a backend that is down.

    Args:
        failures: how many in a row open it.
        patience: seconds; a call that its deadline cut sooner is not counted.
        clock: seconds that only go forward.
    """

    def __init__(
        self,
        *,
        failures: int = FAILURES,
        patience: float = PATIENCE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit = failures
        self._patience = patience
        self._clock = clock
        self._failures = 0
        self._seconds = FIRST_SECONDS  # of the next time that it opens
        self._until: float | None = None  # None while it is closed
        self._trying = False
        self._model = ""

    @property
    def is_open(self) -> bool:
        """Whether the backend is left alone, but for the call that tries."""
        return self._until is not None

    def revived(self) -> None:
        """A health check found the backend well: close it."""
        self._well()

    async def complete(self, request: LLMRequest, call_next: Handler) -> LLMResponse:
        """Pass on, or refuse."""
        return await self._call(request, call_next)

    async def embed(self, request: EmbedRequest, call_next: EmbedHandler) -> Embeddings:
        """The same for texts that become vectors."""
        return await self._call(request, call_next)

    async def _call(self, request: Request, call_next: Callable[[Request], Awaitable[Answer]]) -> Answer:
        trying, began = self._enter(), self._clock()
        verdict: _Verdict = "well"
        try:
            return await call_next(request)
        except BaseException as error:
            verdict = self._judge(error, self._clock() - began)
            raise
        finally:
            self._leave(request, verdict, trying=trying)

    async def stream(self, request: LLMRequest, call_next: StreamHandler) -> AsyncGenerator[Chunk, None]:
        """The same for streams; the first piece shows already that the backend is back."""
        trying, began = self._enter(), self._clock()
        verdict: _Verdict = "unknown"
        try:
            async with aclosing(call_next(request)) as chunks:
                async for chunk in chunks:
                    if trying:
                        self._well()
                        trying = False
                    if type(chunk) is StreamEnd:
                        verdict = "well"
                    yield chunk
        except BaseException as error:
            if verdict == "unknown":
                verdict = self._judge(error, self._clock() - began)
            raise
        finally:
            self._leave(request, verdict, trying=trying)

    def _enter(self) -> bool:
        """Let a call through; whether it is the one that tries.

        Raises:
            BreakerOpen: the backend is left alone.
        """
        if self._until is None:
            return False
        left = self._until - self._clock()
        if left <= 0 and not self._trying:
            self._trying = True
            return True
        wait = max(left, 1.0)
        msg = (
            f"{self.backend} failed {self._failures} times in a row and is left alone; "
            f"it is tried again in {wait:.0f} s"
        )
        raise BreakerOpen(msg, retry_after=wait)

    def _judge(self, error: BaseException, seconds: float) -> _Verdict:
        """What a failure says about the backend."""
        if isinstance(error, asyncio.CancelledError):
            late = was_late() and seconds >= self._patience and not never_sent(error)
            return "ill" if late else "unknown"
        return "ill" if isinstance(error, _ILL) else "unknown"

    def _leave(self, request: LLMRequest | EmbedRequest, verdict: _Verdict, *, trying: bool) -> None:
        if trying:
            self._trying = False
        if verdict == "well":
            self._well()
        elif verdict == "ill" and (trying or self._until is None):  # late news of a backend known to be down
            self._ill(request)

    def _well(self) -> None:
        self._failures = 0
        if self._until is None:
            return
        self._until, self._seconds, self._trying = None, FIRST_SECONDS, False
        self.emit(BreakerClosed(backend=self.backend, model=self._model))

    def _ill(self, request: LLMRequest | EmbedRequest) -> None:
        self._failures += 1
        if self._failures < self._limit:
            return
        self._model = request.model
        self._until = self._clock() + self._seconds
        self.emit(
            BreakerOpened(
                backend=self.backend,
                model=request.model,
                caller=request.caller,
                failures=self._failures,
                seconds=self._seconds,
            )
        )
        self._seconds = min(self._seconds * 2, LONGEST_SECONDS)
