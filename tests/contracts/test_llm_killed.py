"""An engine that dies in the middle of a stream: an error of ours at once, and the next call is answered."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil
import pytest

from llm import LLMConfig
from llm.client import LLMClient
from llm.errors import BadReply, ConnectionFailed, LLMError, ServerError
from llm.factory import get_llm_client
from llm.types import TextChunk
from tests.support import llama_server, real_ollama
from tests.support.engines import becomes_true, cpu_seconds, requires_llamacpp, requires_mlx
from tests.support.real_engines import Engines
from tests.support.smollm_mlx import make_smollm

pytestmark = [pytest.mark.contract, pytest.mark.engine]

STORY = "Write a very long story about a dragon and a castle, with many chapters."
AT_ONCE = 1.0
TRIES = 3
"""A machine with other work may be late by itself; a client that is late is so every time."""

Victims = Callable[[], list[psutil.Process]]


@dataclass(frozen=True)
class Engine:
    """One engine, and how its processes are found once it answers."""

    config: LLMConfig
    victims: Victims


def config(**values: object) -> LLMConfig:
    """Without retries: the next call is to succeed by itself."""
    common = {
        "temperature": 0.0,
        "timeout": 120.0,
        "context_length": 2048,
        "enable_cache": False,
        "retries": 0,
    }
    return LLMConfig.from_mapping({**common, **values})


def _new_children() -> Victims:
    """The processes that this one has then and has not now."""
    before = {child.pid for child in psutil.Process().children()}
    return lambda: [child for child in psutil.Process().children() if child.pid not in before]


def ollama(engines: Engines) -> Engine:
    base = engines.ollama_address()
    return Engine(config(backend="ollama", model=real_ollama.MODEL, api_base=base), engines.ollama.runners)


def llamacpp(engines: Engines) -> Engine:
    return Engine(config(backend="llamacpp", model=llama_server.MODEL), _new_children())


def mlx(engines: Engines) -> Engine:
    model = engines.folder_of("smollm2", make_smollm)
    cache = str(engines.folder / "cache")
    return Engine(config(backend="mlx", model=model, cache_dir=cache), _new_children())


ENGINES = [
    pytest.param(ollama, id="ollama-0.9.3", marks=requires_llamacpp),
    pytest.param(llamacpp, id="llamacpp", marks=requires_llamacpp),
    pytest.param(mlx, id="mlx-smollm2", marks=[requires_mlx, requires_llamacpp]),
]


async def killed_midstream(client: LLMClient, victims: Victims) -> tuple[LLMError, float]:
    """The error of a stream whose engine is killed after the first words, and how long it took to come."""
    killed: list[float] = []

    async def read() -> None:
        async for chunk in client.stream(STORY, max_tokens=1500):
            if isinstance(chunk, TextChunk) and not killed:
                found = victims()
                assert found
                for victim in found:
                    victim.kill()
                killed.append(time.monotonic())

    with pytest.raises(LLMError) as caught:
        await read()
    return caught.value, time.monotonic() - killed[0]


@pytest.mark.parametrize("engine", ENGINES)
async def test_an_engine_killed_in_midstream_is_an_error_at_once_and_the_next_call_is_answered(
    engine: Callable[[Engines], Engine], engines: Engines
) -> None:
    made = engine(engines)
    late = []
    for _ in range(TRIES):
        async with get_llm_client(made.config) as client:
            error, seconds = await killed_midstream(client, made.victims)
            assert type(error) in {ServerError, ConnectionFailed, BadReply}
            again = await client.generate("Say hi.", max_tokens=4)
            assert again.completion_tokens > 0
        if seconds <= AT_ONCE:
            return
        late.append(seconds)
    pytest.fail(f"each time too late: {late}")


@requires_llamacpp
async def test_a_stream_closed_early_stops_the_runner_of_a_genuine_ollama(engines: Engines) -> None:
    made = ollama(engines)
    async with get_llm_client(made.config) as client:
        async with client.stream(STORY, max_tokens=1500) as stream:
            await anext(stream)
        (runner,) = made.victims()
        used = [cpu_seconds(runner.pid)]

        def rests() -> bool:
            """Whether it computed less than a tenth of the time since the last look."""
            time.sleep(0.3)
            used.append(cpu_seconds(runner.pid))
            return used[-1] - used[-2] < 0.03

        assert becomes_true(rests, seconds=10.0)  # 1500 tokens take more than 15 s on any machine like this
