"""What the mlx backend is worth: batches beside calls in turn, what a schema costs, how soon it stops.

CPU seconds are those of the engine's process; both contenders use the same BLAS, one thread.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from llm import LLMConfig, LLMError
from llm.backends.mlx import MLXBackend
from llm.errors import BadRequest, ServerError
from llm.structured import validate
from llm.types import LLMMessage, StreamEnd
from tests.support.engines import cpu_seconds, requires_llamacpp, requires_mlx
from tests.support.smollm_mlx import make_smollm
from tests.support.tiny_mlx import make_tiny_model

pytestmark = [requires_mlx, requires_llamacpp, pytest.mark.timeout(600)]

AGENTS = 8
TOKENS = 32
SYSTEM = "The daemon schedules agents that watch sensors and write short reports about what they saw. " * 29
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "action": {"enum": ["email", "wait", "note", "notify"]},
        "priority": {"type": "integer", "minimum": 1, "maximum": 5},
        "reason": {"type": "string", "maxLength": 40},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 8}, "maxItems": 2},
    },
    "required": ["action", "priority", "reason", "tags"],
    "additionalProperties": False,
}
NOWHERE = {"$ref": "#/nowhere"}


@pytest.fixture(scope="session")
def smollm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_smollm(tmp_path_factory.mktemp("bench") / "smollm2")


@asynccontextmanager
async def engine(model: Path, folder: Path, **changes: Any) -> AsyncIterator[MLXBackend]:
    """A backend whose process is up and has answered once."""
    values: dict[str, Any] = {"cache_dir": str(folder / "cache"), "timeout": 600.0, "temperature": 0.0}
    config = LLMConfig(backend="mlx", model=str(model), enable_cache=False, **{**values, **changes})
    async with MLXBackend(config) as backend:
        await backend.generate("Hello", max_tokens=2)
        yield backend


def pid_of(backend: MLXBackend) -> int:
    process = backend._host.current
    assert process is not None
    assert process.pid is not None
    return process.pid


def conversations() -> list[list[LLMMessage]]:
    return [
        [
            LLMMessage("system", SYSTEM.strip()),
            LLMMessage("user", f"Agent {n}: sensor {n * 7} reads {20 + n} degrees. Write one short line."),
        ]
        for n in range(AGENTS)
    ]


def naive(model: Path) -> dict[str, Any]:
    prompts = [[{"role": turn.role, "content": turn.content} for turn in turns] for turns in conversations()]
    asked = {"model": str(model), "prompts": prompts, "max_tokens": TOKENS}
    script = Path(__file__).with_name("naive_mlx.py")
    done = subprocess.run(
        [sys.executable, str(script)],
        input=json.dumps(asked),
        env={"OPENBLAS_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


async def test_agents_that_share_a_prefix_get_their_answers_for_a_fraction(
    smollm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    floor = await asyncio.to_thread(naive, smollm)
    async with engine(smollm, tmp_path) as backend:
        before, wall = cpu_seconds(pid_of(backend)), time.perf_counter()
        lags: list[float] = []
        watch = asyncio.create_task(watch_the_loop(lags))
        ends = await asyncio.gather(*(one_stream(backend, turns) for turns in conversations()))
        watch.cancel()
        cpu, wall = cpu_seconds(pid_of(backend)) - before, time.perf_counter() - wall
        first = statistics.median(end.response.first_token or 0.0 for end in ends)
    texts = [end.response.content for end in ends]
    same = sum(ours == theirs for ours, theirs in zip(texts, floor["texts"], strict=True))
    tokens = sum(end.response.completion_tokens for end in ends)
    ratio = floor["cpu"] / cpu
    print(
        f"\n{AGENTS} agents, prompts of {ends[0].response.prompt_tokens} tokens, {tokens} tokens out together"
    )
    print(f"  {'mlx-lm, one call after the other':44}{floor['cpu']:8.1f} CPU s{floor['wall']:8.1f} s")
    print(f"  {'MLXBackend':44}{cpu:8.1f} CPU s{wall:8.1f} s{ratio:8.2f}x the tokens per CPU second")
    print(f"  answers alike: {same} of {AGENTS}; first text after {first:.1f} s (median)")
    print(f"  read from the shared prefix: {[end.response.cached_tokens for end in ends]}")
    lags.sort()
    print(f"  event loop late by p50 {lags[len(lags) // 2] * 1e3:.1f}, p99 {at(lags, 0.99) * 1e3:.1f} ms")
    assert same == AGENTS
    assert ratio >= 4


async def one_stream(backend: MLXBackend, turns: list[LLMMessage], tokens: int = TOKENS) -> StreamEnd:
    async for chunk in backend.stream_chat(turns, max_tokens=tokens):
        if isinstance(chunk, StreamEnd):
            return chunk
    raise AssertionError("a stream ends with its end")


async def watch_the_loop(lags: list[float]) -> None:
    while True:
        begun = time.perf_counter()
        await asyncio.sleep(0.005)
        lags.append(time.perf_counter() - begun - 0.005)


def at(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


async def test_every_reply_fits_its_schema_with_random_weights(tmp_path: Path) -> None:
    replies, together = 1000, 64
    turn = asyncio.Semaphore(together)
    async with engine(
        make_tiny_model(tmp_path / "tiny"), tmp_path, temperature=1.0, top_p=1.0, max_concurrency=together
    ) as backend:

        async def one(number: int) -> bool:
            async with turn:
                reply = await backend.generate(f"Sensor {number}?", schema=SCHEMA, max_tokens=400)
            try:
                validate(SCHEMA, reply.content)
            except LLMError:
                return False
            return True

        free = await backend.generate("Sensor?", max_tokens=100)
        started = time.perf_counter()
        fits = sum(await asyncio.gather(*(one(number) for number in range(replies))))
        seconds = time.perf_counter() - started
    print(f"\nRandom weights, temperature 1: {fits} of {replies} replies fit the schema, in {seconds:.0f} s")
    print(f"  without the schema: {free.content[:60]!r}")
    assert fits == replies


async def test_a_streamed_token_costs_the_caller_little(tmp_path: Path) -> None:
    async with engine(make_tiny_model(tmp_path / "tiny"), tmp_path, temperature=1.0, top_p=1.0) as backend:
        spent, tokens = 0.0, 0
        for _ in range(3):
            before = time.process_time()
            ends = await asyncio.gather(*(one_stream(backend, turns[1:], 400) for turns in conversations()))
            spent += time.process_time() - before
            tokens += sum(end.response.completion_tokens for end in ends)
    line = json.dumps({"id": 7, "text": " token"}) + "\n"
    before = time.process_time()
    for _ in range(10_000):
        json.loads(line)
    floor = (time.process_time() - before) / 10_000 * 1e6
    print(f"\nOne streamed token costs the caller {spent / tokens * 1e6:.0f} us CPU of {tokens}, over all of")
    print(f"  pipe, JSON, chunk and client; json.loads alone {floor:.1f} us")
    assert spent / tokens < 1e-3


async def test_a_schema_costs_little_beside_the_token_it_is_about(smollm: Path, tmp_path: Path) -> None:
    rounds, tokens = 3, 16
    text = {"type": "string", "minLength": 400, "maxLength": 500}
    costs: dict[str, list[float]] = {"free": [], "held to a schema": []}
    async with engine(smollm, tmp_path) as backend:
        await backend.generate("Tell me of the sea.", schema=text, max_tokens=2)  # the vocabulary, once
        for _ in range(rounds):
            for name, schema in (("free", None), ("held to a schema", text)):
                before = cpu_seconds(pid_of(backend))
                reply = await backend.generate("Tell me of the sea.", schema=schema, max_tokens=tokens)
                spent = cpu_seconds(pid_of(backend)) - before
                costs[name].append(spent / reply.completion_tokens * 1000)
    pairs = zip(costs["held to a schema"], costs["free"], strict=True)
    more = statistics.median(held / free for held, free in pairs) - 1
    print("\nOne token of SmolLM2-135M")
    for name, values in costs.items():
        print(f"  {name:44}{statistics.median(values):8.1f} CPU ms")
    print(f"  the schema costs {more * 100:+.1f} %")
    assert more < 0.15  # the goal is 5 %; a busy machine varies by more than that


async def test_a_call_that_nobody_waits_for_frees_its_row_soon(smollm: Path, tmp_path: Path) -> None:
    async with engine(smollm, tmp_path) as backend:

        async def seconds_until_it_looks_up() -> float:
            """A request that is refused at once is answered when the engine looks up from its work."""
            begun = time.perf_counter()
            with pytest.raises(BadRequest):
                await backend.generate("Hello", schema=NOWHERE)
            return time.perf_counter() - begun

        await seconds_until_it_looks_up()  # makes the grammar's vocabulary, once
        idle = [await seconds_until_it_looks_up() for _ in range(3)]
        decode, prefill = [], []
        for number in range(9):
            stream = backend.stream(f"Tell me a long story of {number} cats.", max_tokens=500)
            for _ in range(3):
                await anext(stream)
            await asyncio.sleep(number * 0.023)  # somewhere in a step, which takes 0.1 s
            await stream.aclose()
            decode.append(await seconds_until_it_looks_up())
            call = asyncio.create_task(backend.generate(f"word {number} " * 500, max_tokens=5))
            await asyncio.sleep(1.0 + number * 0.13)  # somewhere in a prompt that takes 8 s to read
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            prefill.append(await seconds_until_it_looks_up())
        killed, back = await killed_and_back(backend)
    print("\nSeconds from a cancellation until the engine is free")
    rows = {"idle": idle, "while it generates": decode, "while it reads a prompt": prefill}
    for name, values in {**rows, "kill -9 to the error": [killed], "next answer after it": [back]}.items():
        print(f"  {name:44}{statistics.median(values):8.3f} median{max(values):8.3f} most")
    assert statistics.median(decode) < 1
    assert statistics.median(prefill) < 1
    assert killed < 1


async def killed_and_back(backend: MLXBackend) -> tuple[float, float]:
    """Seconds from kill -9 to the error of the call under way, and those of the next call's answer."""
    stream = backend.stream("Tell me a long story.", max_tokens=500)
    await anext(stream)
    psutil.Process(pid_of(backend)).kill()
    begun = time.perf_counter()
    with pytest.raises(ServerError):
        await stream.collect()
    failed = time.perf_counter()
    await backend.generate("Hello", max_tokens=1)
    return failed - begun, time.perf_counter() - failed
