"""Limit: so many calls of a backend at a time, so many calls and tokens in a minute, first come first served.

Whoever waits does so in our queue: it is in order, it ends with the call's deadline, and a stream gives its
place back as soon as it is closed. A server's own queue does none of this: Ollama serves whom it likes, and
refuses when there are too many.

Calls and tokens in a minute are token buckets, as the services count them: full at first, filled evenly. What
an answer will cost is not known before it is here, so an estimate is taken first and put right afterwards.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager, suppress

from llm.deadline import seconds_left
from llm.errors import BadReply, ConnectionFailed, LLMError, RateLimited
from llm.middleware.base import NEVER_SENT, EmbedHandler, Handler, Middleware, StreamHandler
from llm.types import Chunk, Embeddings, EmbedRequest, LLMRequest, LLMResponse, StreamEnd

BYTES_PER_TOKEN = 4
"""Of English text with today's vocabularies; only an estimate until the answer says how many there were."""

_MINUTE = 60.0


class Places:
    """So many at a time, the others in a queue. Belongs to no event loop.

    Args:
        size: how many.
    """

    def __init__(self, size: int) -> None:
        self._free = size
        self._queue: deque[asyncio.Future[None]] = deque()

    async def take(self) -> None:
        """Wait for a place; one that is cancelled meanwhile takes none."""
        if self._free > 0:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self.give_back()  # it came at the very moment of the cancellation
            else:
                with suppress(ValueError):
                    self._queue.remove(turn)
            error.add_note(NEVER_SENT)
            raise

    def give_back(self) -> None:
        """Hand the place on to the first one in the queue."""
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done() and not turn.get_loop().is_closed():
                turn.set_result(None)
                return
        self._free += 1


class Bucket:
    """So much in a minute; full at first, filled evenly, and never fuller than one minute's worth.

    Args:
        per_minute: how much.
        clock: seconds that only go forward.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float]) -> None:
        self._size = float(per_minute)
        self._rate = per_minute / _MINUTE
        self._level = self._size
        self._clock = clock
        self._at = clock()

    def wait_for(self, amount: float) -> float:
        """Seconds until so much is there."""
        now = self._clock()
        self._level = min(self._size, self._level + (now - self._at) * self._rate)
        self._at = now
        return max(0.0, (min(amount, self._size) - self._level) / self._rate)

    def take(self, amount: float) -> None:
        """Take it; what is not there yet is owed, and whoever comes next waits for that too."""
        self._level -= amount

    def put(self, amount: float) -> None:
        """Put back what was not used; take more if `amount` is below 0."""
        self._level += amount


class Limit(Middleware):
    """Makes calls wait for their turn.

    Args:
        concurrency: calls under way at a time, None for no limit.
        requests_per_minute: None for no limit.
        tokens_per_minute: None for no limit.
        clock: seconds that only go forward.
        sleep: waits so many seconds.
    """

    def __init__(
        self,
        *,
        concurrency: int | None = None,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._places = Places(concurrency) if concurrency else None
        self._requests = Bucket(requests_per_minute, clock) if requests_per_minute else None
        self._tokens = Bucket(tokens_per_minute, clock) if tokens_per_minute else None
        self._sleep = sleep

    async def complete(self, request: LLMRequest, call_next: Handler) -> LLMResponse:
        """Pass on when it is this call's turn."""
        if self._requests is None and self._tokens is None and self._places is not None:
            await self._places.take()  # the usual case, without what only the others need
            try:
                return await call_next(request)
            finally:
                self._places.give_back()
        prompt, estimate = self._estimates(request)
        await self._begin(estimate)
        with self._under_way(prompt, estimate) as used:
            response = await call_next(request)
            used.append(response.tokens_used or estimate)
            return response

    async def embed(self, request: EmbedRequest, call_next: EmbedHandler) -> Embeddings:
        """The same for texts that become vectors."""
        estimate = 0 if self._tokens is None else _tokens_of(*request.texts)
        await self._begin(estimate)
        with self._under_way(estimate, estimate) as used:
            found = await call_next(request)
            used.append(found.prompt_tokens or estimate)
            return found

    async def stream(self, request: LLMRequest, call_next: StreamHandler) -> AsyncGenerator[Chunk, None]:
        """The same for streams; the place is given back at the end, or when the stream is closed."""
        prompt, estimate = self._estimates(request)
        await self._begin(estimate)
        with self._under_way(prompt, estimate) as used:
            async with aclosing(call_next(request)) as chunks:
                async for chunk in chunks:
                    if type(chunk) is StreamEnd:
                        used.append(chunk.response.tokens_used or estimate)
                    yield chunk

    def _estimates(self, request: LLMRequest) -> tuple[int, int]:
        """Tokens of the prompt, and of the call at most; services count `max_tokens` in advance too."""
        if self._tokens is None:
            return 0, 0
        prompt = _tokens_of(*(message.content for message in request.messages))
        return prompt, prompt + request.max_tokens

    async def _begin(self, estimate: int) -> None:
        """Wait for the turn.

        Raises:
            RateLimited: it would come after the call's deadline.
        """
        if self._places is not None:
            await self._places.take()
        if self._requests is None and self._tokens is None:
            return
        try:
            await self._fill(estimate)
        except BaseException as error:
            error.add_note(NEVER_SENT)
            if self._places is not None:
                self._places.give_back()
            raise

    async def _fill(self, estimate: int) -> None:
        """Take from the buckets, and wait until what was taken is there."""
        needs = [(b, n) for b, n in ((self._requests, 1), (self._tokens, estimate)) if b is not None]
        wait = max(bucket.wait_for(amount) for bucket, amount in needs)
        if wait > 0 and wait >= seconds_left():
            msg = (
                f"the limit of {self.backend} is reached: the next call may be made in {wait:.0f} s; "
                "raise LLM_REQUESTS_PER_MINUTE or LLM_TOKENS_PER_MINUTE if the service allows more"
            )
            raise RateLimited(msg, retry_after=wait)
        for bucket, amount in needs:
            bucket.take(amount)
        if wait <= 0:
            return
        try:
            await self._sleep(wait)
        except BaseException:
            for bucket, amount in needs:
                bucket.put(amount)
            raise

    @contextmanager
    def _under_way(self, prompt: int, estimate: int) -> Iterator[list[int]]:
        """Hold the place; afterwards the real number of tokens, put into the list, replaces the estimate."""
        used: list[int] = []
        try:
            yield used
        except LLMError as error:
            if not isinstance(error, BadReply):  # nothing was generated, or nobody says how much
                used.append(0 if isinstance(error, ConnectionFailed) else prompt)
            raise
        finally:
            if self._tokens is not None and used:
                self._tokens.put(estimate - used[-1])
            if self._places is not None:
                self._places.give_back()


def _tokens_of(*texts: str) -> int:
    size = sum(len(text.encode(errors="replace")) for text in texts)
    return -(-size // BYTES_PER_TOKEN)
