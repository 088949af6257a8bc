"""Retry: make a failed call again, where that can help, within the call's total deadline.

The server's word counts: it is waited as long as it asks, if that is not too long for the call. If it is,
the error goes out at once with its `retry_after`, for whoever can wait that long (the daemon's scheduler).
Without such a word the waits are 0.5 s doubling to 8 s with full jitter, so that callers that failed
together do not come back together.

Never made again: what a person has to mend (key, quota, bill, settings, a request that is refused), and a
reply that would be the same once more.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar

from llm.deadline import seconds_left
from llm.errors import BadReply, BreakerOpen, BudgetExceeded, LLMError, RateLimited
from llm.events import Retried
from llm.middleware.base import EmbedHandler, Handler, Middleware, StreamHandler
from llm.types import Chunk, Embeddings, EmbedRequest, LLMRequest, LLMResponse

LONGEST_WAIT = 60.0
"""Seconds; a server that asks to wait longer is not waited for."""

FIRST_BACKOFF = 0.5
LONGEST_BACKOFF = 8.0

Request = TypeVar("Request", LLMRequest, EmbedRequest)
Answer = TypeVar("Answer", LLMResponse, Embeddings)


class Retry(Middleware):
    """Makes a failed call again.

    Args:
        retries: how often at most.
        chance: gives a number from 0 to 1, anew at each call.
        sleep: waits so many seconds.
    """

    def __init__(
        self,
        retries: int,
        *,
        chance: Callable[[], float] = random.random,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._retries = retries
        self._chance = chance
        self._sleep = sleep

    async def complete(self, request: LLMRequest, call_next: Handler) -> LLMResponse:
        """Answer, after some attempts perhaps."""
        return await self._call(request, call_next)

    async def embed(self, request: EmbedRequest, call_next: EmbedHandler) -> Embeddings:
        """The same for texts that become vectors."""
        return await self._call(request, call_next)

    async def _call(self, request: Request, call_next: Callable[[Request], Awaitable[Answer]]) -> Answer:
        attempt = 1
        while True:
            try:
                return await call_next(request)
            except LLMError as error:
                delay = self._delay(error, request, attempt)
                if delay is None:
                    raise
                failed = error
            attempt += 1
            await self._wait(request, attempt, delay, failed)

    async def stream(self, request: LLMRequest, call_next: StreamHandler) -> AsyncGenerator[Chunk, None]:
        """The same for streams: once a piece was handed out, a failure is final."""
        attempt = 1
        while True:
            begun = False
            try:
                async with aclosing(call_next(request)) as chunks:
                    async for chunk in chunks:
                        begun = True
                        yield chunk
            except LLMError as error:
                delay = None if begun else self._delay(error, request, attempt)
                if delay is None:
                    raise
                failed = error
            else:
                return
            attempt += 1
            await self._wait(request, attempt, delay, failed)

    def _delay(self, error: LLMError, request: LLMRequest | EmbedRequest, attempt: int) -> float | None:
        """Seconds to wait before the next attempt; None when there is to be none."""
        if attempt > self._retries or not _worth_it(error, request):
            return None
        if error.retry_after is None:
            delay = self._chance() * min(FIRST_BACKOFF * 2 ** (attempt - 1), LONGEST_BACKOFF)
        else:
            delay = error.retry_after
        return delay if delay <= LONGEST_WAIT and delay < seconds_left() else None

    async def _wait(
        self, request: LLMRequest | EmbedRequest, attempt: int, delay: float, failed: LLMError
    ) -> None:
        self.emit(
            Retried(
                backend=self.backend,
                model=request.model,
                caller=request.caller,
                attempt=attempt,
                delay=delay,
                code=failed.code,
                call_id=failed.call_id,
            )
        )
        await self._sleep(delay)


def _worth_it(error: LLMError, request: LLMRequest | EmbedRequest) -> bool:
    """Whether the same call may end otherwise within a minute."""
    if isinstance(error, RateLimited):
        return not error.quota
    if isinstance(error, BudgetExceeded | BreakerOpen):  # ours, and they know when they are over
        return False
    if isinstance(error, BadReply):
        # A greedy model says the same once more; one that draws its words may say something better.
        greedy = isinstance(request, EmbedRequest) or request.temperature == 0
        return error.broken or not greedy
    return error.retryable
