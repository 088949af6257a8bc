"""What a scrape costs beside prometheus_client alone, and how late the loop is in a storm of scrapes."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from daemon.observability.health import Health
from daemon.observability.metrics import Metrics
from daemon.web.app import build_app
from daemon.web.ops import Operations
from daemon.web.server import WebServer
from tests.benchmarks.measure import compare, show
from tests.benchmarks.scrape_storm import lags_while
from tests.test_daemon.test_metrics_room import a_usual_pi, calls_of

pytestmark = pytest.mark.timeout(600)

SCRAPES = 100
CALLS = 2000
STORM_S = 10.0
RATE = 1000.0
OPENMETRICS = "application/openmetrics-text; version=1.0.0"

GOAL_MS = 20.0
"""What a scrape may cost."""

GOAL_LAG_MS = 50.0
"""How late the loop may be while 1,000 scrapes a second come."""


class Same(Collector):
    """The families of a scrape, collected already."""

    def __init__(self, text: str) -> None:
        self._families = list(text_string_to_metric_families(text))  # type: ignore[no-untyped-call]

    def collect(self) -> list[Metric]:
        return self._families


async def test_a_scrape_costs_little_more_than_writing_its_text() -> None:
    metrics, large = a_usual_pi(), a_usual_pi()
    names = [f"agent{number}" for number in range(1000)]
    large.expect_agents(names)
    large.read_from(
        lambda: {
            "askfirst_agent_intervals_since_success": {(name,): 1.0 for name in names},
            "askfirst_agent_next_run_timestamp_seconds": {(name,): 1e9 for name in names},
            "askfirst_proposals": {
                (name, status): 1.0 for name in names for status in ("pending", "applied")
            },
        }
    )
    text = (await metrics.scrape())[0].decode()
    registry = CollectorRegistry()
    registry.register(Same(text))

    async def library() -> None:
        for _ in range(SCRAPES):
            generate_latest(registry)

    async def ours(asked: Metrics, accept: str = "") -> None:
        for _ in range(SCRAPES):
            await asked.scrape(accept)

    rows = await compare(
        {
            "prometheus_client's generate_latest": library,
            "Metrics.scrape": lambda: ours(metrics),
            "Metrics.scrape, OpenMetrics": lambda: ours(metrics, OPENMETRICS),
            "Metrics.scrape, 1,000 agents": lambda: ours(large),
        },
        operations=SCRAPES,
    )
    series = sum(not line.startswith("#") for line in text.splitlines())
    show(f"One scrape of {series} series; goal: at most {GOAL_MS:g} ms", rows)
    assert max(row.micros for row in rows) < GOAL_MS * 1000


async def test_taking_note_of_a_call_costs_microseconds() -> None:
    metrics, answered = a_usual_pi(), calls_of("ollama", "qwen2.5:1.5b")[0]
    strange = [calls_of(f"b{number}", f"m{number}")[0] for number in range(CALLS)]

    async def known() -> None:
        for _ in range(CALLS):
            metrics.observe_call(answered)

    async def unknown() -> None:
        for event in strange:
            metrics.observe_call(event)

    rows = await compare({"a configured model": known, "names never seen": unknown}, operations=CALLS)
    show("An answered call, six metrics of it with exemplars", rows)


@asynccontextmanager
async def served(metrics: Metrics) -> AsyncIterator[int]:
    server = WebServer("127.0.0.1", 0)
    server.bind()
    await server.start(build_app(Operations(metrics=metrics, health=Health())))
    try:
        yield server.address[1]
    finally:
        await server.aclose()


def p99(lags: list[float]) -> float:
    return lags[int(len(lags) * 0.99)]


def row(name: str, lags: list[float]) -> None:
    print(f"  {name:34}{lags[len(lags) // 2]:>10.2f}{p99(lags):>10.2f}{lags[-1]:>10.2f}")


async def beside(*numbers: float) -> asyncio.subprocess.Process:
    """`scrape_storm` in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.scrape_storm", *map(str, numbers)]
    return await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)


async def test_a_storm_of_scrapes_leaves_the_loop_in_time() -> None:
    async with served(a_usual_pi()) as port:
        quiet = await lags_while(STORM_S / 2)
        storm = await beside(port, RATE, STORM_S)
        idle = await beside(STORM_S - 2.0)
        await asyncio.sleep(1.0)
        began, cpu = time.perf_counter(), time.process_time()
        busy = await lags_while(STORM_S - 2.0)
        share = (time.process_time() - cpu) / (time.perf_counter() - began)
        told, floor = [json.loads((await each.communicate())[0]) for each in (storm, idle)]
    print(f"\nA loop is late by (ms); goal: at most {GOAL_LAG_MS:g} in the storm")
    print(f"  {'':34}{'p50':>10}{'p99':>10}{'longest':>10}")
    row("nobody asks", quiet)
    row("a loop with nothing to do, beside", floor)
    row(f"{told['rate']:,.0f} scrapes a second", busy)
    print(f"  a scrape takes p50 {told['p50_ms']:.1f}, p99 {told['p99_ms']:.1f} ms; {share:.0%} of a core")
    assert p99(busy) - p99(floor) < GOAL_LAG_MS
