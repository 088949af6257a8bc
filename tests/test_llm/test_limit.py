"""Limit: calls wait for their turn in order, give it back whatever happens, and keep to the number."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from llm import (
    BadReply,
    ConnectionFailed,
    DeadlineExceeded,
    LLMConfig,
    LLMResponse,
    RateLimited,
    ServerError,
    get_llm_client,
)
from llm.middleware.limit import Bucket, Limit, Places
from llm.testing import ScriptedBackend
from llm.types import LLMRequest
from tests.support.moody_server import MoodyServer

CONFIG = LLMConfig(backend="scripted", model="m", enable_cache=False, max_tokens=100)


class Clock:
    """Seconds that pass only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(round(seconds, 3))
        self.now += seconds


def backend(limit: Limit, *replies: Any) -> ScriptedBackend:
    return ScriptedBackend(*replies, config=CONFIG, middleware=[limit])


class Gate:
    """Answers when a test lets it; counts who is inside."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.inside = self.most = 0
        self.order: list[str] = []

    async def __call__(self, request: LLMRequest) -> str:
        self.order.append(request.prompt)
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            await self.open.wait()
        finally:
            self.inside -= 1
        return "ok"


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_no_more_than_so_many_are_under_way_and_the_others_come_in_their_order() -> None:
    gate = Gate()
    async with backend(Limit(concurrency=3), gate) as client:
        tasks = [asyncio.create_task(client.generate(f"{n}")) for n in range(9)]
        await settle()
        assert gate.inside == 3
        gate.open.set()
        await asyncio.gather(*tasks)
    assert gate.most == 3
    assert gate.order == [f"{n}" for n in range(9)]


@pytest.mark.parametrize("error", [ServerError("x"), ValueError("x")])
async def test_a_failure_gives_the_place_back(error: Exception) -> None:
    async with backend(Limit(concurrency=1), error, "ok") as client:
        with pytest.raises(ServerError):
            await client.generate("1")
        assert (await client.generate("2")).content == "ok"


async def test_one_that_is_cancelled_in_the_queue_leaves_it_and_one_under_way_gives_its_place_on() -> None:
    gate = Gate()
    async with backend(Limit(concurrency=1), gate) as client:
        first, second, third = (asyncio.create_task(client.generate(f"{n}")) for n in range(3))
        await settle()
        second.cancel()
        await settle()
        first.cancel()
        await settle()
        assert gate.order == ["0", "2"]
        gate.open.set()
        assert (await third).content == "ok"
        assert (await client.generate("4")).content == "ok"


async def test_one_that_is_cancelled_at_the_moment_of_its_turn_passes_it_on() -> None:
    places = Places(1)
    await places.take()
    second, third = asyncio.create_task(places.take()), asyncio.create_task(places.take())
    await settle()
    places.give_back()  # it is the second's turn, and before it wakes up
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    await asyncio.wait_for(third, 1)
    places.give_back()
    await asyncio.wait_for(places.take(), 1)


async def test_waiting_for_a_turn_ends_with_the_deadline() -> None:
    gate = Gate()
    async with backend(Limit(concurrency=1), gate) as client:
        holder = asyncio.create_task(client.generate("0"))
        await settle()
        with pytest.raises(DeadlineExceeded):
            await client.generate("1", timeout=0.01)
        gate.open.set()
        await holder
        assert (await client.generate("2")).content == "ok"


async def test_a_stream_holds_its_place_until_it_is_read_to_its_end_or_closed() -> None:
    async with backend(Limit(concurrency=1), *["ok"] * 4) as client:
        stream = client.stream("0")
        await anext(stream)
        waiting = asyncio.create_task(client.generate("1"))
        await settle()
        assert not waiting.done()
        await stream.aclose()
        assert (await waiting).content == "ok"
        assert (await client.stream("2").collect()).content == "ok"
        assert (await client.generate("3")).content == "ok"


async def test_a_stream_that_is_just_dropped_gives_its_place_back_as_well() -> None:
    async with backend(Limit(concurrency=1), "ok", "ok") as client:
        stream = client.stream("0")
        await anext(stream)
        del stream
        gc.collect()
        assert (await asyncio.wait_for(client.generate("1"), 1)).content == "ok"


def test_one_client_serves_several_loops_one_after_the_other() -> None:
    async def leave_in_a_hurry(client: ScriptedBackend) -> None:
        tasks = [asyncio.create_task(client.generate(f"{n}")) for n in range(3)]
        await settle()
        assert not any(task.done() for task in tasks)  # and the loop ends with all of them under way

    async def again(client: ScriptedBackend) -> None:
        client._script[:] = ["ok", "ok"]
        answers = await asyncio.gather(client.generate("3"), client.generate("4"))
        assert [answer.content for answer in answers] == ["ok", "ok"]

    async def never(_: LLMRequest) -> str:
        await asyncio.Event().wait()
        return ""

    client = backend(Limit(concurrency=1), never)
    asyncio.run(leave_in_a_hurry(client))
    asyncio.run(again(client))
    asyncio.run(again(client))


async def test_a_minute_s_worth_of_calls_goes_at_once_and_the_others_evenly() -> None:
    clock = Clock()
    limit = Limit(requests_per_minute=30, clock=clock, sleep=clock.sleep)
    async with backend(limit, *["ok"] * 33) as client:
        for _ in range(33):
            await client.generate("x")
    assert clock.slept == [2.0, 2.0, 2.0]


async def test_tokens_are_estimated_before_and_put_right_after() -> None:
    clock = Clock()
    limit = Limit(tokens_per_minute=600, clock=clock, sleep=clock.sleep)

    def answer(prompt: int, completion: int) -> LLMResponse:
        return LLMResponse(
            content="ok", model="m", backend="b", prompt_tokens=prompt, completion_tokens=completion
        )

    replies = [answer(50, 50), answer(400, 50), answer(10, 10)]
    async with backend(limit, *replies) as client:
        await client.generate("x" * 400)  # 100 + 100 estimated, 100 used: 500 are left
        await client.generate("x" * 400)  # 450 used: 50 are left
        assert clock.slept == []
        await client.generate("x" * 400)  # 200 estimated: wait for 150 at 10 in a second
    assert clock.slept == [15.0]


async def test_a_call_that_is_larger_than_the_minute_s_number_waits_for_a_full_bucket_and_goes() -> None:
    clock = Clock()
    bucket = Bucket(60, clock)
    bucket.take(60)
    assert bucket.wait_for(1000) == 60.0
    clock.now += 60
    assert bucket.wait_for(1000) == 0.0
    bucket.take(1000)
    assert bucket.wait_for(1) == 941.0


@pytest.mark.parametrize(
    ("error", "left"), [(ConnectionFailed("x"), 600), (ServerError("x"), 500), (BadReply("x"), 400)]
)
async def test_a_failed_call_gives_back_the_tokens_that_nobody_generated(error: Exception, left: int) -> None:
    clock = Clock()
    limit = Limit(tokens_per_minute=600, clock=clock, sleep=clock.sleep)
    async with backend(limit, error) as client:
        with pytest.raises(type(error)):
            await client.generate("x" * 400)
    assert limit._tokens is not None
    assert limit._tokens._level == left


async def test_a_turn_that_would_come_after_the_deadline_is_refused_at_once_and_says_when() -> None:
    clock = Clock()
    limit = Limit(concurrency=1, requests_per_minute=1, clock=clock, sleep=clock.sleep)
    async with backend(limit, "ok", "ok") as client:
        await client.generate("1")
        with pytest.raises(RateLimited, match="LLM_REQUESTS_PER_MINUTE") as caught:
            await client.generate("2", timeout=30)
        assert caught.value.retry_after == 60.0
        assert not caught.value.quota
        clock.now += 60
        await client.generate("3")


async def test_one_that_is_cancelled_while_it_waits_for_the_minute_takes_nothing() -> None:
    clock = Clock()
    begun = asyncio.Event()

    async def sleep(_: float) -> None:
        begun.set()
        await asyncio.Event().wait()

    limit = Limit(concurrency=1, requests_per_minute=60, clock=clock, sleep=sleep)
    async with backend(limit, "ok", "ok") as client:
        limit._requests.take(60)  # type: ignore[union-attr]
        task = asyncio.create_task(client.generate("1"))
        await begun.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        clock.now += 1
        await client.generate("2")
        assert len(client.requests) == 1


async def test_a_real_server_never_sees_more_than_so_many_at_once() -> None:
    async with MoodyServer(pause=0.02) as server:
        config = LLMConfig(backend="remote", model="m", api_base=server.url, enable_cache=False)
        async with get_llm_client(config.with_values(max_concurrency=2)) as client:
            await asyncio.gather(*(client.generate(f"{n}") for n in range(8)))
        assert (server.asked, server.most_at_once) == (8, 2)
        async with get_llm_client(config) as client:
            await asyncio.gather(*(client.generate(f"{n}") for n in range(20)))
        assert server.most_at_once == 8
