"""The four modes of the cache, the age that a reader accepts, streams, models that change under a name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from llm import ConnectionFailed, LLMConfig, LLMRequest, LLMResponse, ServerError, Tool, ToolCall
from llm.events import CacheHit, CacheMiss
from llm.middleware.cache import ResponseCache
from llm.middleware.fingerprints import REFRESH, Fingerprints
from llm.stores.sqlite import FILE_NAME, SqliteResponseStore
from llm.testing import Recorder, ScriptedBackend
from llm.types import Chunk, StreamEnd, TextChunk, ThinkingChunk


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Pieces(ScriptedBackend):
    """Answers in pieces: a thought, then a letter at a time; `fails` ends it in the middle."""

    fails = False

    async def send_stream(self, request: LLMRequest) -> AsyncGenerator[Chunk, None]:
        response = await self.send(request)
        if response.thinking:
            yield ThinkingChunk(response.thinking)
        for letter in response.content:
            yield TextChunk(letter)
            if self.fails:
                raise ServerError("down")
        yield StreamEnd(response)


class Bench:
    """Makes clients over one folder that read one clock."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.clock = folder, Clock()
        self.made: list[Pieces] = []

    def client(self, *replies: Any, recorder: Recorder | None = None, **values: Any) -> Pieces:
        config = LLMConfig(backend="scripted", model="small", cache_dir=str(self.folder)).with_values(
            **values
        )
        cache = ResponseCache(SqliteResponseStore(self.folder), clock=self.clock)
        observers = () if recorder is None else (recorder,)
        self.made.append(Pieces(*replies, config=config, middleware=[cache], observers=observers))
        return self.made[-1]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path / "cache")
    yield made
    for client in made.made:
        await client.aclose()


def cache_of(client: ScriptedBackend) -> ResponseCache:
    (cache,) = client._middleware
    assert isinstance(cache, ResponseCache)
    return cache


# Modes


async def test_read_answers_from_what_is_kept_and_keeps_nothing_new(bench: Bench) -> None:
    client = bench.client("one", "two", "three")
    assert (await client.generate("Hello", cache="read")).content == "one"
    assert (await client.generate("Hello", cache="read")).content == "two"
    assert (await client.generate("Hello")).content == "three"
    assert (await client.generate("Hello", cache="read")).cached


async def test_write_asks_anew_and_keeps_the_answer_in_memory_and_on_the_disk(bench: Bench) -> None:
    recorder = Recorder()
    client = bench.client("one", "two", recorder=recorder)
    await client.generate("Hello")
    assert (await client.generate("Hello", cache="write")).content == "two"
    assert len(recorder.of(CacheHit, CacheMiss)) == 1  # it did not look
    assert (await client.generate("Hello")).content == "two"
    await client.aclose()
    assert (await bench.client().generate("Hello")).content == "two"


async def test_off_neither_looks_nor_keeps(bench: Bench) -> None:
    client = bench.client("one", "two")
    await client.generate("Hello", cache="off")
    assert not (await client.generate("Hello")).cached


async def test_the_mode_of_the_configuration_is_that_of_its_calls(bench: Bench) -> None:
    client = bench.client("one", "two", "three", cache_mode="read")
    await client.generate("Hello")
    assert not (await client.generate("Hello")).cached
    await client.generate("Hello", cache="on")
    assert (await client.generate("Hello")).cached


# Age


@pytest.mark.parametrize("restart", [False, True])
async def test_the_reader_says_how_old_a_reply_may_be(bench: Bench, restart: bool) -> None:
    client = bench.client("one", "two")
    await client.generate("Hello")
    bench.clock.now += 100
    if restart:
        await client.aclose()
        client = bench.client("two")
    assert (await client.generate("Hello", max_age=100)).content == "one"
    assert (await client.generate("Hello")).content == "one"
    assert (await client.generate("Hello", max_age=99.5)).content == "two"
    assert (await client.generate("Hello", max_age=0.5)).content == "two"


async def test_a_reply_from_a_clock_that_ran_ahead_is_not_taken_for_a_new_one(bench: Bench) -> None:
    client = bench.client("one", "two")
    await client.generate("Hello")
    bench.clock.now -= 1000
    assert (await client.generate("Hello")).cached
    assert (await client.generate("Hello", max_age=999)).content == "two"


async def test_a_newer_reply_of_another_process_is_found_when_the_own_one_is_too_old(bench: Bench) -> None:
    here, there = bench.client("old"), bench.client("new")
    await here.generate("Hello")
    bench.clock.now += 100
    await there.generate("Hello", max_age=10)
    await cache_of(there).stats()
    assert (await here.generate("Hello", max_age=10)).content == "new"


# What is kept


async def test_a_reply_comes_back_with_everything_but_what_belongs_to_its_call(bench: Bench) -> None:
    usage: Any = {"prompt_tokens": 9, "completion_tokens": 8, "cached_tokens": 7, "thinking_tokens": 6}
    told = LLMResponse(content="leeks", model="small", backend="scripted", thinking="hm", **usage)
    client = bench.client(told)
    first = await client.generate("Hello")
    await client.aclose()
    again = await bench.client().generate("Hello")
    assert again.call_id != first.call_id
    own: dict[str, Any] = {"call_id": "", "latency": 0.0}
    assert again.stamped(**own) == first.stamped(**own) == told


TOOL = Tool("weather", "The weather", {"type": "object"})


def wish(name: str) -> LLMResponse:
    calls = (ToolCall("1", name, {"place": {"name": "Lima"}}),)
    return LLMResponse(content="", model="small", backend="s", finish_reason="tool_calls", tool_calls=calls)


async def test_a_wish_for_a_tool_is_kept_and_nobody_can_change_the_kept_one(bench: Bench) -> None:
    client = bench.client(wish("weather"))
    for _ in range(3):
        (call,) = (await client.generate("Hello", tools=[TOOL])).tool_calls
        assert call.arguments == {"place": {"name": "Lima"}}
        call.arguments["place"]["name"] = "Rome"
    await client.aclose()
    (call,) = (await bench.client().generate("Hello", tools=[TOOL])).tool_calls
    assert call == ToolCall("1", "weather", {"place": {"name": "Lima"}})


async def test_a_wish_for_a_tool_that_was_not_offered_is_not_kept(bench: Bench) -> None:
    client = bench.client(wish("rocket"), wish("weather"))
    await client.generate("Hello", tools=[TOOL])
    assert not (await client.generate("Hello", tools=[TOOL])).cached


async def test_the_words_of_a_schema_in_another_order_find_the_same_reply(bench: Bench) -> None:
    client = bench.client('{"a": 1}')
    schema = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}
    await client.generate("Hello", schema=schema)
    assert (await client.generate("Hello", schema=dict(reversed(schema.items())))).cached


# Streams


async def test_a_kept_reply_is_streamed_thoughts_first(bench: Bench) -> None:
    told = LLMResponse(content="leeks", model="small", backend="scripted", thinking="hm")
    client = bench.client(told)
    await client.generate("Hello")
    chunks = [chunk async for chunk in client.stream("Hello")]
    assert chunks[:2] == [ThinkingChunk("hm"), TextChunk("leeks")]
    end = chunks[2]
    assert isinstance(end, StreamEnd)
    assert (end.response.cached, end.response.content) == (True, "leeks")
    assert end.response.first_token is not None
    assert len(client.requests) == 1


async def test_a_finished_stream_is_kept_also_when_its_reader_stops_at_the_end(bench: Bench) -> None:
    client = bench.client("leeks")
    async for chunk in client.stream("Hello"):
        if isinstance(chunk, StreamEnd):
            break
    assert (await client.generate("Hello")).cached


async def test_a_stream_that_was_left_or_failed_is_not_kept(bench: Bench) -> None:
    client = bench.client("leeks", "chard", "beans")
    async with client.stream("Hello") as stream:
        await anext(stream)
    client.fails = True
    with pytest.raises(ServerError):
        await client.stream("Hello").collect()
    client.fails = False
    assert not (await client.generate("Hello")).cached


async def test_a_stream_that_declines_the_cache_is_not_kept(bench: Bench) -> None:
    client = bench.client("leeks", "chard")
    await client.stream("Hello", cache=False).collect()
    assert not (await client.generate("Hello")).cached


# Models that change under one name


async def test_other_weights_under_the_same_name_do_not_get_the_old_replies(bench: Bench) -> None:
    digests = {"small": "sha256:1"}
    asked: list[str] = []

    async def ask(model: str) -> str:
        asked.append(model)
        return digests[model]

    client = bench.client("old", "other", "new")
    cache = cache_of(client)
    cache.ask_for_fingerprints(ask)
    cache._prints._clock = clock = Clock()
    await client.generate("Hello")
    assert (await client.generate("Hello")).cached
    assert asked == ["small"]  # once, and a hit asks nobody
    digests["small"] = "sha256:2"
    assert (await client.generate("Hello")).cached  # nobody has noticed yet
    clock.now += REFRESH
    await client.generate("Another question")
    assert (await client.generate("Hello")).content == "new"
    assert asked == ["small"] * 2


async def test_a_server_that_is_down_costs_neither_the_call_nor_the_hit_after_a_restart(bench: Bench) -> None:
    async def ask(model: str) -> str:
        return "sha256:1"

    async def nobody(model: str) -> str:
        raise ConnectionFailed("down")

    client = bench.client("leeks")
    cache_of(client).ask_for_fingerprints(ask)
    await client.generate("Hello")
    await client.aclose()
    later = bench.client("fresh")
    cache_of(later).ask_for_fingerprints(nobody)
    assert (await later.generate("Hello")).cached
    assert (await later.generate("Bye")).content == "fresh"


async def test_calls_at_once_ask_for_the_fingerprint_once(bench: Bench) -> None:
    asked: list[str] = []

    async def ask(model: str) -> str:
        asked.append(model)
        await asyncio.sleep(0)
        return "sha256:1"

    prints = Fingerprints(SqliteResponseStore(bench.folder))
    prints.ask_for(ask)
    await asyncio.gather(*(prints.refresh("small") for _ in range(8)))
    assert asked == ["small"]


# The file


async def test_a_file_that_was_deleted_while_it_was_open_is_made_again(bench: Bench) -> None:
    client = bench.client(lambda _: "leeks")
    await client.generate("Hello")
    await cache_of(client).stats()
    for file in bench.folder.iterdir():
        file.unlink()
    await client.generate("Bye")
    await client.aclose()
    assert (bench.folder / FILE_NAME).exists()
    assert (await bench.client().generate("Bye")).cached


async def test_a_file_of_the_older_format_is_begun_anew(bench: Bench) -> None:
    import sqlite3

    bench.folder.mkdir()
    with sqlite3.connect(bench.folder / FILE_NAME) as db:
        db.execute("CREATE TABLE replies (id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, reply TEXT)")
        db.execute("INSERT INTO replies (key, reply) VALUES (x'00', 'old')")
        db.execute("PRAGMA user_version = 1")
    db.close()
    client = bench.client("leeks")
    await client.generate("Hello")
    assert (await cache_of(client).stats()).entries == 1
