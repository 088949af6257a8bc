"""Whatever a server does, a call ends in time, as an error of ours, in bounded memory, and shows no key."""

from __future__ import annotations

import gc
import logging
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from llm import errors
from llm.backends.ollama import OllamaBackend
from llm.backends.remote import RemoteBackend
from llm.client import LLMClient
from llm.config import LLMConfig
from llm.factory import get_llm_client
from llm.types import LLMResponse
from tests.support.canary import CANARY, shown_with_traceback, shows_key
from tests.support.chaos_server import ANSWER, ChaosProcess, behaviours

DEADLINE = 0.6
GRACE = 0.25
"""Seconds after its deadline in which a call must have ended."""

CAP = 512 * 1024
TRIES = 3
"""A machine with other work may be late by itself; a client that is late is so every time."""

Call = Callable[[LLMClient], Awaitable[LLMResponse]]


async def generate(client: LLMClient) -> LLMResponse:
    return await client.generate("Hi")


async def stream(client: LLMClient) -> LLMResponse:
    return await client.stream("Hi").collect()


CALLS: list[Call] = [generate, stream]


@dataclass(frozen=True)
class Wire:
    """One way to speak with a server: which backend does, and what follows the behaviour in the address."""

    backend: type[LLMClient]
    path: str


WIRES = {
    "ollama": Wire(OllamaBackend, ""),
    "openai": Wire(RemoteBackend, "/v1"),
    "anthropic": Wire(RemoteBackend, "/anthropic"),
}

OUTCOMES: dict[str, type[errors.LLMError]] = {
    "reset": errors.ConnectionFailed,
    "hangs_up": errors.ConnectionFailed,
    "slow_loris": errors.DeadlineExceeded,
    "header_drip": errors.DeadlineExceeded,
    "silent": errors.DeadlineExceeded,
    "silent_midstream": errors.DeadlineExceeded,
    "slow_midstream": errors.DeadlineExceeded,
    "redirect": errors.ConfigurationError,
    "error_inside_200": errors.ServerError,
    "status_400": errors.BadRequest,
    "status_401": errors.AuthenticationFailed,
    "status_403": errors.AuthenticationFailed,
    "status_404": errors.BadRequest,
    "status_429": errors.RateLimited,
    "status_500": errors.ServerError,
    "status_503": errors.ServerError,
}
"""Everything else is a BadReply."""

MENDED = "\N{REPLACEMENT CHARACTER} half\N{REPLACEMENT CHARACTER}"


@pytest.fixture(scope="module")
def server() -> Iterator[ChaosProcess]:
    with ChaosProcess() as process:
        yield process


def config(server: ChaosProcess, wire: Wire, behaviour: str, **changes: Any) -> LLMConfig:
    values = {
        "backend": wire.backend.backend,
        "model": "m",
        "api_base": f"{server.url}/{behaviour}{wire.path}",
        "api_key": CANARY,
        "timeout": DEADLINE,
        "max_reply_bytes": CAP,
        "enable_cache": False,
    }
    return LLMConfig(**{**values, **changes})


def expected(behaviour: str, call: Call) -> type[errors.LLMError]:
    if behaviour == "error_midstream" and call is stream:
        return errors.ServerError
    return OUTCOMES.get(behaviour, errors.BadReply)


async def fault_of(client: LLMClient, call: Call) -> tuple[errors.LLMError, float]:
    """The error that `call` ends with, and after how many seconds."""
    started = time.monotonic()
    with pytest.raises(errors.LLMError) as caught:
        await call(client)
    return caught.value, time.monotonic() - started


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("wire", WIRES.values(), ids=WIRES)
async def test_a_good_server_is_understood(server: ChaosProcess, wire: Wire, call: Call) -> None:
    async with wire.backend(config(server, wire, "good", timeout=20.0)) as client:
        response = await call(client)
    assert response.content == ANSWER
    assert response.finish_reason == "stop"


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("wire", WIRES.values(), ids=WIRES)
@pytest.mark.parametrize("behaviour", sorted(set(behaviours()) - {"lone_surrogate"}))
async def test_each_bad_behaviour_ends_in_time_as_its_error_and_shows_no_key(
    server: ChaosProcess, behaviour: str, wire: Wire, call: Call, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    late = []
    for _ in range(TRIES):
        async with wire.backend(config(server, wire, behaviour)) as client:
            error, seconds = await fault_of(client, call)
        assert type(error) is expected(behaviour, call)
        assert not shows_key(shown_with_traceback(error))
        if seconds <= DEADLINE + GRACE:
            break
        late.append(seconds)
    assert len(late) < TRIES, f"each time too late: {late}"
    assert not shows_key(caplog.text)
    assert server.stolen == 0


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("wire", WIRES.values(), ids=WIRES)
async def test_a_text_that_cannot_be_stored_is_mended(server: ChaosProcess, wire: Wire, call: Call) -> None:
    async with wire.backend(config(server, wire, "lone_surrogate", timeout=20.0)) as client:
        response = await call(client)
    assert response.content == MENDED


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("wire", WIRES.values(), ids=WIRES)
@pytest.mark.parametrize("behaviour", ["reset", "silent", "status_429", "status_503", "garbage", "endless"])
async def test_a_client_with_all_its_wrappers_ends_in_time_too(
    server: ChaosProcess, behaviour: str, wire: Wire, call: Call
) -> None:
    """Neither retries nor a server that asks to wait for a day lead beyond the deadline."""
    late = []
    for _ in range(TRIES):
        async with get_llm_client(config(server, wire, behaviour)) as client:
            error, seconds = await fault_of(client, call)
        assert type(error) is not errors.LLMError
        if seconds <= DEADLINE + GRACE:
            return
        late.append(seconds)
    pytest.fail(f"each time too late: {late}")


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("wire", WIRES.values(), ids=WIRES)
@pytest.mark.parametrize("behaviour", behaviours())
async def test_memory_grows_by_less_than_twice_the_byte_cap(
    server: ChaosProcess, behaviour: str, wire: Wire, call: Call
) -> None:
    # What has no end runs into the cap, if it is given the time; what is slow is slow for ever.
    seconds = DEADLINE if OUTCOMES.get(behaviour) is errors.DeadlineExceeded else 20.0
    usual = await peak_of(config(server, wire, "good", timeout=20.0), call)
    assert await peak_of(config(server, wire, behaviour, timeout=seconds), call) - usual < 2 * CAP


async def peak_of(settings: LLMConfig, call: Call) -> int:
    """Most bytes that one call held at a time."""
    async with get_llm_client(settings.with_values(retries=0)) as client:
        gc.collect()
        tracemalloc.start()
        try:
            await call(client)
        except errors.LLMError:
            pass
        finally:
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
    return peak
