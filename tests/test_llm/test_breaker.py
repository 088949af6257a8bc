"""Breaker: when it opens, what it costs, and that there is always a way back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, ClassVar

import pytest

from llm import (
    AuthenticationFailed,
    BadReply,
    BadRequest,
    BreakerOpen,
    ConnectionFailed,
    DeadlineExceeded,
    LLMConfig,
    LLMError,
    RateLimited,
    ServerError,
    StreamEnd,
    TextChunk,
    get_llm_client,
)
from llm.events import BreakerClosed, BreakerOpened
from llm.middleware.breaker import Breaker
from llm.middleware.limit import Limit
from llm.testing import Recorder, ScriptedBackend
from llm.types import Chunk, Embeddings, EmbedRequest, LLMRequest
from tests.support.moody_server import HANG, MoodyServer, refusal

CONFIG = LLMConfig(backend="scripted", model="m", enable_cache=False)
DOWN = ServerError("it is down")


class Clock:
    """Seconds that a test moves on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Backend(ScriptedBackend):
    """Streams and embeds what the script says, like its whole answers."""

    backend: ClassVar[str] = "scripted"

    async def send_stream(self, request: LLMRequest) -> AsyncGenerator[Chunk, None]:
        response = await self.send(request)
        for word in response.content.split():
            yield TextChunk(word)
        yield StreamEnd(response)

    async def send_embed(self, request: EmbedRequest) -> Embeddings:
        await self.send(LLMRequest(messages=(), model="m", temperature=0, max_tokens=1, top_p=None))
        return Embeddings(vectors=((1.0,),), model=request.model, backend=self.backend)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(clock=clock, patience=0.0)


def backend(breaker: Breaker, *replies: Any, recorder: Recorder | None = None) -> Backend:
    observers = [] if recorder is None else [recorder]
    return Backend(*replies, config=CONFIG, middleware=[breaker], observers=observers)


async def fails(client: ScriptedBackend, times: int, error: type[LLMError] = ServerError) -> None:
    for _ in range(times):
        with pytest.raises(error):
            await client.generate("Are you there?")


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def refused(client: ScriptedBackend) -> BreakerOpen:
    with pytest.raises(BreakerOpen) as caught:
        await client.generate("Are you there?")
    return caught.value


@pytest.mark.parametrize(
    "error",
    [ConnectionFailed("refused"), ServerError("500"), DeadlineExceeded("504")],
    ids=lambda error: type(error).__name__,
)
async def test_five_failures_in_a_row_open_it(breaker: Breaker, recorder: Recorder, error: LLMError) -> None:
    async with backend(breaker, *[error] * 5, "never", recorder=recorder) as client:
        await fails(client, 5, type(error))
        fault = await refused(client)
        assert len(client.requests) == 5
    assert fault.retry_after == 30.0
    assert "scripted failed 5 times in a row" in str(fault)
    (opened,) = recorder.of(BreakerOpened)
    assert opened == BreakerOpened(backend="scripted", model="m", failures=5, seconds=30.0)


@pytest.mark.parametrize(
    "error",
    [BadRequest("no"), RateLimited("slow"), AuthenticationFailed("key"), BadReply("what?")],
    ids=lambda error: type(error).__name__,
)
async def test_errors_of_a_backend_that_answers_never_open_it(breaker: Breaker, error: LLMError) -> None:
    async with backend(breaker, *[error] * 20, "Leeks") as client:
        await fails(client, 20, type(error))
        assert (await client.generate("And now?")).content == "Leeks"


async def test_one_answer_in_between_begins_the_count_anew(breaker: Breaker) -> None:
    async with backend(breaker, *[DOWN] * 4, "Leeks", *[DOWN] * 4, "Beans") as client:
        await fails(client, 4)
        await client.generate("Are you there?")
        await fails(client, 4)
        assert (await client.generate("Are you there?")).content == "Beans"


async def test_after_thirty_seconds_one_call_tries_and_its_success_closes_it(
    breaker: Breaker, clock: Clock, recorder: Recorder
) -> None:
    async with backend(breaker, *[DOWN] * 5, "Leeks", "Beans", recorder=recorder) as client:
        await fails(client, 5)
        clock.now += 29.9
        assert (await refused(client)).retry_after == pytest.approx(1.0)
        clock.now += 0.1
        assert (await client.generate("Are you there?")).content == "Leeks"
        assert (await client.generate("Still?")).content == "Beans"
    assert [type(event) for event in recorder.of(BreakerOpened, BreakerClosed)] == [
        BreakerOpened,
        BreakerClosed,
    ]


async def test_only_one_call_tries_while_the_others_are_still_refused(breaker: Breaker, clock: Clock) -> None:
    answer = asyncio.Event()

    async def slow(_: LLMRequest) -> str:
        await answer.wait()
        return "Leeks"

    async with backend(breaker, *[DOWN] * 5, slow) as client:
        await fails(client, 5)
        clock.now += 30
        trying = asyncio.create_task(client.generate("Are you there?"))
        await settle()
        assert len(client.requests) == 6
        assert (await refused(client)).retry_after == 1.0
        answer.set()
        assert (await trying).content == "Leeks"
        assert (await client.generate("Still?")).content == "Leeks"


async def test_each_failed_try_doubles_the_wait_up_to_five_minutes(
    breaker: Breaker, clock: Clock, recorder: Recorder
) -> None:
    async with backend(breaker, *[DOWN] * 10, "Leeks", *[DOWN] * 5, recorder=recorder) as client:
        await fails(client, 5)
        for seconds in (30.0, 60.0, 120.0, 240.0, 300.0):
            assert (await refused(client)).retry_after == seconds
            clock.now += seconds
            await fails(client, 1)
        clock.now += 300
        await client.generate("Are you there?")
        await fails(client, 5)
    seconds = [event.seconds for event in recorder.of(BreakerOpened) if isinstance(event, BreakerOpened)]
    assert seconds == [30.0, 60.0, 120.0, 240.0, 300.0, 300.0, 30.0]  # and from the start after a success


async def test_a_try_that_is_cancelled_lets_the_next_call_try(breaker: Breaker, clock: Clock) -> None:
    async def for_ever(_: LLMRequest) -> str:
        await asyncio.Event().wait()
        return ""

    async with backend(breaker, *[DOWN] * 5, for_ever) as client:
        await fails(client, 5)
        clock.now += 30
        task = asyncio.create_task(client.generate("Are you there?"))
        await settle()
        assert len(client.requests) == 6
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        client._script[:] = ["Leeks"]
        assert (await client.generate("Are you there?")).content == "Leeks"


async def test_a_health_check_that_finds_the_backend_well_closes_it(
    breaker: Breaker, recorder: Recorder
) -> None:
    async with backend(breaker, *[DOWN] * 5, "Leeks", recorder=recorder) as client:
        await fails(client, 5)
        await refused(client)
        client._healthy = False
        assert not await client.health_check()
        await refused(client)
        client._healthy = True
        assert await client.health_check()
        assert (await client.generate("Are you there?")).content == "Leeks"
    assert len(recorder.of(BreakerClosed)) == 1


async def test_late_news_of_calls_that_began_before_it_opened_change_nothing_but_success_does(
    breaker: Breaker, recorder: Recorder
) -> None:
    gates = [asyncio.Event() for _ in range(2)]

    async def ill(_: LLMRequest) -> Exception:
        await gates[0].wait()
        return DOWN

    async def well(_: LLMRequest) -> str:
        await gates[1].wait()
        return "Leeks"

    async with backend(breaker, recorder=recorder) as client:
        client._script[:] = [ill]
        first = asyncio.create_task(client.generate("1"))
        await asyncio.sleep(0.01)
        client._script[:] = [well]
        second = asyncio.create_task(client.generate("2"))
        await asyncio.sleep(0.01)
        client._script[:] = [DOWN] * 5
        await fails(client, 5)
        gates[0].set()
        await asyncio.gather(first, return_exceptions=True)
        assert (await refused(client)).retry_after == 30.0
        gates[1].set()
        assert (await second).content == "Leeks"
        assert not breaker.is_open
    assert len(recorder.of(BreakerOpened)) == 1


async def test_streams_count_too_and_the_first_piece_of_one_that_tries_closes_it(
    breaker: Breaker, clock: Clock
) -> None:
    async with backend(breaker, *[DOWN] * 5, "Leeks and beans") as client:
        for _ in range(5):
            with pytest.raises(ServerError):
                await client.stream("Are you there?").collect()
        with pytest.raises(BreakerOpen):
            await client.stream("Are you there?").collect()
        clock.now += 30
        async with client.stream("Are you there?") as stream:
            assert await anext(stream) == TextChunk("Leeks")
            assert not breaker.is_open


async def test_a_stream_that_its_reader_closes_is_no_failure(breaker: Breaker) -> None:
    async with backend(breaker, *["Leeks and beans"] * 6) as client:
        for _ in range(6):
            async with client.stream("Are you there?") as stream:
                await anext(stream)
        assert not breaker.is_open
        assert breaker._failures == 0


async def test_texts_that_become_vectors_count_too(breaker: Breaker) -> None:
    async with backend(breaker, *[DOWN] * 5, "ok") as client:
        for _ in range(5):
            with pytest.raises(ServerError):
                await client.embed(["leeks"])
        with pytest.raises(BreakerOpen):
            await client.embed(["leeks"])


async def for_ever(_: LLMRequest) -> str:
    await asyncio.Event().wait()
    return ""


async def test_a_backend_that_hangs_until_the_deadline_five_times_is_down(clock: Clock) -> None:
    breaker = Breaker(clock=clock, patience=0.0)
    async with backend(breaker, for_ever) as client:
        for _ in range(5):
            with pytest.raises(DeadlineExceeded):
                await client.generate("Are you there?", timeout=0.01)
        await refused(client)


async def test_a_deadline_that_left_no_time_to_answer_is_not_held_against_the_backend(clock: Clock) -> None:
    breaker = Breaker(clock=clock, patience=1.0)
    async with backend(breaker, for_ever) as client:
        for _ in range(10):
            with pytest.raises(DeadlineExceeded):
                await client.generate("Are you there?", timeout=0.001)
        assert not breaker.is_open


async def test_a_caller_who_gives_up_says_nothing_about_the_backend(breaker: Breaker) -> None:
    async with backend(breaker, for_ever) as client:
        for _ in range(10):
            task = asyncio.create_task(client.generate("Are you there?"))
            await asyncio.sleep(0.001)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert not breaker.is_open


async def test_calls_that_waited_in_our_own_queue_until_their_deadline_are_not_held_against_it(
    breaker: Breaker,
) -> None:
    client = Backend(for_ever, config=CONFIG, middleware=[breaker, Limit(concurrency=1)])
    async with client:
        holder = asyncio.create_task(client.generate("I was first"))
        await settle()
        assert client.requests
        for _ in range(10):
            with pytest.raises(DeadlineExceeded):
                await client.generate("Me too", timeout=0.005)
        assert not breaker.is_open
        holder.cancel()
        await asyncio.gather(holder, return_exceptions=True)


async def test_a_refusal_by_our_own_limit_neither_opens_nor_closes_it(clock: Clock) -> None:
    breaker = Breaker(clock=clock)
    limit = Limit(requests_per_minute=5, clock=clock)
    client = Backend(*[DOWN] * 5, "never", config=CONFIG, middleware=[breaker, limit])
    async with client:
        await fails(client, 5)
        clock.now += 30
        limit._requests.take(10)  # type: ignore[union-attr]
        with pytest.raises(RateLimited):
            await client.generate("Are you there?")
        assert breaker.is_open


async def test_a_dead_server_is_left_alone_and_found_again() -> None:
    config = LLMConfig(backend="remote", model="stub", enable_cache=False, retries=0)
    async with (
        MoodyServer(*[refusal(500)] * 5) as server,
        get_llm_client(config.with_values(api_base=server.url)) as client,
    ):
        for _ in range(5):
            with pytest.raises(ServerError):
                await client.generate("Are you there?")
        with pytest.raises(BreakerOpen):
            await client.generate("Are you there?")
        assert server.asked == 5
        assert await client.health_check()
        assert (await client.generate("Are you there?")).content == "Leeks."


async def test_a_server_that_hangs_is_left_alone() -> None:
    config = LLMConfig(backend="remote", model="stub", enable_cache=False, timeout=0.1)
    async with (
        MoodyServer(then=HANG) as server,
        get_llm_client(config.with_values(api_base=server.url)) as client,
    ):
        for _ in range(5):
            with pytest.raises(DeadlineExceeded):
                await client.generate("Are you there?")
        with pytest.raises(BreakerOpen):
            await client.generate("Are you there?")
        assert server.asked == 5
