"""What a dead backend costs once its breaker is open, what the wrappers cost, how servers in a mood are met.

Goal 9: a call that an open breaker refuses costs under 1 ms. The table of behaviour counts what the server
was asked, beside a bare httpx call that takes each answer as it is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import httpx
import pytest

from llm import BreakerOpen, LLMConfig, LLMError, LLMMessage, LLMRequest, get_llm_client
from llm.client import LLMClient
from llm.middleware.base import Middleware
from llm.middleware.breaker import Breaker
from llm.middleware.limit import Limit
from llm.middleware.retry import Retry
from llm.routes import Routes
from llm.testing import ScriptedBackend
from tests.benchmarks.measure import compare, show
from tests.support.moody_server import HANG, MoodyServer, refusal

CALLS = 2000
CONFIG = LLMConfig(backend="scripted", model="m", enable_cache=False)
NOBODY = "http://127.0.0.1:1/v1"


def remote(url: str, **values: Any) -> LLMConfig:
    return LLMConfig(
        **{"backend": "remote", "model": "stub", "api_base": url, "enable_cache": False, **values}
    )


async def kill(client: LLMClient) -> None:
    """Let its breaker open."""
    for _ in range(5):
        with pytest.raises(LLMError):
            await client.generate("Are you there?")


async def test_a_dead_backend_costs_under_a_millisecond_once_its_breaker_is_open() -> None:
    async def refused(client: LLMClient) -> None:
        for _ in range(CALLS):
            try:
                await client.generate("Are you there?")
            except BreakerOpen:
                continue
            pytest.fail("the breaker is not open")

    async def connecting(client: LLMClient) -> None:
        for _ in range(CALLS // 20):
            with pytest.raises(LLMError):
                await client.generate("Are you there?")

    async def fallen_back(client: LLMClient) -> None:
        for _ in range(CALLS):
            assert (await client.generate("Are you there?")).backend == "alive"

    mock = LLMConfig(backend="mock", enable_cache=False)
    dead = remote(NOBODY, retries=0)
    async with (
        get_llm_client(dead) as client,
        get_llm_client(mock) as alone,
        get_llm_client(Routes(backends={"dead": mock, "alive": mock})) as routed,
    ):
        await kill(client)
        rows = await compare({"refused by an open breaker": lambda: refused(client)}, operations=CALLS)
        slowest = await slowest_of(client, CALLS)

        # The first of two backends is dead, without a network in the measurement.
        first = routed.targets["dead"]  # type: ignore[attr-defined]
        breaker = first._middleware[0]
        for _ in range(5):
            breaker._ill(_request())
        plain = await compare(
            {
                "one living backend alone": lambda: answered(alone),
                "the same behind a dead one": lambda: fallen_back(routed),
            },
            operations=CALLS,
        )
    show("A dead backend (goal 9: under 1,000 us)", [*rows, *plain])
    print(f"  {'slowest of the refused calls, wall time':44}{slowest * 1e6:>10.1f}")
    assert rows[0].micros < 1000
    assert plain[1].micros - plain[0].micros < 1000


def _request() -> LLMRequest:
    return LLMRequest(messages=(LLMMessage("user", "?"),), model="m", temperature=0, max_tokens=1, top_p=None)


async def answered(client: LLMClient) -> None:
    for _ in range(CALLS):
        assert (await client.generate("Are you there?")).content


async def slowest_of(client: LLMClient, calls: int) -> float:
    longest = 0.0
    for _ in range(calls):
        began = time.perf_counter()
        with pytest.raises(BreakerOpen):
            await client.generate("Are you there?")
        longest = max(longest, time.perf_counter() - began)
    return longest


async def test_the_wrappers_cost_little_beside_the_call_they_watch() -> None:
    kinds: dict[str, Callable[[], Iterable[Middleware]]] = {
        "a call without wrappers": list,
        "with a breaker": lambda: [Breaker()],
        "with retries": lambda: [Retry(2)],
        "with a limit of 8 at once": lambda: [Limit(concurrency=8)],
        "with 8 at once, calls and tokens a minute": lambda: [
            Limit(concurrency=8, requests_per_minute=10**9, tokens_per_minute=10**9)
        ],
        "with all of them": lambda: [Breaker(), Retry(2), Limit(concurrency=8)],
    }
    clients = {
        name: ScriptedBackend(lambda _: "ok", config=CONFIG, middleware=list(make()))
        for name, make in kinds.items()
    }

    def work(client: LLMClient) -> Callable[[], Awaitable[None]]:
        async def run() -> None:
            for _ in range(CALLS):
                await client.generate("Are you there?")
            client.requests.clear()  # type: ignore[attr-defined]

        return run

    rows = await compare({name: work(client) for name, client in clients.items()}, operations=CALLS)
    for client in clients.values():
        await client.aclose()
    show("The wrappers", rows)
    assert rows[-1].micros - rows[0].micros < 100


async def bare(url: str) -> str:
    async with httpx.AsyncClient(verify=False) as client:
        body = {"model": "stub", "messages": [{"role": "user", "content": "?"}]}
        reply = await client.post(f"{url}/chat/completions", json=body)
        return "ok" if reply.status_code == 200 else "error"


async def ours(url: str, **values: Any) -> str:
    async with get_llm_client(remote(url, **values)) as client:
        try:
            await client.generate("?")
        except LLMError as error:
            return type(error).__name__
        return "ok"


async def test_how_servers_in_a_mood_are_met() -> None:
    later = refusal(429, headers={"Retry-After": "1"})
    moods: dict[str, tuple[Any, ...]] = {
        "429 twice, retry-after 1": (later, later),
        "503 once": (refusal(503),),
        "429, retry-after 86400": (refusal(429, headers={"Retry-After": "86400"}),),
        "429, insufficient_quota": (refusal(429, code="insufficient_quota"),),
        "401": (refusal(401),),
    }
    print("\nBehaviour counted at the server: what the call ended as, requests, seconds")
    seen: dict[str, tuple[str, int]] = {}
    for mood, answers in moods.items():
        cells = []
        for caller in (bare, ours):
            async with MoodyServer(*answers) as server:
                began = time.monotonic()
                outcome = await caller(server.url)
                cells.append(f"{outcome:>22}{server.asked:>3}{time.monotonic() - began:>6.1f} s")
                seen[mood] = (outcome, server.asked)
        print(f"  {mood:28} httpx {cells[0]}   askfirst {cells[1]}")
    assert list(seen.values()) == [
        ("ok", 3),
        ("ok", 2),
        ("RateLimited", 1),
        ("RateLimited", 1),
        ("AuthenticationFailed", 1),
    ]


async def test_what_a_hung_backend_costs_before_and_after_its_breaker_opens() -> None:
    async with MoodyServer(then=HANG) as hung, MoodyServer() as alive:
        backends = {"hung": remote(hung.url, timeout=0.5), "alive": remote(alive.url, timeout=2.0)}
        async with get_llm_client(Routes(backends=backends)) as client:
            seconds = []
            for _ in range(10):
                began = time.monotonic()
                assert (await client.generate("?")).backend == "alive"
                seconds.append(time.monotonic() - began)
        print("\nTen calls over a hung backend (0.5 s) and a living one, seconds each:")
        print("  " + " ".join(f"{each:.3f}" for each in seconds))
        assert (hung.asked, alive.asked) == (5, 10)
        assert max(seconds[5:]) < min(seconds[:5])


async def test_many_calls_at_once_through_a_narrow_gate_stay_in_order() -> None:
    done: list[int] = []

    async def one(client: LLMClient, number: int) -> None:
        await client.generate(f"{number}")
        done.append(number)

    client = ScriptedBackend(lambda _: "ok", config=CONFIG, middleware=[Limit(concurrency=4)])
    began = time.process_time()
    async with client:
        await asyncio.gather(*(one(client, number) for number in range(5000)))
    print(f"\n5,000 calls through 4 places: {(time.process_time() - began) / 5000 * 1e6:.1f} us CPU each")
    assert [request.prompt for request in client.requests] == [str(number) for number in range(5000)]
    assert sorted(done) == list(range(5000))
