"""Retry: what is asked again, after how long, and what never is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any, ClassVar

import pytest

from llm import (
    AuthenticationFailed,
    BadReply,
    BadRequest,
    BreakerOpen,
    BudgetExceeded,
    ConfigurationError,
    ConnectionFailed,
    DeadlineExceeded,
    LLMConfig,
    LLMError,
    LLMRequest,
    ModelNotFound,
    NotSupported,
    RateLimited,
    ServerError,
    StreamEnd,
    TextChunk,
    get_llm_client,
)
from llm.client import LLMClient
from llm.events import Retried
from llm.middleware.retry import Retry
from llm.testing import Recorder, ScriptedBackend
from llm.types import Chunk, Embeddings, EmbedRequest, LLMResponse
from tests.support.moody_server import RESET, MoodyServer, refusal

WARM = LLMConfig(backend="scripted", model="m", enable_cache=False, temperature=0.7)


class Sleeps:
    """Waits without waiting, and remembers how long."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


def retrying(sleeps: Sleeps, retries: int = 2, chance: float = 1.0) -> Retry:
    return Retry(retries, chance=lambda: chance, sleep=sleeps)


def scripted(
    *replies: Any, sleeps: Sleeps, retries: int = 2, recorder: Recorder | None = None
) -> ScriptedBackend:
    observers = [] if recorder is None else [recorder]
    return ScriptedBackend(*replies, config=WARM, middleware=[retrying(sleeps, retries)], observers=observers)


def remote(server: MoodyServer, **values: Any) -> LLMConfig:
    return LLMConfig(backend="remote", model="stub", api_base=server.url, enable_cache=False, **values)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionFailed("nobody there"),
        ServerError("it crashed"),
        DeadlineExceeded("its own time ran out"),
        RateLimited("too many"),
        BadReply("nonsense"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_what_may_be_over_in_a_moment_is_asked_again(error: LLMError) -> None:
    sleeps, recorder = Sleeps(), Recorder()
    async with scripted(error, error, "Leeks", sleeps=sleeps, recorder=recorder) as client:
        assert (await client.generate("What grows?")).content == "Leeks"
        assert client.get_stats()["retries"] == 2
    told = [(e.attempt, e.delay, e.code) for e in recorder.of(Retried) if isinstance(e, Retried)]
    assert told == [(2, 0.5, error.code), (3, 1.0, error.code)]


@pytest.mark.parametrize(
    "error",
    [
        AuthenticationFailed("wrong key"),
        RateLimited("the month's quota", quota=True, retry_after=1.0),
        BadRequest("no"),
        ModelNotFound("no such model"),
        NotSupported("no tools"),
        ConfigurationError("no"),
        BudgetExceeded("used up", retry_after=1.0),
        BreakerOpen("left alone", retry_after=1.0),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_what_a_person_has_to_mend_is_never_asked_again(error: LLMError) -> None:
    sleeps = Sleeps()
    async with scripted(error, "never", sleeps=sleeps) as client:
        with pytest.raises(type(error)):
            await client.generate("What grows?")
        assert len(client.requests) == 1
    assert sleeps.seconds == []


async def test_it_gives_up_after_as_many_retries_as_are_set_and_tells_the_last_error() -> None:
    sleeps = Sleeps()
    errors = [ServerError(f"failure {number}") for number in range(1, 5)]
    async with scripted(*errors, sleeps=sleeps, retries=3) as client:
        with pytest.raises(ServerError, match="failure 4"):
            await client.generate("What grows?")
    assert len(sleeps.seconds) == 3


async def test_the_waits_double_up_to_eight_seconds_and_chance_shortens_them() -> None:
    sleeps = Sleeps()
    async with scripted(*[ServerError("x")] * 8, sleeps=sleeps, retries=7) as client:
        with pytest.raises(ServerError):
            await client.generate("What grows?", timeout=1000)
    assert sleeps.seconds == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    halved = Sleeps()
    backend = ScriptedBackend(ServerError("x"), "ok", config=WARM, middleware=[retrying(halved, chance=0.5)])
    async with backend:
        await backend.generate("What grows?")
    assert halved.seconds == [0.25]


async def test_the_server_is_waited_for_as_long_as_it_asks() -> None:
    sleeps = Sleeps()
    replies = [RateLimited("slow", retry_after=7.5), ServerError("busy", retry_after=0.0), "Leeks"]
    async with scripted(*replies, sleeps=sleeps) as client:
        await client.generate("What grows?")
    assert sleeps.seconds == [7.5, 0.0]


@pytest.mark.parametrize(("seconds", "limit"), [(86400.0, 10**6), (60.5, 10**6), (40.0, 30.0)])
async def test_a_wait_that_is_too_long_for_the_call_is_told_at_once_and_kept_in_the_error(
    seconds: float, limit: float
) -> None:
    sleeps = Sleeps()
    async with scripted(RateLimited("later", retry_after=seconds), sleeps=sleeps) as client:
        with pytest.raises(RateLimited) as caught:
            await client.generate("What grows?", timeout=limit)
    assert caught.value.retry_after == seconds
    assert sleeps.seconds == []


async def test_a_wait_that_would_outlast_the_deadline_is_not_begun() -> None:
    sleeps = Sleeps()
    async with scripted(ServerError("x"), "never", sleeps=sleeps) as client:
        with pytest.raises(ServerError):
            await client.generate("What grows?", timeout=0.4)  # the first wait would be 0.5 s


@pytest.mark.parametrize(
    ("temperature", "broken", "attempts"), [(0.0, False, 1), (0.0, True, 3), (0.7, False, 3), (0.7, True, 3)]
)
async def test_a_bad_reply_is_asked_for_again_only_where_it_may_come_out_otherwise(
    temperature: float, broken: bool, attempts: int
) -> None:
    sleeps = Sleeps()
    async with scripted(*[BadReply("half of it", broken=broken)] * 3, sleeps=sleeps) as client:
        with pytest.raises(BadReply):
            await client.generate("What grows?", temperature=temperature)
        assert len(client.requests) == attempts


class Streaming(ScriptedBackend):
    """Streams each script: texts are pieces, an exception is raised."""

    backend: ClassVar[str] = "scripted"

    def __init__(self, *scripts: list[str | LLMError], **options: Any) -> None:
        super().__init__(config=WARM, **options)
        self.scripts = list(scripts)
        self.closed = 0

    async def send_stream(self, request: LLMRequest) -> AsyncGenerator[Chunk, None]:
        self.requests.append(request)
        text = ""
        try:
            for piece in self.scripts.pop(0):
                await asyncio.sleep(0)
                if isinstance(piece, LLMError):
                    raise piece
                text += piece
                yield TextChunk(piece)
            yield StreamEnd(LLMResponse(content=text, model=request.model, backend=self.backend))
        finally:
            self.closed += 1

    async def send_embed(self, request: EmbedRequest) -> Embeddings:
        found = self.scripts.pop(0)[0]
        if isinstance(found, LLMError):
            raise found
        return Embeddings(vectors=((1.0,),), model=request.model, backend=self.backend)


async def test_a_stream_is_begun_again_as_long_as_nothing_was_handed_out() -> None:
    sleeps = Sleeps()
    backend = Streaming([ServerError("x")], ["Lee", "ks"], middleware=[retrying(sleeps)])
    async with backend as client:
        assert (await client.stream("What grows?").collect()).content == "Leeks"
    assert sleeps.seconds == [0.5]
    assert backend.closed == 2


async def test_a_stream_that_breaks_off_after_its_first_piece_is_not_begun_again() -> None:
    sleeps = Sleeps()
    async with Streaming(["Lee", ServerError("x")], ["never"], middleware=[retrying(sleeps)]) as client:
        stream = client.stream("What grows?")
        assert await anext(stream) == TextChunk("Lee")
        with pytest.raises(ServerError):
            await anext(stream)
    assert sleeps.seconds == []


async def test_texts_that_become_vectors_are_sent_again_too() -> None:
    sleeps = Sleeps()
    async with Streaming([ConnectionFailed("x")], ["ok"], middleware=[retrying(sleeps)]) as client:
        assert (await client.embed(["leeks"])).dimensions == 1
    assert sleeps.seconds == [0.5]


async def test_a_call_that_is_cancelled_while_it_waits_is_over() -> None:
    begun = asyncio.Event()

    async def sleep(_: float) -> None:
        begun.set()
        await asyncio.Event().wait()

    backend = ScriptedBackend(ServerError("x"), "never", config=WARM, middleware=[Retry(2, sleep=sleep)])
    async with backend as client:
        task = asyncio.create_task(client.generate("What grows?"))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(client.requests) == 1


# Against a real server.


async def seconds_of(client: LLMClient) -> float:
    began = time.monotonic()
    assert (await client.generate("What grows?")).content == "Leeks."
    return time.monotonic() - began


async def test_a_server_that_says_429_twice_and_to_wait_a_second_is_asked_three_times() -> None:
    later = refusal(429, headers={"Retry-After": "1"}, code="rate_limit_exceeded")
    async with MoodyServer(later, later) as server, get_llm_client(remote(server)) as client:
        assert await seconds_of(client) >= 2.0
        assert server.asked == 3


async def test_a_server_may_say_it_in_milliseconds_and_as_a_date() -> None:
    now = datetime.now(UTC)
    dates = {
        "Date": format_datetime(now, usegmt=True),
        "Retry-After": format_datetime(now + timedelta(seconds=1), usegmt=True),
    }
    first = refusal(429, headers={"retry-after-ms": "150", "Retry-After": "86400"})
    async with (
        MoodyServer(first, refusal(503, headers=dates)) as server,
        get_llm_client(remote(server)) as client,
    ):
        assert await seconds_of(client) >= 1.1
        assert server.asked == 3


@pytest.mark.parametrize("answer", [refusal(503), refusal(529), refusal(408), refusal(409), RESET])
async def test_a_hiccup_costs_one_more_request(answer: Any) -> None:
    async with MoodyServer(answer) as server, get_llm_client(remote(server)) as client:
        await seconds_of(client)
        assert server.asked == 2


@pytest.mark.parametrize(
    ("answer", "error", "wait"),
    [
        (refusal(429, headers={"Retry-After": "86400"}), RateLimited, 86400.0),
        (refusal(503, headers={"Retry-After": "86400"}), ServerError, 86400.0),
        (refusal(429, code="insufficient_quota"), RateLimited, None),
        (refusal(401), AuthenticationFailed, None),
        (refusal(402), AuthenticationFailed, None),
        (refusal(400), BadRequest, None),
        (refusal(404, "model not found"), ModelNotFound, None),
    ],
)
async def test_what_waiting_does_not_cure_costs_one_request(
    answer: bytes, error: type[LLMError], wait: float | None
) -> None:
    async with MoodyServer(answer) as server, get_llm_client(remote(server)) as client:
        with pytest.raises(error) as caught:
            await client.generate("What grows?")
        assert caught.value.retry_after == wait
        assert server.asked == 1


async def test_no_retries_means_one_request() -> None:
    async with MoodyServer(refusal(503)) as server, get_llm_client(remote(server, retries=0)) as client:
        with pytest.raises(ServerError):
            await client.generate("What grows?")
        assert server.asked == 1


async def test_a_call_that_identical_ones_may_share_knows_how_much_time_is_left_too(tmp_path: Any) -> None:
    first = refusal(503, headers={"Retry-After": "20"})
    async with MoodyServer(first) as server:
        config = remote(server, timeout=10).with_values(enable_cache=True, cache_dir=str(tmp_path))
        async with get_llm_client(config) as client:
            began = time.monotonic()
            with pytest.raises(ServerError):
                await client.generate("What grows?", temperature=0)
            assert time.monotonic() - began < 10
            assert (await client.generate("What grows?", temperature=0)).content == "Leeks."
        assert server.asked == 2
