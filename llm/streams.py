"""LLMStream: one answer in pieces, within one deadline; its connection is given back once nobody reads.

The deadline is one timer for the whole stream: a scope round every single piece would cost more than the
piece. When it fires, whoever waits for a piece is interrupted; when nobody waits, the source is closed.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from types import TracebackType
from typing import Self

from llm.caller import new_call_id
from llm.deadline import deadline
from llm.errors import BadReply, CallCancelled, LLMError
from llm.types import Chunk, LLMResponse, StreamEnd, TextChunk


class _StreamDeadline:
    """The stream's `Deadline`; apart from the stream, so that a context does not keep that alive."""

    __slots__ = ("end", "late")

    def __init__(self) -> None:
        self.late = False
        self.end: float | None = None

    def expired(self) -> bool:
        return self.late

    def when(self) -> float | None:
        return self.end


class LLMStream:
    """The pieces of one answer, in order: text and thinking as they come, then one `StreamEnd`.

        async with client.stream("Tell me a story") as stream:
            async for chunk in stream:
                if isinstance(chunk, TextChunk):
                    print(chunk.text, end="")

    Leaving the block, or just dropping the stream, ends the work behind it. Can be iterated once.

    Args:
        chunks: the pieces, from the middleware and the backend.
        seconds: the total time, counted from the first piece that is asked for.
        too_late: makes the error of a stream that outlasts it.
    """

    def __init__(
        self,
        chunks: AsyncGenerator[Chunk, None],
        *,
        seconds: float,
        too_late: Callable[[], LLMError],
    ) -> None:
        self._chunks = chunks
        self._seconds = seconds
        self._too_late = too_late
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: asyncio.Task[object] | None = None
        self._fault: LLMError | None = None  # why it was cut
        self._cut = False  # by cancelling the task that waits for a piece
        self._deadline = _StreamDeadline()
        self._over = False
        self._response: LLMResponse | None = None
        self._landed: asyncio.Future[None] | None = None
        self._closing: asyncio.Task[None] | None = None

    @property
    def response(self) -> LLMResponse | None:
        """The whole answer, once its end has come."""
        return self._response

    async def collect(self) -> LLMResponse:
        """Read what is left and return the whole answer.

        Raises:
            LLMError: see `llm.errors`.
        """
        async for _ in self:
            continue
        if self._response is None:
            msg = "the stream was closed before its end"
            raise BadReply(msg)
        return self._response

    async def texts(self) -> AsyncGenerator[str, None]:
        """The text alone, piece by piece."""
        async for chunk in self:
            if isinstance(chunk, TextChunk):
                yield chunk.text

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk:
        if self._fault is not None:
            await self.aclose()
            raise self._fault
        if self._over:
            raise StopAsyncIteration
        if self._timer is None:
            self._start()
        task = self._waiting = asyncio.current_task()
        before = 0 if task is None else task.cancelling()
        try:
            chunk = await self._chunks.__anext__()
            if type(chunk) is StreamEnd:
                chunk = await self._ended(chunk)
        except asyncio.CancelledError:
            self._finish()
            if self._cut and task is not None and task.uncancel() <= before and self._fault is not None:
                raise self._fault from None
            raise
        except BaseException:
            self._finish()
            raise
        finally:
            self._waiting = None
        return chunk

    async def _ended(self, end: StreamEnd) -> StreamEnd:
        """Let the source come to its own end, so that whatever it still had to do is done."""
        async for _ in self._chunks:
            msg = "the stream went on after its end"
            raise BadReply(msg)
        response = end.response
        self._response = response if response.call_id else replace(response, call_id=new_call_id())
        self._finish()
        return StreamEnd(self._response)

    def _start(self) -> None:
        loop = asyncio.get_running_loop()
        # By weak reference: a stream that is dropped must not live on until its deadline.
        self._timer = loop.call_later(self._seconds, _expire, weakref.ref(self))
        self._deadline.end = self._timer.when()
        deadline.set(self._deadline)

    def _finish(self) -> None:
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
        if self._landed is not None and not self._landed.done():
            self._landed.set_result(None)

    def interrupt(self, fault: LLMError, *, late: bool = False) -> None:
        """End it from outside: whoever waits for a piece, or asks for the next one, gets `fault`."""
        if self._over or self._fault is not None:
            return
        self._fault, self._deadline.late = fault, late
        if self._waiting is not None:
            self._cut = True
            self._waiting.cancel()
        elif self._timer is not None:
            loop = asyncio.get_running_loop()
            self._closing = loop.create_task(self._close())
        else:
            self._finish()

    async def landed(self) -> None:
        """Wait until an interrupted stream has given back what it held."""
        if self._closing is not None:
            await asyncio.wait({self._closing})
        elif not self._over:
            self._landed = asyncio.get_running_loop().create_future()
            await self._landed

    async def aclose(self) -> None:
        """End the work behind it; safe to call at any time and again."""
        if self._waiting is not None and self._waiting is not asyncio.current_task():
            self.interrupt(
                CallCancelled("the stream was closed while another task waited for its next piece")
            )
            await self.landed()
        elif self._closing is not None:
            await asyncio.wait({self._closing})
        elif not self._over:
            await self._close()

    async def _close(self) -> None:
        try:
            await self._chunks.aclose()
        finally:
            self._finish()

    def __del__(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()


def _expire(reference: weakref.ref[LLMStream]) -> None:
    stream = reference()
    if stream is not None:
        stream.interrupt(stream._too_late(), late=True)  # noqa: SLF001 - its own timer
