"""What the LLM layer costs: a call beside a bare httpx call, a cache hit beside a bare SQLite read."""

from __future__ import annotations

import itertools
import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from llm import LLMConfig, get_llm_client
from tests.benchmarks.measure import compare, show

CALLS = 300
HITS = 2000
BODY = {
    "model": "stub",
    "messages": [{"role": "user", "content": "Does it?"}],
    "temperature": 0.7,
    "max_tokens": 512,
    "top_p": 0.9,
    "stream": False,
}


@pytest.fixture
def base() -> Iterator[str]:
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("stub_server.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}/v1"


async def test_a_call_costs_little_more_than_the_bare_http_exchange(base: str, tmp_path: Path) -> None:
    config = LLMConfig(backend="remote", model="stub", api_base=base, cache_dir=str(tmp_path))
    fresh = (f"Question {number}" for number in itertools.count())
    async with (
        httpx.AsyncClient(verify=False) as bare,
        get_llm_client(config.with_values(enable_cache=False)) as plain,
        get_llm_client(config) as caching,
    ):

        async def bare_calls() -> None:
            for _ in range(CALLS):
                reply = (await bare.post(f"{base}/chat/completions", json=BODY)).json()
                assert reply["choices"][0]["message"]["content"]

        async def plain_calls() -> None:
            for _ in range(CALLS):
                assert (await plain.generate("Does it?")).content

        async def missed_and_stored() -> None:
            for _ in range(CALLS):
                assert not (await caching.generate(next(fresh))).cached

        rows = await compare(
            {
                "bare httpx": bare_calls,
                "generate(), cache off": plain_calls,
                "generate(), missed and stored": missed_and_stored,
            },
            operations=CALLS,
        )
    show("One call over loopback", rows)
    assert rows[1].ratio < 1.5


async def test_a_cache_hit_costs_little_beside_the_call_it_saves(base: str, tmp_path: Path) -> None:
    config = LLMConfig(backend="remote", model="stub", api_base=base, cache_dir=str(tmp_path))
    database = sqlite3.connect(tmp_path / "floor.sqlite3")
    database.execute("CREATE TABLE t (key BLOB PRIMARY KEY, value TEXT) WITHOUT ROWID")
    database.execute("INSERT INTO t VALUES (?, ?)", (b"k" * 32, json.dumps(BODY)))
    async with httpx.AsyncClient(verify=False) as bare, get_llm_client(config) as client:
        await client.generate("Does it?")

        async def bare_calls() -> None:
            for _ in range(HITS // 10):
                await bare.post(f"{base}/chat/completions", json=BODY)

        async def reads() -> None:
            for _ in range(HITS):
                row = database.execute("SELECT value FROM t WHERE key = ?", (b"k" * 32,)).fetchone()
                json.loads(row[0])

        async def hits() -> None:
            for _ in range(HITS):
                assert (await client.generate("Does it?")).cached

        rows = await compare(
            {"bare SQLite read + JSON": reads, "generate(), cache hit": hits}, operations=HITS
        )
        calls = await compare({"bare httpx call": bare_calls}, operations=HITS // 10, rounds=3)
    database.close()
    show("One cache hit", [*rows, *calls])
    assert rows[1].micros < calls[0].micros


def test_importing_the_layer_costs_little_beside_importing_httpx() -> None:
    code = "import time; s = time.process_time(); import {}; print(time.process_time() - s)"

    def cost(module: str) -> float:
        runs = (
            float(subprocess.check_output([sys.executable, "-c", code.format(module)], text=True))
            for _ in range(5)
        )
        return min(runs)

    ours, theirs = cost("llm"), cost("httpx")
    print(f"\nimport llm: {ours * 1000:.1f} ms CPU; import httpx: {theirs * 1000:.1f} ms CPU")
    assert ours < theirs
