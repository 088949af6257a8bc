"""A stream: pieces in order, one end, one deadline, and a source that is closed once nobody reads."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator, Callable

import pytest

from llm import (
    BadReply,
    CallCancelled,
    DeadlineExceeded,
    LLMConfig,
    LLMResponse,
    ServerError,
    StreamEnd,
    TextChunk,
    ThinkingChunk,
)
from llm.client import LLMClient
from llm.events import CallFailed, CallFinished, CallStarted, FirstToken
from llm.middleware.base import Middleware, StreamHandler
from llm.testing import Recorder
from llm.types import Chunk, LLMRequest

Source = Callable[[LLMRequest], AsyncGenerator[Chunk, None]]


def whole(text: str) -> LLMResponse:
    return LLMResponse(content=text, model="m", backend="told", completion_tokens=2)


class Told(LLMClient):
    """A backend that streams what the test tells it to."""

    backend = "told"

    def __init__(self, source: Source, *observers: Recorder, middleware: tuple[Middleware, ...] = ()) -> None:
        super().__init__(LLMConfig(backend="told"), observers=observers, middleware=middleware)
        self._source = source
        self.closed = asyncio.Event()

    async def send(self, request: LLMRequest) -> LLMResponse:
        return whole("at once")

    async def send_stream(self, request: LLMRequest) -> AsyncGenerator[Chunk, None]:
        try:
            async for chunk in self._source(request):
                yield chunk
        finally:
            self.closed.set()

    async def health_check(self) -> bool:
        return True


async def two_words(request: LLMRequest) -> AsyncGenerator[Chunk, None]:
    yield ThinkingChunk("hm")
    yield TextChunk("good ")
    await asyncio.sleep(0)
    yield TextChunk("day")
    yield StreamEnd(whole("good day"))


async def endless(request: LLMRequest) -> AsyncGenerator[Chunk, None]:
    yield TextChunk("and ")
    await asyncio.Event().wait()


async def test_the_pieces_come_in_order_and_the_end_holds_the_whole_answer() -> None:
    recorder = Recorder()
    async with Told(two_words, recorder) as client:
        stream = client.stream("Hello")
        chunks = [chunk async for chunk in stream]
    assert chunks[:3] == [ThinkingChunk("hm"), TextChunk("good "), TextChunk("day")]
    (end,) = [chunk for chunk in chunks if isinstance(chunk, StreamEnd)]
    assert chunks[-1] is end
    assert end.response is stream.response
    assert end.response.content == "good day"
    assert end.response.first_token is not None
    assert 0 < end.response.first_token <= end.response.latency
    assert len(end.response.call_id) == 32
    assert [type(event) for event in recorder.events] == [CallStarted, FirstToken, CallFinished]


async def test_collect_reads_what_is_left_and_texts_gives_the_text_alone() -> None:
    async with Told(two_words) as client:
        assert (await client.stream("Hello").collect()).content == "good day"
        assert [text async for text in client.stream("Hello").texts()] == ["good ", "day"]


async def test_a_backend_without_streams_of_its_own_gives_its_answer_as_one_piece() -> None:
    class Plain(Told):
        send_stream = LLMClient.send_stream

    async with Plain(two_words) as client:
        chunks = [chunk async for chunk in client.stream("Hello")]
    assert chunks[0] == TextChunk("at once")
    assert isinstance(chunks[1], StreamEnd)


async def test_a_stream_that_ends_without_its_end_is_a_bad_reply() -> None:
    async def cut(request: LLMRequest) -> AsyncGenerator[Chunk, None]:
        yield TextChunk("half of ")

    recorder = Recorder()
    async with Told(cut, recorder) as client:
        with pytest.raises(BadReply, match="without its end"):
            await client.stream("Hello").collect()
    (failed,) = recorder.of(CallFailed)
    assert isinstance(failed, CallFailed)
    assert failed.code == "bad_reply"


async def test_whatever_a_source_raises_comes_out_as_our_error() -> None:
    async def broken(request: LLMRequest) -> AsyncGenerator[Chunk, None]:
        yield TextChunk("half of ")
        raise KeyError("x")

    async with Told(broken) as client:
        with pytest.raises(ServerError, match="KeyError"):
            await client.stream("Hello").collect()


async def test_leaving_the_block_ends_the_work_behind_it() -> None:
    recorder = Recorder()
    async with Told(endless, recorder) as client:
        async with client.stream("Hello") as stream:
            assert await anext(stream) == TextChunk("and ")
        assert client.closed.is_set()
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
    (failed,) = recorder.of(CallFailed)
    assert isinstance(failed, CallFailed)
    assert failed.code == "cancelled"


async def test_dropping_a_stream_ends_the_work_behind_it() -> None:
    async with Told(endless) as client:
        async for _ in client.stream("Hello"):
            break
        gc.collect()
        await asyncio.wait_for(client.closed.wait(), 10)


async def test_a_stream_that_outlasts_its_deadline_is_cut_while_somebody_waits() -> None:
    recorder = Recorder()
    async with Told(endless, recorder) as client:
        with pytest.raises(DeadlineExceeded, match=r"within 0\.01 s"):
            await client.stream("Hello", timeout=0.01).collect()
        assert client.closed.is_set()
    (failed,) = recorder.of(CallFailed)
    assert isinstance(failed, CallFailed)
    assert failed.code == "timeout"


async def test_a_stream_that_nobody_reads_is_closed_at_its_deadline() -> None:
    async with Told(endless) as client:
        stream = client.stream("Hello", timeout=0.01)
        await anext(stream)
        await asyncio.wait_for(client.closed.wait(), 10)
        with pytest.raises(DeadlineExceeded):
            await anext(stream)


async def test_cancelling_the_reader_is_the_readers_own_affair() -> None:
    async with Told(endless) as client:
        stream = client.stream("Hello")
        await anext(stream)
        task = asyncio.create_task(stream.collect())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert client.closed.is_set()


async def test_closing_the_client_ends_a_stream_that_is_waited_for_and_one_that_is_not() -> None:
    client = Told(endless)
    idle = client.stream("Hello")
    await anext(idle)
    reading = asyncio.create_task(client.stream("Hello").collect())
    unread = client.stream("Hello")
    await asyncio.sleep(0)
    await client.aclose()
    for call in (reading, anext(idle), anext(unread)):
        with pytest.raises(CallCancelled):
            await call
    with pytest.raises(CallCancelled):
        client.stream("Hello")


async def test_one_task_may_close_what_another_waits_for() -> None:
    async with Told(endless) as client:
        stream = client.stream("Hello")
        reading = asyncio.create_task(stream.collect())
        await asyncio.sleep(0)
        await stream.aclose()
        with pytest.raises(CallCancelled):
            await reading
        assert client.closed.is_set()


async def test_middleware_sees_a_stream_and_may_change_it() -> None:
    class Louder(Middleware):
        async def stream(self, request: LLMRequest, call_next: StreamHandler) -> AsyncGenerator[Chunk, None]:
            async for chunk in call_next(request):
                yield TextChunk(chunk.text.upper()) if isinstance(chunk, TextChunk) else chunk

    async with Told(two_words, middleware=(Louder(), Middleware())) as client:
        assert [text async for text in client.stream("Hello").texts()] == ["GOOD ", "DAY"]


async def test_a_piece_after_the_end_is_a_bad_reply() -> None:
    class Twice(Middleware):
        async def stream(self, request: LLMRequest, call_next: StreamHandler) -> AsyncGenerator[Chunk, None]:
            async for chunk in call_next(request):
                yield chunk
            yield TextChunk("more")

    async with Told(two_words, middleware=(Twice(),)) as client:
        with pytest.raises(BadReply, match="after its end"):
            await client.stream("Hello").collect()
