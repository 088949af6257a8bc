"""What the LLM layer costs: calls, streams, imports and memory, each beside bare httpx in the same run."""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest

from llm import LLMConfig, TextChunk, get_llm_client
from tests.benchmarks.measure import compare, show
from tests.benchmarks.stub_server import PIECES

CALLS = 300
TOGETHER = 64
ROUNDS = 5
STREAMS = 20
GROWTH_CALLS = 2_000
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
    show("One call over loopback (goal: at most 1.05x)", rows)
    assert rows[1].ratio < 1.5


async def test_a_call_among_64_costs_little_more_than_the_bare_exchange_among_64(base: str) -> None:
    config = LLMConfig(backend="remote", model="stub", api_base=base, enable_cache=False, max_concurrency=64)
    async with (
        httpx.AsyncClient(verify=False, limits=httpx.Limits(max_connections=None)) as bare,
        get_llm_client(config) as client,
    ):

        async def bare_call() -> None:
            for _ in range(ROUNDS):
                assert (await bare.post(f"{base}/chat/completions", json=BODY)).json()["choices"]

        async def our_call() -> None:
            for _ in range(ROUNDS):
                assert (await client.generate("Does it?")).content

        async def together(call: Callable[[], Awaitable[None]]) -> None:
            await asyncio.gather(*(call() for _ in range(TOGETHER)))

        rows = await compare(
            {
                "bare httpx": partial(together, bare_call),
                "generate(), cache off": partial(together, our_call),
            },
            operations=TOGETHER * ROUNDS,
        )
    show("One call of 64 at a time (goal: at most 1.05x)", rows)
    assert rows[1].ratio < 1.5


async def test_a_piece_of_a_stream_costs_little_more_than_plain_httpx_and_ten_lines(base: str) -> None:
    config = LLMConfig(backend="remote", model="stub", api_base=base, enable_cache=False)
    body = {**BODY, "stream": True}
    async with httpx.AsyncClient(verify=False) as bare, get_llm_client(config) as client:

        async def plain_streams() -> None:
            for _ in range(STREAMS):
                pieces = 0
                async with bare.stream("POST", f"{base}/chat/completions", json=body) as reply:
                    async for line in reply.aiter_lines():
                        if line.startswith("data: {"):
                            pieces += "content" in json.loads(line[6:])["choices"][0]["delta"]
                assert pieces == PIECES

        async def our_streams() -> None:
            for _ in range(STREAMS):
                pieces = 0
                async for chunk in client.stream("Does it?"):
                    pieces += isinstance(chunk, TextChunk)
                assert pieces == PIECES

        rows = await compare(
            {"httpx and ten lines of SSE": plain_streams, "client.stream()": our_streams},
            operations=STREAMS * PIECES,
        )
    show("One piece of a stream of 73 (goal: at most 1.1x)", rows)
    assert rows[1].ratio < 1.5


def test_the_first_answer_comes_nearly_as_soon_and_takes_nearly_as_little_memory(base: str) -> None:
    """Goals 2 and 3: a fresh process each time, CPU seconds to its first answer and memory after it."""
    bare, ours = ([_first_answer(script.format(base=base)) for _ in range(5)] for script in (_BARE, _OURS))
    (bare_cpu, bare_rss, _), (our_cpu, our_rss, our_growth) = (
        tuple(statistics.median(column) for column in zip(*runs, strict=True)) for runs in (bare, ours)
    )
    print("\nStart to first answer, a process of its own each (goals: 1.1x, +2 MB, +1 MB)")
    print(f"  bare httpx   {bare_cpu * 1000:6.0f} ms CPU  {bare_rss:6.1f} MB")
    print(f"  generate()   {our_cpu * 1000:6.0f} ms CPU  {our_rss:6.1f} MB   {our_cpu / bare_cpu:.2f}x")
    print(f"  generate() after {GROWTH_CALLS:,} more calls: {our_growth:+.1f} MB")
    assert our_cpu < 2 * bare_cpu
    assert our_growth < 5


_MEASURE = """
import asyncio, time
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 1e6
"""
_BARE = (
    _MEASURE
    + """
import httpx
async def main():
    async with httpx.AsyncClient(verify=False) as client:
        body = {{"model": "stub", "messages": [{{"role": "user", "content": "Does it?"}}]}}
        assert (await client.post("{base}/chat/completions", json=body)).json()["choices"]
    print(time.process_time(), resident(), 0)
asyncio.run(main())
"""
)
_OURS = (
    _MEASURE
    + """
from llm import LLMConfig, get_llm_client
async def main():
    config = LLMConfig(backend="remote", model="stub", api_base="{base}", enable_cache=False)
    async with get_llm_client(config) as client:
        assert (await client.generate("Does it?")).content
        cpu, before = time.process_time(), resident()
        for _ in range(GROWTH_CALLS):
            await client.generate("Does it?")
    print(cpu, before, resident() - before)
asyncio.run(main())
"""
)


def _first_answer(script: str) -> tuple[float, float, float]:
    code = script.replace("GROWTH_CALLS", str(GROWTH_CALLS))
    said = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    cpu, memory, growth = map(float, said)
    return cpu, memory, growth


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
