"""Scrapes: many share one encoding, none is older than it may be, and the event loop goes on meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Collection, Mapping

import httpx
import pytest

from daemon.observability.health import Health
from daemon.observability.metrics import Metrics
from daemon.observability.metrics.process import ProcessReader
from daemon.observability.metrics.scrapes import AT_ONCE, Format, Scrapes, preferred_format
from daemon.web.app import build_app
from daemon.web.ops import Operations
from daemon.web.server import WebServer
from tests.support.waiting import seen
from tests.test_daemon.test_metrics_room import a_usual_pi

STEPS = "askfirst_clock_steps_total"


class Encoder:
    """Encodes a number that grows, as slowly as the test wants it."""

    def __init__(self) -> None:
        self.number = 0
        self.formats: list[set[Format]] = []
        self.go = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self, formats: Collection[Format]) -> Mapping[Format, bytes]:
        self.formats.append(set(formats))
        number = self.number
        await self.go.wait()
        if self.error is not None:
            raise self.error
        return {each: f"{each} {number}".encode() for each in formats}


@pytest.fixture
async def encoder() -> Encoder:
    return Encoder()


@pytest.fixture
async def scrapes(encoder: Encoder) -> Scrapes:
    return Scrapes(encoder)


async def begun(encoder: Encoder, times: int = 1) -> None:
    await seen(lambda: len(encoder.formats) == times)


async def test_those_that_come_meanwhile_share_the_next_encoding_and_see_what_had_happened(
    scrapes: Scrapes, encoder: Encoder
) -> None:
    first = asyncio.create_task(scrapes.get("text"))
    await begun(encoder)
    encoder.number = 1  # something happens: whoever comes now must see it
    later = [asyncio.create_task(scrapes.get("text")) for _ in range(50)]
    await asyncio.sleep(0)
    encoder.go.set()
    assert await first == b"text 0"
    assert set(await asyncio.gather(*later)) == {b"text 1"}
    assert len(encoder.formats) == 2


async def test_one_encoding_serves_both_formats(scrapes: Scrapes, encoder: Encoder) -> None:
    encoder.go.set()
    both = await asyncio.gather(scrapes.get("text"), scrapes.get("openmetrics"))
    assert both == [b"text 0", b"openmetrics 0"]
    assert encoder.formats == [{"text", "openmetrics"}]


async def test_one_after_the_other_each_is_encoded_anew(scrapes: Scrapes, encoder: Encoder) -> None:
    encoder.go.set()
    for number in range(3):
        encoder.number = number
        assert await scrapes.get("text") == f"text {number}".encode()


async def test_many_answers_let_the_loop_turn_to_other_work_in_between(
    scrapes: Scrapes, encoder: Encoder
) -> None:
    answered, seen_by_others = 0, []

    async def scrape() -> None:
        nonlocal answered
        await scrapes.get("text")
        answered += 1

    tasks = [asyncio.create_task(scrape()) for _ in range(64)]
    await begun(encoder)
    encoder.go.set()
    while answered < len(tasks):
        seen_by_others.append(answered)
        await asyncio.sleep(0)
    steps = [after - before for before, after in zip(seen_by_others, [*seen_by_others[1:], 64], strict=True)]
    assert max(steps) <= AT_ONCE
    await asyncio.gather(*tasks)


async def test_an_error_reaches_everybody_and_the_next_one_tries_again(
    scrapes: Scrapes, encoder: Encoder
) -> None:
    encoder.error = ValueError("no")
    encoder.go.set()
    for result in await asyncio.gather(*(scrapes.get("text") for _ in range(3)), return_exceptions=True):
        assert isinstance(result, ValueError)
    encoder.error = None
    assert await scrapes.get("text") == b"text 0"


async def test_who_goes_away_does_not_take_the_others_answer_along(
    scrapes: Scrapes, encoder: Encoder
) -> None:
    gone, stays = (asyncio.create_task(scrapes.get("text")) for _ in range(2))
    await begun(encoder)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    encoder.go.set()
    assert await stays == b"text 0"


async def test_when_all_have_gone_nothing_is_left_and_the_next_one_is_answered(
    scrapes: Scrapes, encoder: Encoder
) -> None:
    only = asyncio.create_task(scrapes.get("text"))
    await begun(encoder)
    only.cancel()
    await asyncio.sleep(0)  # it is cancelled now, and what encoded for it is about to be
    next_one = asyncio.create_task(scrapes.get("text"))
    await begun(encoder, 2)
    encoder.go.set()
    assert await next_one == b"text 0"
    await seen(lambda: not [task for task in asyncio.all_tasks() if task.get_name() == "scrapes"])


async def test_the_loop_goes_on_while_a_scrape_is_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    entered, go, read = threading.Event(), threading.Event(), ProcessReader.__call__

    def slow(self: ProcessReader) -> object:
        entered.set()
        assert go.wait(60), "the loop stood still"
        return read(self)

    monkeypatch.setattr(ProcessReader, "__call__", slow)
    scrape = asyncio.create_task(Metrics().scrape())
    await seen(entered.is_set)
    go.set()
    assert b"process_open_fds" in (await scrape)[0]


async def test_a_storm_of_scrapes_is_answered_whole_with_two_encodings_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encodings, go, read = [], threading.Event(), ProcessReader.__call__

    def slow(self: ProcessReader) -> object:
        encodings.append(1)
        assert go.wait(60), "the loop stood still"
        return read(self)

    monkeypatch.setattr(ProcessReader, "__call__", slow)
    metrics = a_usual_pi()
    server = WebServer("127.0.0.1", 0)
    server.bind()
    await server.start(build_app(Operations(metrics=metrics, health=Health())))
    try:
        async with httpx.AsyncClient(base_url=server.url, trust_env=False) as client:
            storm = [asyncio.create_task(client.get("/metrics")) for _ in range(40)]
            await seen(lambda: metrics.waiting_scrapes == 40)
            go.set()
            answers = await asyncio.gather(*storm)
    finally:
        await server.aclose()
    assert {answer.status_code for answer in answers} == {200}
    assert {STEPS in answer.text and answer.text.endswith("\n") for answer in answers} == {True}
    assert len(encodings) <= 2  # of those that came at once, and of those that came meanwhile


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("", "text"),
        ("*/*", "text"),
        ("text/html, */*;q=0.8", "text"),
        ("application/openmetrics-text", "openmetrics"),
        ("Application/OpenMetrics-Text; Version=1.0.0", "openmetrics"),
        # Prometheus 2.42
        (
            "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            "openmetrics",
        ),
        # Prometheus 3
        (
            "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=1.0.0;q=0.4,*/*;q=0.2",
            "openmetrics",
        ),
        ("text/plain;version=0.0.4, application/openmetrics-text;q=0.5", "text"),
        ("application/openmetrics-text;q=0", "text"),
        ("application/openmetrics-text;q=much", "text"),
        ("application/openmetrics-text;q=nan", "text"),
        (",;=,application/openmetrics-text;;q", "openmetrics"),
    ],
)
def test_the_format_is_the_one_that_the_scraper_prefers(accept: str, wanted: Format) -> None:
    assert preferred_format(accept) == wanted
