"""Identical calls under way at once: one call to the backend, and nobody pays for another's impatience."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from llm import CallCancelled, DeadlineExceeded, LLMConfig, RateLimited, ServerError
from llm.caller import calling
from llm.client import LLMClient
from llm.events import CacheMiss, CallEvent, CallFailed, CallFinished, CallStarted, Coalesced
from llm.middleware.cache import ResponseCache
from llm.middleware.coalesce import Coalesce
from llm.stores.sqlite import SqliteResponseStore
from llm.testing import Recorder
from llm.types import Caller, Chunk, LLMRequest, LLMResponse, StreamEnd, TextChunk, ThinkingChunk


class Tap(LLMClient):
    """A backend that answers when it is told to, piece by piece, and says how it ended."""

    backend = "tap"

    def __init__(self, folder: Path, *observers: Callable[[CallEvent], None], **values: Any) -> None:
        config = LLMConfig(backend="tap", model="small", cache_dir=str(folder)).with_values(**values)
        cache = ResponseCache(SqliteResponseStore(folder))
        super().__init__(config, middleware=[cache, Coalesce()], observers=observers)
        self.begun = asyncio.Event()
        self.pieces: asyncio.Queue[str | Exception | None] = asyncio.Queue()
        self.calls = self.cancelled = 0

    async def send(self, request: LLMRequest) -> LLMResponse:
        text = ""
        async with aclosing(self.send_stream(request)) as source:
            async for chunk in source:
                if isinstance(chunk, StreamEnd):
                    return chunk.response
                text += chunk.text
        raise AssertionError

    async def send_stream(self, request: LLMRequest) -> AsyncGenerator[Chunk, None]:
        self.calls += 1
        self.begun.set()
        text = ""
        try:
            while (piece := await self.pieces.get()) is not None:
                if isinstance(piece, Exception):
                    raise piece
                text += piece
                yield TextChunk(piece)
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            await asyncio.sleep(0)  # an end that takes its time
            raise
        usage: Any = {"prompt_tokens": 3, "completion_tokens": 2}
        yield StreamEnd(LLMResponse(content=text, model=request.model, backend="tap", **usage))

    async def health_check(self) -> bool:
        return True

    def say(self, *pieces: str | Exception | None) -> None:
        for piece in pieces:
            self.pieces.put_nowait(piece)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
async def tap(tmp_path: Path, recorder: Recorder) -> AsyncIterator[Tap]:
    async with Tap(tmp_path, recorder) as client:
        cache = client._middleware[0]
        assert isinstance(cache, ResponseCache)
        await cache._store.open()  # so that calls that begin at once meet at once
        yield client


async def until(holds: Callable[[], bool]) -> None:
    """Let everything run until `holds`."""
    while not holds():  # noqa: ASYNC110 - what happens is counted by others, who know no event
        await asyncio.sleep(0)


async def waiting(recorder: Recorder, count: int) -> None:
    """Until `count` calls share the one under way."""
    await until(lambda: len(recorder.of(Coalesced)) >= count)


async def pieces_of(tap: Tap, prompt: str = "Hello", **options: Any) -> list[Chunk]:
    return [chunk async for chunk in tap.stream(prompt, **options)]


def texts(chunks: list[Chunk]) -> list[str]:
    return [chunk.text for chunk in chunks if isinstance(chunk, TextChunk)]


# One call


async def test_64_identical_calls_at_once_are_one_call_and_each_has_its_own_name(
    tap: Tap, recorder: Recorder
) -> None:
    calls = [asyncio.create_task(tap.generate("Hello")) for _ in range(64)]
    await waiting(recorder, 63)
    tap.say("leeks", None)
    answers = await asyncio.gather(*calls)
    assert {answer.content for answer in answers} == {"leeks"}
    assert len({answer.call_id for answer in answers}) == 64
    assert not any(answer.cached for answer in answers)
    stats = tap.get_stats()
    assert (tap.calls, stats["calls"], stats["coalesced"], stats["cache_misses"]) == (1, 1, 63, 64)
    assert stats["tokens_used"] == 5
    assert (await tap.generate("Hello")).cached


async def test_what_64_calls_share_is_written_once(tap: Tap, recorder: Recorder, tmp_path: Path) -> None:
    put: list[bytes] = []
    cache = tap._middleware[0]
    assert isinstance(cache, ResponseCache)
    keep = cache._store.put
    cache._store.put = lambda reply: (put.append(reply.key), keep(reply))[1]  # type: ignore[method-assign]
    calls = [asyncio.create_task(tap.generate("Hello")) for _ in range(64)]
    await waiting(recorder, 63)
    tap.say("leeks", None)
    await asyncio.gather(*calls)
    assert len(put) == 1


async def test_a_cancelled_leader_hands_over_63_answers_from_one_call(tap: Tap, recorder: Recorder) -> None:
    calls = [asyncio.create_task(tap.generate("Hello")) for _ in range(64)]
    await waiting(recorder, 63)
    calls[0].cancel()
    await asyncio.wait({calls[0]})
    tap.say("leeks", None)
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert [answer.content for answer in answers[1:] if isinstance(answer, LLMResponse)] == ["leeks"] * 63
    assert (tap.calls, tap.cancelled) == (1, 0)
    assert (await tap.generate("Hello")).cached


async def test_different_questions_are_different_calls(tap: Tap, recorder: Recorder) -> None:
    calls = [asyncio.create_task(tap.generate(f"Hello {number}")) for number in range(3)]
    calls.append(asyncio.create_task(tap.generate("Hello 0", temperature=0)))
    await until(lambda: tap.calls == 4)
    tap.say(*["leeks", None] * 4)
    await asyncio.gather(*calls)
    assert recorder.of(Coalesced) == []


async def test_a_call_that_declines_the_cache_is_always_made(tap: Tap) -> None:
    calls = [asyncio.create_task(tap.generate("Hello", cache=False)) for _ in range(3)]
    await until(lambda: tap.calls == 3)
    tap.say(*["leeks", None] * 3)
    await asyncio.gather(*calls)


@pytest.mark.parametrize(
    "options", [{"max_age": 1e-9}, {"cache": "read"}, {"cache": "write"}, {"timeout": 9}]
)
async def test_other_wishes_about_kept_replies_do_not_keep_a_call_from_sharing(
    tap: Tap, recorder: Recorder, options: dict[str, Any]
) -> None:
    calls = [
        asyncio.create_task(tap.generate("Hello")),
        asyncio.create_task(tap.generate("Hello", **options)),
    ]
    await waiting(recorder, 1)
    tap.say("leeks", None)
    assert [answer.content for answer in await asyncio.gather(*calls)] == ["leeks"] * 2
    assert tap.calls == 1


async def test_a_follower_keeps_what_a_leader_that_keeps_nothing_was_told(
    tap: Tap, recorder: Recorder
) -> None:
    calls = [asyncio.create_task(tap.generate("Hello", cache=mode)) for mode in ("read", "on")]
    await waiting(recorder, 1)
    tap.say("leeks", None)
    await asyncio.gather(*calls)
    assert (await tap.generate("Hello")).cached


async def test_each_event_names_who_asked(tap: Tap, recorder: Recorder) -> None:
    async def ask(agent: str) -> None:
        with calling(agent):
            await tap.generate("Hello")

    calls = [asyncio.create_task(ask(agent)) for agent in ("first", "second")]
    await waiting(recorder, 1)
    tap.say("leeks", None)
    await asyncio.gather(*calls)
    asked = [(type(event), event.caller) for event in recorder.events]
    first, second = Caller(agent="first"), Caller(agent="second")
    assert asked == [
        (CacheMiss, first),
        (CacheMiss, second),
        (Coalesced, second),
        (CallStarted, first),
        (CallFinished, first),
    ]


# Ends


async def test_the_call_ends_with_the_last_one_who_waits_for_it(tap: Tap, recorder: Recorder) -> None:
    calls = [asyncio.create_task(tap.generate("Hello")) for _ in range(3)]
    await waiting(recorder, 2)
    await tap.begun.wait()
    for call in calls:
        assert tap.cancelled == 0
        call.cancel()
        await asyncio.wait({call})
    assert tap.cancelled == 1
    assert [event.code for event in recorder.of(CallFailed) if isinstance(event, CallFailed)] == ["cancelled"]
    tap.say("leeks", None)
    assert (await tap.generate("Hello")).content == "leeks"
    assert tap.calls == 2


async def test_one_who_comes_while_the_call_is_ending_begins_anew(tap: Tap) -> None:
    first = asyncio.create_task(tap.generate("Hello"))
    await tap.begun.wait()
    first.cancel()
    second = asyncio.create_task(tap.generate("Hello"))
    await asyncio.wait({first})
    tap.say("leeks", None)
    assert (await second).content == "leeks"
    assert tap.calls == 2


async def test_a_call_that_is_cancelled_before_it_began_leaves_nothing_behind(tap: Tap) -> None:
    call = asyncio.create_task(tap.generate("Hello"))
    await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait({call})
    tap.say("leeks", None)
    assert (await tap.generate("Hello")).content == "leeks"


async def test_each_has_its_own_deadline(tap: Tap, recorder: Recorder) -> None:
    short = asyncio.create_task(tap.generate("Hello", timeout=0.05))
    long = asyncio.create_task(tap.generate("Hello", timeout=30))
    await waiting(recorder, 1)
    with pytest.raises(DeadlineExceeded):
        await short
    tap.say("leeks", None)
    assert (await long).content == "leeks"
    assert (tap.calls, tap.cancelled) == (1, 0)


async def test_a_call_that_nobody_had_time_for_failed_because_it_was_late(
    tap: Tap, recorder: Recorder
) -> None:
    calls = [asyncio.create_task(tap.generate("Hello", timeout=0.05)) for _ in range(2)]
    failures = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(failure) for failure in failures] == [DeadlineExceeded] * 2
    assert [event.code for event in recorder.of(CallFailed) if isinstance(event, CallFailed)] == ["timeout"]
    assert tap.cancelled == 1


async def test_a_failure_is_shared_by_those_who_waited_and_by_nobody_else(
    tap: Tap, recorder: Recorder
) -> None:
    calls = [asyncio.create_task(tap.generate("Hello")) for _ in range(3)]
    await waiting(recorder, 2)
    tap.say(RateLimited("slow down", retry_after=7))
    failures = await asyncio.gather(*calls, return_exceptions=True)
    assert [(str(each), getattr(each, "retry_after", None)) for each in failures] == [("slow down", 7)] * 3
    assert len({id(each) for each in failures}) == 3
    tap.say("leeks", None)
    assert (await tap.generate("Hello")).content == "leeks"
    assert tap.calls == 2


async def test_a_foreign_failure_keeps_its_cause(tap: Tap, recorder: Recorder) -> None:
    tap.say(ZeroDivisionError("odd"))
    with pytest.raises(ServerError) as caught:
        await tap.generate("Hello")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


async def test_closing_the_client_ends_the_shared_call(tap: Tap, recorder: Recorder) -> None:
    calls = [asyncio.create_task(tap.generate("Hello")) for _ in range(3)]
    await waiting(recorder, 2)
    await tap.begun.wait()
    await tap.aclose()
    assert tap.cancelled == 1
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [CallCancelled] * 3


# Streams


async def test_identical_streams_are_one_and_each_gets_every_piece(tap: Tap, recorder: Recorder) -> None:
    readers = [asyncio.create_task(pieces_of(tap)) for _ in range(64)]
    await waiting(recorder, 63)
    tap.say("le", "eks", None)
    for chunks in await asyncio.gather(*readers):
        assert texts(chunks) == ["le", "eks"]
        end = chunks[-1]
        assert isinstance(end, StreamEnd)
        assert end.response.content == "leeks"
        assert end.response.first_token is not None
    assert tap.calls == 1


async def test_who_comes_late_to_a_stream_reads_it_from_its_beginning_and_then_as_it_comes(tap: Tap) -> None:
    early = tap.stream("Hello")
    tap.say("le")
    assert await anext(early) == TextChunk("le")
    late = tap.stream("Hello")
    assert await anext(late) == TextChunk("le")
    tap.say("eks")
    assert await anext(late) == TextChunk("eks")
    tap.say(None)
    assert (await late.collect()).content == (await early.collect()).content == "leeks"
    assert tap.calls == 1


async def test_a_stream_that_is_dropped_hands_over_to_the_other_ones(tap: Tap, recorder: Recorder) -> None:
    first = tap.stream("Hello")
    tap.say("le")
    await anext(first)
    second = asyncio.create_task(pieces_of(tap))
    await waiting(recorder, 1)
    await first.aclose()
    tap.say("eks", None)
    assert texts(await second) == ["le", "eks"]
    assert (tap.calls, tap.cancelled) == (1, 0)
    assert (await tap.generate("Hello")).cached


async def test_a_reader_that_stands_still_holds_up_nobody(tap: Tap) -> None:
    slow = tap.stream("Hello")
    tap.say("le")
    await anext(slow)
    other = asyncio.create_task(pieces_of(tap))
    tap.say("eks", None)
    assert texts(await other) == ["le", "eks"]
    assert texts([chunk async for chunk in slow]) == ["eks"]


async def test_a_stream_that_nobody_reads_any_more_ends_at_once_and_is_not_kept(tap: Tap) -> None:
    stream = tap.stream("Hello")
    tap.say("le")
    await anext(stream)
    await stream.aclose()
    assert tap.cancelled == 1
    tap.say("chard", None)
    assert not (await tap.generate("Hello")).cached


async def test_a_stream_and_a_plain_call_share_either_way_round(tap: Tap, recorder: Recorder) -> None:
    stream = asyncio.create_task(pieces_of(tap))
    await tap.begun.wait()
    plain = asyncio.create_task(tap.generate("Hello"))
    await waiting(recorder, 1)
    tap.say("le", "eks", None)
    assert (texts(await stream), (await plain).content) == (["le", "eks"], "leeks")

    plain = asyncio.create_task(tap.generate("Bye"))
    await until(lambda: tap.calls == 2)
    stream = asyncio.create_task(pieces_of(tap, "Bye"))
    await waiting(recorder, 2)
    tap.say("ch", "ard", None)
    assert (texts(await stream), (await plain).content) == (["chard"], "chard")
    assert tap.calls == 2


async def test_a_stream_that_fails_fails_for_all_after_the_pieces_that_came(
    tap: Tap, recorder: Recorder
) -> None:
    async def read(seen: list[str]) -> None:
        async for chunk in tap.stream("Hello"):
            assert isinstance(chunk, TextChunk | ThinkingChunk)
            seen.append(chunk.text)

    seen: list[list[str]] = [[], []]
    readers = [asyncio.create_task(read(each)) for each in seen]
    await waiting(recorder, 1)
    tap.say("le", ServerError("down"))
    failures = await asyncio.gather(*readers, return_exceptions=True)
    assert ([str(each) for each in failures], seen) == (["down"] * 2, [["le"]] * 2)
    tap.say("chard", None)
    assert not (await tap.generate("Hello")).cached


async def test_a_stream_that_is_late_says_so_while_its_follower_goes_on(tap: Tap, recorder: Recorder) -> None:
    late = asyncio.create_task(pieces_of(tap, timeout=0.05))
    patient = asyncio.create_task(pieces_of(tap))
    await waiting(recorder, 1)
    with pytest.raises(DeadlineExceeded):
        await late
    tap.say("leeks", None)
    assert texts(await patient) == ["leeks"]
    assert tap.calls == 1
