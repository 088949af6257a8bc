"""What the response cache costs and saves, beside a dict with LRU and a bare SQLite read in the same run.

The times are those of single operations, the median of each round; contenders take turns, so that a busy
machine slows all of them. `ASKFIRST_BENCH_ENTRIES` sets how many replies the file holds (10,000).
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import os
import random
import sqlite3
import statistics
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from llm import LLMConfig, LLMRequest, LLMResponse, get_llm_client
from llm.client import LLMClient
from llm.middleware.cache import ResponseCache
from llm.middleware.coalesce import Coalesce
from llm.middleware.replies import written_reply
from llm.stores.base import StoredReply
from llm.stores.sqlite import SqliteResponseStore
from llm.testing import ScriptedBackend
from tests.benchmarks.measure import compare, show
from tests.support.asked import fuzz_keys

ENTRIES = int(os.environ.get("ASKFIRST_BENCH_ENTRIES", "10000"))
SYSTEM = "You are a careful assistant."
TEXT = "The quick brown fox jumps over the lazy dog. " * 8
READS = 2000
ROUNDS = 7

Read = Callable[[int], Awaitable[object]]


def prompt(number: int) -> str:
    return f"Summarise sensor {number}. " * 8


def reply(number: int) -> LLMResponse:
    return LLMResponse(
        content=f"{number} {TEXT}", model="mock", backend="mock", prompt_tokens=42, completion_tokens=72
    )


class Floor:
    """A bare SQLite file, and an LRU dict, with replies of the same size."""

    def __init__(self, folder: Path) -> None:
        self.db = sqlite3.connect(folder / "floor.sqlite3", isolation_level=None)
        for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "cache_size = -4096"):
            self.db.execute(f"PRAGMA {pragma}")
        self.db.execute("CREATE TABLE c (k BLOB PRIMARY KEY, created REAL, body TEXT) WITHOUT ROWID")
        self.keys = [os.urandom(32) for _ in range(ENTRIES)]
        self.db.execute("BEGIN")
        rows = ((key, 1.0, written_reply(reply(number))) for number, key in enumerate(self.keys))
        self.db.executemany("INSERT INTO c VALUES (?, ?, ?)", rows)
        self.db.execute("COMMIT")
        self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self.recent = OrderedDict((key, reply(number)) for number, key in enumerate(self.keys[:500]))

    async def memory(self, number: int) -> object:
        key = self.keys[number % 500]
        self.recent.move_to_end(key)
        return self.recent[key]

    async def disk(self, number: int) -> object:
        row = self.db.execute("SELECT created, body FROM c WHERE k = ?", (self.keys[number],)).fetchone()
        return json.loads(row[1])

    async def disk_with_key(self, number: int) -> object:
        question = {"model": "mock", "system": SYSTEM, "prompt": prompt(number), "temperature": 0.7}
        hashlib.sha256(json.dumps(question, sort_keys=True).encode()).digest()
        return await self.disk(number)


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[LLMClient]:
    """A client whose cache file holds ENTRIES replies."""
    config = LLMConfig(backend="mock", cache_dir=str(tmp_path), cache_max_bytes=2**30)
    async with get_llm_client(config) as made:
        await made.generate("to open it", SYSTEM)
        cache = made._middleware[0]
        assert isinstance(cache, ResponseCache)
        for number in range(ENTRIES):
            request, _ = made._request(_turns(number), {})
            key, text = cache._keys.key(request, ""), written_reply(reply(number))
            assert key
            assert text
            cache._store.put(StoredReply(key=key, label=prompt(number), reply=text, created=time.time()))
            if number % 5000 == 0:
                await cache.stats()
        assert (await cache.stats()).entries == ENTRIES + 1
        yield made


def _turns(number: int) -> list[object]:
    from llm.client import _turns as turns

    return turns(prompt(number), SYSTEM)


async def median_us(read: Read, numbers: list[int]) -> float:
    spent = []
    for number in numbers:
        started = time.perf_counter_ns()
        await read(number)
        spent.append(time.perf_counter_ns() - started)
    return statistics.median(spent) / 1000


async def test_a_hit_beside_the_floors(client: LLMClient, tmp_path: Path) -> None:
    floor = Floor(tmp_path)
    cache = client._middleware[0]
    assert isinstance(cache, ResponseCache)

    async def from_disk(number: int) -> None:
        assert (await client.generate(prompt(number), SYSTEM)).cached

    async def from_memory(_: int) -> None:
        assert (await client.generate(same, SYSTEM)).cached

    same = prompt(1)
    contenders: dict[str, Read] = {
        "dict + LRU (floor)": floor.memory,
        "generate(), hit in memory": from_memory,
        "SELECT + json.loads (floor)": floor.disk,
        "key + SELECT + json.loads (floor)": floor.disk_with_key,
        "generate(), hit on disk": from_disk,
    }
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        numbers = random.sample(range(ENTRIES), k=min(READS, ENTRIES))
        for name, read in contenders.items():
            if read is from_disk:
                cache._recent.clear()
            samples[name].append(await median_us(read, numbers))
    print(
        f"\nOne hit, {ENTRIES} replies in the file: p50 in microseconds, best and median of {ROUNDS} rounds"
    )
    for name, values in samples.items():
        print(f"  {name:44}{min(values):8.2f}{statistics.median(values):8.2f}")
    floor.db.close()
    disk, bare = samples["generate(), hit on disk"], samples["SELECT + json.loads (floor)"]
    assert statistics.median(a / b for a, b in zip(disk, bare, strict=True)) < 10
    assert min(samples["generate(), hit in memory"]) < min(disk)


async def test_what_a_miss_pays_for_being_kept(tmp_path: Path) -> None:
    config = LLMConfig(backend="mock", cache_dir=str(tmp_path))
    fresh = (f"Question {number}" for number in itertools.count())
    count = 1000
    async with (
        get_llm_client(config.with_values(enable_cache=False)) as plain,
        get_llm_client(config) as caching,
    ):

        async def without() -> None:
            for _ in range(count):
                await plain.generate(next(fresh))

        async def with_it() -> None:
            for _ in range(count):
                await caching.generate(next(fresh))
            await caching._middleware[0].stats()  # type: ignore[attr-defined]  # the writer's time counts too

        rows = await compare({"cache off": without, "missed, shared and stored": with_it}, operations=count)
    show("One call of the mock, all threads of the process", rows)
    print(f"  {'a miss pays':44}{rows[1].micros - rows[0].micros:>10.1f}")
    assert rows[1].micros - rows[0].micros < 1000


async def test_64_identical_calls_are_one_and_a_cancelled_leader_hands_over(tmp_path: Path) -> None:
    async def slow(request: LLMRequest) -> str:
        await asyncio.sleep(0.05)
        return "leeks"

    middleware = [ResponseCache(SqliteResponseStore(tmp_path)), Coalesce()]
    config = LLMConfig(backend="scripted", model="m", cache_dir=str(tmp_path))
    async with ScriptedBackend(slow, slow, config=config, middleware=middleware) as client:
        started = time.process_time()
        await asyncio.gather(*(client.generate("Hello") for _ in range(64)))
        spent = (time.process_time() - started) / 64 * 1e6
        first = len(client.requests)
        calls = [asyncio.create_task(client.generate("Bye")) for _ in range(64)]
        await asyncio.sleep(0.01)
        calls[0].cancel()
        answers = await asyncio.gather(*calls, return_exceptions=True)
        again = len(client.requests) - first
    told = sum(isinstance(answer, LLMResponse) for answer in answers)
    print(f"\n64 identical calls: {first} upstream, {spent:.0f} us CPU each")
    print(f"64 identical calls, the leader cancelled: {told} answers, {again} upstream")
    assert (first, told, again) == (1, 63, 1)


def test_100_000_changes_change_the_key_and_100_000_other_orders_do_not() -> None:
    for seed in range(10):
        fuzz_keys(10_000, seed=20261126 + seed)
    print("\n100,000 key cases: every change changed the key, no other order did")
