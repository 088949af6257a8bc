"""10,000 replies of an engine process that no engine should give: answers, or errors of ours without a key.

The lines are the child's; who reads them is the real `EngineProcess` and the real `MLXBackend`, without the
process.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm.backends.child import EngineProcess, Launch
from llm.backends.mlx import MLXBackend
from llm.config import LLMConfig
from llm.errors import DeadlineExceeded, LLMError
from llm.types import LLMMessage, LLMRequest, LLMResponse
from tests.support.canary import CANARY, links, shown, shows_key
from tests.support.hostile import changed, programs

pytestmark = [pytest.mark.usefixtures("untraced"), pytest.mark.timeout(600)]

REQUEST = LLMRequest(
    messages=(LLMMessage("user", "Hi"),), model="m", temperature=0.0, max_tokens=64, top_p=0.9
)
READY = {"chat": True, "thinking": True, "tools": True, "embedding": False, "context_length": 2048}

END = {
    "id": 1,
    "text": "París 🍅",
    "thinking": "hm",
    "tool_calls": [{"name": "get_weather", "arguments": {"city": "P"}}],
    "finish": "stop",
    "prompt_tokens": 7,
    "completion_tokens": 9,
    "prompt_cached": 3,
    "thinking_tokens": 2,
    "done": True,
}
REFUSED = {"id": 1, "error": {"code": "bad_request", "message": f"no way with {CANARY}; shorten it"}}
FATAL = {
    "error": {"code": "model_not_found", "message": f"https://user:{CANARY}@proxy: refused", "stderr": True}
}
PIECES: list[Mapping[str, Any]] = [
    {"id": 1, "thinking": "hm"},
    {"id": 1, "text": "París "},
    {"id": 1, "text": "🍅"},
]

SEEDS: list[list[str]] = [
    [json.dumps(line) for line in lines]
    for lines in ([END], [*PIECES, END], [*PIECES, REFUSED], [REFUSED], [FATAL], [{**END, "tool_calls": []}])
]


COLLECT_EACH = 200
"""Rounds of the test between two collections of garbage."""


class Fed(EngineProcess):
    """An engine whose lines are given, and come when it is first asked something."""

    def __init__(self, lines: bytes) -> None:
        self._lines = lines
        self._asked = asyncio.Event()
        launch = Launch(settings={}, environ={}, secrets=(CANARY,), reply_bytes=64 * 1024)
        super().__init__("mlx", Path("none"), lambda: launch)

    async def _run(self, launch: Launch) -> None:
        self._receive({"ready": READY})
        await self._asked.wait()
        stdout = asyncio.StreamReader(limit=2**20)
        stdout.feed_data(self._lines)
        stdout.feed_eof()
        async for line in stdout:
            if line.endswith(b"\n"):
                self._receive(json.loads(line))

    def _write(self, message: Mapping[str, Any]) -> None:
        self._asked.set()


class Host:
    """Always has the engine at hand."""

    def __init__(self, lines: bytes) -> None:
        self._lines = lines

    async def running(self) -> EngineProcess:
        self.current = Fed(self._lines)
        await self.current.ready()
        return self.current

    async def aclose(self) -> None:
        await self.current.aclose()


def json_lines(texts: Sequence[str]) -> bytes:
    return "".join(f"{text}\n" for text in texts).encode("utf-8", errors="surrogatepass")


async def answered(lines: bytes, *, stream: bool) -> LLMResponse | LLMError:
    """What a caller gets."""
    config = LLMConfig(backend="mlx", model="m", enable_cache=False, timeout=3.0)
    async with MLXBackend(config) as client:
        client._host = Host(lines)  # type: ignore[assignment]  # what is used of it
        try:
            if stream:
                return await client.complete_stream(REQUEST).collect()
            return await client.complete(REQUEST)
        except LLMError as error:
            return error


@settings(
    max_examples=10_000,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(seed=st.sampled_from(SEEDS), program=programs, stream=st.booleans())
def attempt(run: Callable[..., Any], seed: Sequence[str], program: bytes, *, stream: bool) -> None:
    outcome = run(answered(changed(seed, program, json_lines), stream=stream))
    assert not isinstance(outcome, DeadlineExceeded), "the caller was left waiting"
    if isinstance(outcome, LLMError):
        assert not any(shows_key(shown(link)) for link in links(outcome) if isinstance(link, LLMError))
        return
    assert "\x00" not in outcome.content
    outcome.content.encode("utf-8")
    assert type(outcome.prompt_tokens) is int


@pytest.fixture
def collected_between() -> Iterator[None]:
    """No garbage is collected in the middle of a parse: at the bottom of a deep one a finalizer, whosever it
    is, has no stack left, and pytest reports that as a failure of this test."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()
    gc.collect()


@pytest.mark.usefixtures("collected_between")
def test_a_damaged_line_of_an_engine_is_an_answer_or_an_error_and_shows_no_key() -> None:
    with asyncio.Runner() as runner:

        def run(attempted: Coroutine[Any, Any, LLMResponse | LLMError]) -> LLMResponse | LLMError:
            if next(rounds) % COLLECT_EACH == 0:
                gc.collect()
            return runner.run(attempted)

        rounds = itertools.count()
        attempt(run)
