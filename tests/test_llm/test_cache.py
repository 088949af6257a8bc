# ruff: noqa: ASYNC240 - a test may look at its files while nothing else runs
"""The response cache: what is kept, what is found again, and that nothing it meets costs a call."""

from __future__ import annotations

import asyncio
import dataclasses
import fcntl
import logging
import os
import sqlite3
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm import LLMConfig, LLMMessage, LLMRequest, LLMResponse, ServerError, get_llm_client
from llm.events import CacheHit, CacheMiss
from llm.middleware.cache import ResponseCache
from llm.middleware.keys import Keys, readable_key
from llm.middleware.recent import RECENT_BYTES
from llm.stores.base import StoredReply
from llm.stores.sqlite import FILE_NAME, SqliteResponseStore
from llm.testing import Recorder, ScriptedBackend

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"why": {"type": "string"}, "fits": {"type": "boolean"}},
    "required": ["why", "fits"],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def kept(key: bytes, label: str, reply: str, created: float = 1e9) -> StoredReply:
    return StoredReply(key=key, label=label, reply=reply, created=created)


class Shop:
    """Makes clients that share one cache folder, and closes them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: list[ScriptedBackend] = []

    def client(
        self, *replies: Any, recorder: Recorder | None = None, namespace: Any = None, **values: Any
    ) -> ScriptedBackend:
        config = LLMConfig(backend="scripted", model="small", cache_dir=str(self.folder)).with_values(
            **values
        )
        cache = ResponseCache(SqliteResponseStore(self.folder), namespace=namespace or {})
        observers = () if recorder is None else (recorder,)
        made = ScriptedBackend(*replies, config=config, middleware=[cache], observers=observers)
        self.made.append(made)
        return made

    async def close(self) -> None:
        for client in self.made:
            await client.aclose()


@pytest.fixture
async def shop(folder: Path) -> AsyncIterator[Shop]:
    made = Shop(folder)
    yield made
    await made.close()


def cache_of(client: ScriptedBackend) -> ResponseCache:
    (cache,) = client._middleware
    assert isinstance(cache, ResponseCache)
    return cache


def rows(folder: Path) -> list[tuple[Any, ...]]:
    with sqlite3.connect(folder / FILE_NAME) as db:
        found = db.execute("SELECT key, label, reply FROM replies ORDER BY id").fetchall()
    db.close()
    return found


# What the owner's document promises


async def test_the_second_same_call_is_answered_from_the_cache(folder: Path) -> None:
    config = LLMConfig(backend="mock", cache_dir=str(folder))
    async with get_llm_client(config) as client:
        first = await client.generate(prompt="Hello")
        second = await client.generate(prompt="Hello")
    assert first.cached is False
    assert second.cached is True
    assert second.content == first.content


async def test_a_kept_reply_survives_a_restart(shop: Shop) -> None:
    client = shop.client("leeks")
    first = await client.generate("Hello", "Be brief")
    await client.aclose()
    later = shop.client()
    second = await later.generate("Hello", "Be brief")
    assert (second.cached, second.content, later.requests) == (True, "leeks", [])
    assert second.call_id != first.call_id
    own: dict[str, Any] = {"cached": False, "latency": 0.0, "call_id": ""}
    assert dataclasses.replace(second, **own) == dataclasses.replace(first, **own)


async def test_the_readable_key_is_the_prompt_and_the_system_prompt_and_stands_beside_the_reply(
    shop: Shop, folder: Path
) -> None:
    client = shop.client("a", "b")
    await client.generate("Hello", "Be brief")
    await client.generate("Hello")
    await client.aclose()
    assert [label for _, label, _ in rows(folder)] == ["Hello::Be brief", "Hello::None"]


async def test_the_cache_can_be_switched_off(folder: Path) -> None:
    config = LLMConfig(backend="mock", cache_dir=str(folder), enable_cache=False)
    async with get_llm_client(config) as client:
        await client.generate("Hello")
        assert not (await client.generate("Hello")).cached
    assert not folder.exists()


async def test_a_call_may_decline_the_cache_both_ways(shop: Shop, folder: Path) -> None:
    recorder = Recorder()
    client = shop.client("one", "two", "three", "four", recorder=recorder)
    await client.generate("Hello", cache=False)
    assert recorder.of(CacheHit, CacheMiss) == []
    assert (await client.generate("Hello")).content == "two"
    assert (await client.generate("Hello", cache=False)).content == "three"
    assert (await client.generate("Hello")).content == "two"


# Hits


async def test_a_hit_is_a_new_frozen_response_and_leaves_the_first_one_as_it_was(shop: Shop) -> None:
    client = shop.client("leeks")
    first = await client.generate("Hello")
    hit = await client.generate("Hello")
    assert hit is not first
    assert first.cached is False
    with pytest.raises(dataclasses.FrozenInstanceError):
        hit.cached = False  # type: ignore[misc]


async def test_the_latency_of_a_hit_is_that_of_the_lookup(shop: Shop) -> None:
    async def slow(request: LLMRequest) -> str:
        await asyncio.sleep(0.05)
        return "leeks"

    client = shop.client(slow)
    first = await client.generate("Hello")
    hit = await client.generate("Hello")
    assert 0 < hit.latency < 0.05 <= first.latency


async def test_hits_and_misses_are_told_and_a_hit_is_no_call(shop: Shop) -> None:
    recorder = Recorder()
    client = shop.client("leeks", recorder=recorder)
    await client.generate("Hello")
    kept = await client.generate("Hello")
    assert recorder.of(CacheMiss, CacheHit) == [
        CacheMiss(backend="scripted", model="small"),
        CacheHit(backend="scripted", model="small", call_id=kept.call_id),
    ]
    stats = client.get_stats()
    assert (stats["calls"], stats["cache_hits"], stats["cache_misses"]) == (1, 1, 1)


# Keys


CHANGES: list[Callable[[LLMRequest], LLMRequest]] = [
    lambda r: dataclasses.replace(r, messages=(*r.messages[:-1], LLMMessage("user", "Hello!"))),
    lambda r: dataclasses.replace(r, messages=(LLMMessage("system", "Be long"), *r.messages[1:])),
    lambda r: dataclasses.replace(r, messages=(r.messages[0], r.messages[2])),
    lambda r: dataclasses.replace(
        r, messages=(r.messages[0], LLMMessage("assistant", r.messages[1].content), r.messages[2])
    ),
    lambda r: dataclasses.replace(r, model="large"),
    lambda r: dataclasses.replace(r, temperature=0.8),
    lambda r: dataclasses.replace(r, temperature=None),
    lambda r: dataclasses.replace(r, max_tokens=9),
    lambda r: dataclasses.replace(r, top_p=0.8),
    lambda r: dataclasses.replace(r, seed=2),
    lambda r: dataclasses.replace(r, seed=None),
    lambda r: dataclasses.replace(r, schema=None),
    lambda r: dataclasses.replace(r, schema={**SCHEMA, "additionalProperties": False}),
    lambda r: dataclasses.replace(
        r, schema={**SCHEMA, "properties": dict(reversed(SCHEMA["properties"].items()))}
    ),
]


def request() -> LLMRequest:
    turns = (LLMMessage("system", "Be brief"), LLMMessage("user", "Hi"), LLMMessage("user", "Hello"))
    return LLMRequest(
        messages=turns, model="small", temperature=0.0, max_tokens=8, top_p=0.9, seed=1, schema=SCHEMA
    )


REPLY = '{"why": "both are food", "fits": true}'


@pytest.mark.parametrize("change", CHANGES)
async def test_whatever_shapes_the_answer_is_part_of_the_key(
    shop: Shop, change: Callable[[LLMRequest], LLMRequest]
) -> None:
    client = shop.client(lambda _: REPLY)
    await client.complete(request())
    assert not (await client.complete(change(request()))).cached
    assert (await client.complete(request())).cached


@pytest.mark.parametrize(
    "same",
    [
        lambda r: dataclasses.replace(r, temperature=0),
        lambda r: dataclasses.replace(r, temperature=-0.0),
        lambda r: dataclasses.replace(r, schema=dict(reversed(SCHEMA.items()))),
        lambda r: dataclasses.replace(r, messages=tuple(LLMMessage(m.role, m.content) for m in r.messages)),
    ],
)
async def test_what_means_the_same_has_the_same_key(
    shop: Shop, same: Callable[[LLMRequest], LLMRequest]
) -> None:
    client = shop.client(lambda _: REPLY)
    await client.complete(request())
    assert (await client.complete(same(request()))).cached


@pytest.mark.parametrize("namespace", [{"api_base": "http://b"}, {"context_length": 8192}, {}])
async def test_another_server_or_context_is_another_namespace(shop: Shop, namespace: Any) -> None:
    here = shop.client("here", namespace={"api_base": "http://a", "context_length": 4096})
    there = shop.client("there", namespace=namespace)
    await here.generate("Hello")
    await here.aclose()
    assert (await there.generate("Hello")).content == "there"


async def test_the_factory_puts_address_and_context_into_the_namespace(folder: Path) -> None:
    base = LLMConfig(backend="mock", cache_dir=str(folder))
    variants = [base, base.with_values(api_base="http://a"), base.with_values(context_length=8192)]
    for config in variants:
        async with get_llm_client(config) as client:
            assert not (await client.generate("Hello")).cached, config
    assert len(rows(folder)) == 3


@given(
    st.tuples(st.text(max_size=12), st.text(min_size=1, max_size=12)),
    st.tuples(st.text(max_size=12), st.text(min_size=1, max_size=12)),
)
def test_no_two_questions_share_a_key_even_where_their_readable_keys_are_the_same(
    one: tuple[str, str], other: tuple[str, str]
) -> None:
    keys = {
        Keys("mock", {}).key(
            dataclasses.replace(
                request(), messages=(LLMMessage("system", system), LLMMessage("user", prompt))
            ),
            "",
        )
        for prompt, system in (one, other, ("a", "b::c"), ("a::b", "c"))
    }
    assert len(keys) == len({one, other, ("a", "b::c"), ("a::b", "c")})


def test_two_readable_keys_can_be_equal_which_is_why_they_are_not_the_key() -> None:
    def ask(prompt: str, system: str) -> LLMRequest:
        turns = (LLMMessage("system", system), LLMMessage("user", prompt))
        return dataclasses.replace(request(), messages=turns)

    assert readable_key(ask("a", "b::c")) == readable_key(ask("a::b", "c"))


async def test_a_request_that_cannot_be_written_down_is_asked_each_time(shop: Shop, folder: Path) -> None:
    client = shop.client("one", "two")
    odd = dataclasses.replace(request(), schema={"enum": {"a", "b"}})
    assert (await client.complete(odd)).content == "one"
    assert (await client.complete(odd)).content == "two"
    await client.aclose()
    assert rows(folder) == []


async def test_half_a_surrogate_pair_in_a_prompt_is_cached_like_any_text(shop: Shop) -> None:
    client = shop.client("leeks \ud83c")
    await client.generate("tomato \ud83c")
    await client.aclose()
    again = await shop.client().generate("tomato \ud83c")
    assert (again.cached, again.content) == (True, "leeks \ud83c")


# What is kept


def answer(content: str, **values: Any) -> LLMResponse:
    return LLMResponse(**{"content": content, "model": "small", "backend": "scripted", **values})


@pytest.mark.parametrize(
    ("reply", "schema"),
    [
        (answer("half", finish_reason="other"), None),
        (answer("no", finish_reason="content_filter"), None),
        (answer(""), None),
        (answer(" \n"), None),
        (answer("no JSON"), SCHEMA),
        (answer('{"why": "cut", "fi', finish_reason="length"), SCHEMA),
        (answer('{"why": 3, "fits": true}'), SCHEMA),
        (answer('{"why": NaN, "fits": true}'), {"type": "object"}),
    ],
)
async def test_only_whole_and_valid_replies_are_kept(
    shop: Shop, reply: LLMResponse, schema: dict[str, Any] | None
) -> None:
    client = shop.client(reply, "second", "third")
    assert (await client.generate("Hello", schema=schema)).content == reply.content
    assert not (await client.generate("Hello", schema=schema)).cached


@pytest.mark.parametrize(
    ("reply", "schema"), [(answer("leeks and", finish_reason="length"), None), (answer(REPLY), SCHEMA)]
)
async def test_a_reply_that_was_cut_as_asked_or_fits_is_kept_whole(
    shop: Shop, reply: LLMResponse, schema: dict[str, Any] | None
) -> None:
    client = shop.client(reply)
    await client.generate("Hello", schema=schema)
    await client.aclose()
    again = await shop.client().generate("Hello", schema=schema)
    assert (again.cached, again.content, again.finish_reason) == (True, reply.content, reply.finish_reason)


async def test_a_failure_is_not_kept(shop: Shop) -> None:
    client = shop.client(ServerError("down"), "up again")
    with pytest.raises(ServerError, match="down"):
        await client.generate("Hello")
    assert (await client.generate("Hello")).content == "up again"


async def test_no_key_of_a_service_is_ever_in_the_file(folder: Path) -> None:
    config = LLMConfig(backend="mock", cache_dir=str(folder), api_key="sk-very-secret", api_base="http://a")
    async with get_llm_client(config) as client:
        await client.generate("Hello")
    assert b"very-secret" not in (folder / FILE_NAME).read_bytes()


# The file


async def test_nothing_is_opened_before_the_first_call(shop: Shop, folder: Path) -> None:
    client = shop.client("leeks")
    assert not folder.exists()
    await client.generate("Hello")
    assert (folder / FILE_NAME).exists()


async def test_folder_and_files_are_for_their_owner_only(shop: Shop, folder: Path) -> None:
    client = shop.client("leeks")
    await client.generate("Hello")
    await client.aclose()
    for name in (FILE_NAME, f"{FILE_NAME}-wal", f"{FILE_NAME}-shm"):
        (folder / name).touch(mode=0o644)
        (folder / name).chmod(0o644)
    cache = ResponseCache(SqliteResponseStore(folder))
    await cache.stats()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.iterdir())}
    await cache.aclose()
    assert modes == {
        "cache": 0o700,
        FILE_NAME: 0o600,
        f"{FILE_NAME}-wal": 0o600,
        f"{FILE_NAME}-shm": 0o600,
    }


async def test_a_folder_that_is_there_already_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    store = SqliteResponseStore(tmp_path)
    await store.open()
    await store.aclose()
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


async def test_the_oldest_replies_go_when_the_file_is_full(folder: Path) -> None:
    limit = 512 * 1024
    store = SqliteResponseStore(folder, max_bytes=limit)
    for number in range(600):
        store.put(kept(number.to_bytes(32), f"question {number}", "x" * 3000))
        if number % 20 == 0:
            assert (await store.stats()).bytes <= limit
    full = await store.stats()
    found = [number for number in range(600) if store.get(number.to_bytes(32))]
    await store.aclose()
    assert full.bytes <= limit == full.limit
    assert (folder / FILE_NAME).stat().st_size <= limit * 1.1
    assert found == list(range(600 - full.entries, 600))
    assert full.entries > 100


async def test_a_reply_that_would_push_out_a_tenth_of_the_others_is_not_kept(folder: Path) -> None:
    store = SqliteResponseStore(folder, max_bytes=100_000)
    store.put(kept(b"s" * 32, "small", "x" * 1000))
    store.put(kept(b"h" * 32, "huge", "x" * 10_001))
    assert (await store.stats()).entries == 1
    assert store.get(b"h" * 32) is None
    await store.aclose()


async def test_stats_and_labels_say_what_is_kept_and_clear_forgets_it(shop: Shop, folder: Path) -> None:
    store = SqliteResponseStore(folder)
    cache = ResponseCache(store)
    client = ScriptedBackend("a", "b", "c", middleware=[cache])
    await client.generate("one")
    await client.generate("two")
    stats = await cache.stats()
    entries = [entry async for entry in store.entries()]
    assert (stats.entries, stats.path) == (2, str(folder / FILE_NAME))
    assert 0 < stats.bytes <= stats.limit
    assert [entry.label for entry in entries] == ["two::None", "one::None"]
    assert [entry.created for entry in reversed(entries)] == [stats.oldest, stats.newest]
    assert all(abs(entry.created - time.time()) < 60 for entry in entries)
    assert [entry.label async for entry in store.entries(limit=1)] == ["two::None"]
    assert await cache.clear() == 2
    assert (await cache.stats()).entries == 0
    assert not (await client.generate("one")).cached
    await client.aclose()


async def test_cleared_text_is_gone_from_the_disk(shop: Shop, folder: Path) -> None:
    store = SqliteResponseStore(folder)
    await shop.client("turnip " * 400).generate("Hello")
    await shop.close()
    assert await store.clear() == 1
    await store.aclose()
    assert b"turnip" not in b"".join(path.read_bytes() for path in folder.iterdir())


async def test_a_store_without_a_file_counts_nothing_and_closes_twice(folder: Path) -> None:
    store = SqliteResponseStore(folder)
    await store.aclose()
    await store.aclose()
    await store.open()
    store.put(kept(b"k" * 32, "late", "{}"))
    assert store.get(b"k" * 32) is None
    assert not folder.exists()


# What can go wrong


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    "content", [b"this is no database, but it is long enough to look at" * 100, b"SQLite "]
)
async def test_a_damaged_file_is_put_aside_and_a_new_one_begun(
    shop: Shop, folder: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    folder.mkdir()
    (folder / FILE_NAME).write_bytes(content)
    client = shop.client("leeks")
    await client.generate("Hello")
    await client.aclose()
    assert (folder / f"{FILE_NAME}.damaged-1").read_bytes() == content
    assert len(warnings(caplog)) == 1
    assert "damaged-1" in warnings(caplog)[0]
    assert (await shop.client().generate("Hello")).cached


async def test_a_file_damaged_while_it_is_open_is_put_aside_and_calls_go_on(
    shop: Shop, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = shop.client(lambda _: "leeks " * 100)
    for number in range(50):
        await first.generate(f"Hello {number}")
    await first.aclose()
    second = shop.client(lambda _: "chard")
    assert (await second.generate("Hello 0")).cached
    overwrite(folder / FILE_NAME)
    answers = [await second.generate(f"Hello {number}") for number in range(1, 50)]
    await second.aclose()
    assert {response.content for response in answers} <= {"chard", "leeks " * 100}
    assert any(not response.cached for response in answers)
    assert [path.name for path in folder.glob("*.damaged-1")] == [f"{FILE_NAME}.damaged-1"]
    assert len(warnings(caplog)) == 1
    assert (await shop.client().generate("Hello 49")).content == "chard"


def overwrite(file: Path) -> None:
    """Damage every page but the first, under the feet of whoever has the file open."""
    with file.open("r+b") as pages:
        size = pages.seek(0, 2)
        pages.seek(4096)  # the first page holds the schema; the rest is rows and the index over them
        pages.write(b"\xff" * (size - 4096))


async def filled(folder: Path) -> None:
    store = SqliteResponseStore(folder)
    for number in range(20):
        store.put(kept(number.to_bytes(32), "old", "x" * 1000))
    await store.aclose()


async def test_damage_that_shows_when_writing_is_treated_the_same(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await filled(folder)
    store = SqliteResponseStore(folder)
    await store.open()
    overwrite(folder / FILE_NAME)
    store.put(kept(b"a" * 32, "lost", "{}"))
    assert (await store.stats()).entries == 0  # in the new file
    store.put(kept(b"b" * 32, "kept", "{}"))
    assert (await store.stats()).entries == 1
    await store.aclose()
    assert (folder / f"{FILE_NAME}.damaged-1").exists()
    assert len(warnings(caplog)) == 1


async def test_a_disk_that_damages_the_file_again_and_again_is_given_up(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await filled(folder)
    store = SqliteResponseStore(folder)
    for _ in range(5):
        await store.open()
        for number in range(100, 120):
            store.put(kept(number.to_bytes(32), "new", "x" * 1000))
        await store.stats()
        with sqlite3.connect(folder / FILE_NAME) as db:
            db.execute("PRAGMA wal_checkpoint")
        db.close()
        overwrite(folder / FILE_NAME)
        store.get((100).to_bytes(32))
        await store.stats()
    assert store.get((100).to_bytes(32)) is None
    await store.aclose()
    assert len(list(folder.glob("*.damaged-?"))) == 3
    assert "look at the disk" in warnings(caplog)[-1]
    assert len(warnings(caplog)) == 4


async def test_a_table_that_somebody_dropped_only_loses_caching(
    shop: Shop, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client = shop.client("one", "two", "three")
    await client.generate("Hello")
    assert (await cache_of(client).stats()).entries == 1
    with sqlite3.connect(folder / FILE_NAME) as db:
        db.execute("DROP TABLE replies")
    db.close()
    assert (await client.generate("Bye")).content == "two"
    assert (await cache_of(client).stats()).entries == await cache_of(client).clear() == 0
    assert len(warnings(caplog)) == 1
    assert "no such table" in warnings(caplog)[0]


async def test_a_folder_that_another_program_keeps_locked_only_loses_caching(
    shop: Shop, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder.mkdir()
    handle = os.open(folder, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    assert (await shop.client("leeks").generate("Hello")).content == "leeks"
    os.close(handle)
    assert len(warnings(caplog)) == 1
    assert "another program keeps" in warnings(caplog)[0]


async def test_only_the_newest_damaged_files_are_kept(folder: Path) -> None:
    for _ in range(5):
        folder.mkdir(exist_ok=True)
        (folder / FILE_NAME).write_bytes(b"no database at all " * 100)
        store = SqliteResponseStore(folder)
        await store.open()
        await store.aclose()
    kept = sorted(path.name for path in folder.glob("*.damaged-*"))
    assert kept == [f"{FILE_NAME}.damaged-{number}" for number in (3, 4, 5)]


async def test_a_reply_that_changed_on_the_disk_is_not_given_out(shop: Shop, folder: Path) -> None:
    client = shop.client("leeks")
    await client.generate("Hello")
    await client.aclose()
    with sqlite3.connect(folder / FILE_NAME) as db:
        db.execute("UPDATE replies SET reply = replace(reply, 'leeks', 'beans')")
    db.close()
    assert (await shop.client("fresh").generate("Hello")).content == "fresh"


@pytest.mark.parametrize(
    "reply",
    [
        "no JSON",
        "[]",
        '"text"',
        "[" * 100_000,
        '{"content": "x"}',
        '{"content": 3, "model": "m", "backend": "b", "finish_reason": "stop"}',
        '{"content": "{}", "model": "m", "backend": "b", "finish_reason": ["stop"]}',
        '{"content": "{}", "model": "m", "backend": "b", "prompt_tokens": "many"}',
        '{"content": "{}", "model": "m", "backend": "b", "unknown": 1}',
        '{"content": "{}", "model": "m", "backend": "b", "finish_reason": "other"}',
        '{"content": "{}", "model": "m", "backend": "b"}',  # reads well, and does not fit the schema
    ],
)
async def test_a_kept_row_that_is_not_a_whole_valid_reply_is_a_miss(
    shop: Shop, folder: Path, reply: str
) -> None:
    client = shop.client(REPLY)
    await client.complete(request())
    await client.aclose()
    ((key, label, _),) = rows(folder)
    store = SqliteResponseStore(folder)
    store.put(kept(key, label, reply))
    await store.aclose()
    again = shop.client(REPLY)
    assert not (await again.complete(request())).cached
    assert (await again.complete(request())).cached


async def test_a_file_of_another_format_is_left_alone(
    shop: Shop, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder.mkdir()
    with sqlite3.connect(folder / FILE_NAME) as db:
        db.execute("PRAGMA user_version = 7")
    db.close()
    client = shop.client("one", "two")
    await client.generate("Hello")
    assert (await client.generate("Hello")).cached  # from memory
    assert len(warnings(caplog)) == 1
    assert "format is 7" in warnings(caplog)[0]
    with sqlite3.connect(folder / FILE_NAME) as db:
        assert db.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    db.close()


async def test_a_folder_that_cannot_be_made_only_loses_caching(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    shop = Shop(tmp_path / "file" / "cache")
    client = shop.client("one", "two", "three")
    await client.generate("Hello")
    await client.generate("Bye")
    await client.aclose()
    assert (await shop.client("again").generate("Hello")).content == "again"
    await shop.close()
    assert len(warnings(caplog)) == 2  # one for each client
    assert str(tmp_path / "file" / "cache") in warnings(caplog)[0]


async def test_a_folder_name_that_cannot_be_only_loses_caching(caplog: pytest.LogCaptureFixture) -> None:
    shop = Shop(Path("no\0name"))
    assert (await shop.client("leeks").generate("Hello")).content == "leeks"
    await shop.close()
    assert "null byte" in warnings(caplog)[0]


async def test_a_tilde_means_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert SqliteResponseStore("~/cache").path == tmp_path / "cache" / FILE_NAME


async def test_a_link_in_place_of_the_file_is_not_followed(
    shop: Shop, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder.mkdir()
    target = folder / "precious"
    target.write_text("mine")
    (folder / FILE_NAME).symlink_to(target)
    await shop.client("leeks").generate("Hello")
    assert target.read_text() == "mine"
    assert "no regular file" in warnings(caplog)[0]


async def test_a_locked_file_costs_no_call_any_time_and_is_said_once(
    shop: Shop, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client = shop.client(lambda _: "leeks")
    await client.generate("first")
    await cache_of(client).stats()  # it is written now
    holder = sqlite3.connect(folder / FILE_NAME, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    started = time.monotonic()
    await client.generate("second")
    await client.generate("third")
    assert time.monotonic() - started < 1
    await client.aclose()  # waits in vain for the lock, and gives up
    holder.execute("ROLLBACK")
    holder.close()
    assert len(warnings(caplog)) == 1
    assert "locked" in warnings(caplog)[0]


def run(code: str, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    head = "import asyncio, logging, sys; from llm import LLMConfig, get_llm_client; logging.basicConfig()\n"
    return subprocess.Popen(
        [sys.executable, "-c", head + textwrap.dedent(code), str(folder), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_full_disk_only_loses_caching(folder: Path) -> None:
    # A limit on the size of files stands for the full disk: the kernel refuses the write in the same place.
    code = """
        import resource
        usual = resource.getrlimit(resource.RLIMIT_FSIZE)
        async def main():
            async with get_llm_client(LLMConfig(backend="mock", cache_dir=sys.argv[1])) as client:
                await client.generate("before")
                resource.setrlimit(resource.RLIMIT_FSIZE, (4096, usual[1]))
                for number in range(20):
                    await client.generate(f"Hello {number}")
                print("answered", client.get_stats()["calls"])
        asyncio.run(main())
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    """
    process = run(code, folder)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "answered 21\n"), err
    assert err.count("WARNING") == 1
    assert "calls go on without it" in err


def test_a_program_that_never_closes_its_client_keeps_its_replies_all_the_same(folder: Path) -> None:
    code = """
        async def main():
            client = get_llm_client(LLMConfig(backend="mock", cache_dir=sys.argv[1]))
            print((await client.generate("Hello")).cached)
        asyncio.run(main())
    """
    for expected in ("False\n", "True\n"):
        process = run(code, folder)
        out, err = process.communicate(timeout=60)
        assert (out, err) == (expected, "")


def test_several_processes_share_one_file_and_lose_nothing(folder: Path) -> None:
    code = """
        async def main():
            for round in range(5):
                async with get_llm_client(LLMConfig(backend="mock", cache_dir=sys.argv[1])) as client:
                    for number in range(20):
                        await client.generate(f"from {sys.argv[2]}: {number}")
                        await client.generate(f"from all: {number}")
        asyncio.run(main())
    """
    processes = [run(code, folder, str(number)) for number in range(4)]
    for process in processes:
        _, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, "")
    labels = {label for _, label, _ in rows(folder)}
    assert len(labels) == len(rows(folder)) == 4 * 20 + 20
    assert sorted(path.name for path in folder.iterdir()) == [FILE_NAME]


def test_processes_that_meet_one_damaged_file_put_it_aside_once(folder: Path) -> None:
    folder.mkdir()
    (folder / FILE_NAME).write_bytes(b"no database at all " * 1000)
    code = """
        async def main():
            async with get_llm_client(LLMConfig(backend="mock", cache_dir=sys.argv[1])) as client:
                for number in range(20):
                    await client.generate(f"from {sys.argv[2]}: {number}")
        asyncio.run(main())
    """
    processes = [run(code, folder, str(number)) for number in range(4)]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert "".join(errors).count("WARNING") == 1
    assert len(rows(folder)) == 80
    assert sorted(path.name for path in folder.iterdir()) == [FILE_NAME, f"{FILE_NAME}.damaged-1"]


# Memory


async def test_the_memory_before_the_store_is_bounded_and_what_it_lost_is_still_on_the_disk(
    folder: Path,
) -> None:
    shop = Shop(folder)
    client = shop.client(lambda _: "x" * 200_000)
    for number in range(8):
        await client.generate(f"Hello {number}")
    cache = cache_of(client)
    held = sum(len(entry.response.content) for entry in cache._recent._entries.values())
    assert 200_000 <= held <= RECENT_BYTES
    await cache.stats()  # the disk has caught up
    assert (await client.generate("Hello 0")).cached
    await shop.close()


async def test_how_full_the_cache_is_is_told_without_making_a_file(folder: Path) -> None:
    config = LLMConfig(backend="mock", cache_dir=str(folder))
    async with get_llm_client(config) as client:
        nothing = await client.cache_stats()
        assert nothing is not None
        assert (nothing.entries, nothing.bytes, nothing.evicted) == (0, 0, 0)
        assert not folder.exists()
        await client.generate("Hello")
        kept_one = await client.cache_stats()
        assert kept_one is not None
        assert kept_one.entries == 1
    async with get_llm_client(config) as another:  # before its first call
        found = await another.cache_stats()
        assert found is not None
        assert found.entries == 1
    async with get_llm_client(config.with_values(enable_cache=False)) as without:
        assert await without.cache_stats() is None


async def test_replies_that_went_to_make_room_are_counted_and_cleared_ones_are_not(folder: Path) -> None:
    store = SqliteResponseStore(folder, max_bytes=128 * 1024)
    for number in range(100):
        store.put(kept(number.to_bytes(32), f"question {number}", "x" * 3000))
        await store.stats()
    full = await store.stats()
    assert full.evicted == 100 - full.entries > 0
    await store.clear()
    assert (await store.stats()).evicted == full.evicted
    await store.aclose()
