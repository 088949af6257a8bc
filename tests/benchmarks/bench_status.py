"""What the status page costs: its sums beside one pass over the same rows, the page beside `/readyz`."""

from __future__ import annotations

import sqlite3
import statistics
import time
import urllib.request
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from daemon.outcome import new_run_id
from daemon.store.engine import Database
from daemon.store.history import History
from llm.stores.ledger import UsageLedger
from llm.stores.usage_tables import CallRecord
from llm.usage import read_series
from tests.benchmarks.measure import compare, show
from tests.benchmarks.processes import cost_of
from tests.support.background import Running, running
from tests.support.lived_in import TITLES, World, configure, live_in

pytestmark = pytest.mark.timeout(900)

NOW = datetime(2026, 11, 1, tzinfo=UTC)
DAYS = 30
EDGES = [NOW - timedelta(days=DAYS - n) for n in range(DAYS + 1)]
RUNS, CALLS = 100_000, 50_000
FRESH_PAGES = 15


async def test_thirty_days_of_a_years_runs_are_summed_in_little_more_than_one_pass(tmp_path: Path) -> None:
    database = await Database.open(tmp_path / "askfirst.sqlite3")
    fill_runs(tmp_path / "askfirst.sqlite3")
    history = History(database)

    async def one_pass() -> None:
        with closing(sqlite3.connect(tmp_path / "askfirst.sqlite3")) as db:
            since = EDGES[0].isoformat(timespec="microseconds")
            db.execute(
                "select outcome, count(*), sum(calls) from runs where started_at >= ? group by 1", [since]
            )

    try:
        rows = await compare(
            {"one pass over all rows": one_pass, "30 days": lambda: history.runs(EDGES)}, operations=1
        )
    finally:
        await database.aclose()
    show(f"{RUNS:,} runs of a year, the sums of {DAYS} days", rows)


def fill_runs(path: Path) -> None:
    """A year of runs, evenly spread."""
    step = timedelta(days=365) / RUNS
    moments = [NOW - step * n for n in range(RUNS, 0, -1)]
    numbers = ("proposals", "duplicates", "suppressed", "over_cap", "withdrawn", "calls", "cached_calls")
    names = ("id", "agent", "trigger", "outcome", "started_at", "finished_at", "notes", *numbers)
    names += ("prompt_tokens", "completion_tokens")
    rows = (
        (
            new_run_id(at),
            "matchmaker",
            "schedule",
            "succeeded",
            text,
            text,
            "[]",
            1,
            0,
            0,
            0,
            0,
            3,
            1,
            900,
            60,
        )
        for at in moments
        for text in [at.isoformat(timespec="microseconds")]
    )
    with closing(sqlite3.connect(path)) as db, db:
        db.executemany(f"insert into runs ({', '.join(names)}) values ({', '.join('?' * len(names))})", rows)


async def test_thirty_days_of_the_ledger_are_summed_in_a_thread(tmp_path: Path) -> None:
    path = tmp_path / "usage.sqlite3"
    ledger = UsageLedger(path, gather=0.0)
    step = timedelta(days=DAYS) / CALLS
    for number in range(CALLS):
        at = int((EDGES[0] + step * number).timestamp() * 1000)
        ledger.add(
            CallRecord(
                at=at,
                backend="ollama",
                model="qwen2.5:1.5b",
                tokens_in=300,
                tokens_out=20,
                seconds=0.5 + number % 9,
            )
        )
        if number % 1000 == 0:
            await ledger.flush()
    await ledger.flush()
    await ledger.aclose()

    async def one_pass() -> None:
        with closing(sqlite3.connect(path)) as db:
            db.execute("select count(*), sum(tokens_in), max(seconds) from calls").fetchone()

    async def ours() -> None:
        read_series(path, EDGES)

    rows = await compare(
        {"one pass over all rows": one_pass, "30 days, with percentiles": ours}, operations=1
    )
    show(f"{CALLS:,} model calls in the ledger, the sums of {DAYS} days", rows)


async def test_a_page_is_made_in_the_time_of_some_health_checks(tmp_path: Path) -> None:
    configure(tmp_path, {"pantry": "1h", "repairs": "6h"})
    await live_in(tmp_path / "data", World(titles=TITLES))
    with running(tmp_path) as program:
        health = median_ms(program, "/readyz", FRESH_PAGES)
        before = cost_of(program.process.pid).rss_mb
        first = median_ms(program, "/?days=7", 1)
        again = median_ms(program, "/?days=7", FRESH_PAGES)
        fresh = median_ms(program, "/?days=7", FRESH_PAGES, pause=2.1)
        grown = cost_of(program.process.pid).rss_mb - before
    print(f"\nThe status page over {World(titles={}).days} days of history, in wall ms (median)")
    for name, value in (
        ("/readyz", health),
        ("first page", first),
        ("new page", fresh),
        ("same page", again),
    ):
        print(f"  {name:44}{value:>10.1f}{value / health:>8.2f}x")
    print(f"  memory that stays: {grown:.1f} MB")


def median_ms(program: Running, path: str, times: int, *, pause: float = 0.0) -> float:
    """How long an answer takes."""
    address = program.line("askfirst is running")["address"]
    request = urllib.request.Request(f"{address}{path}", headers={"Accept": "text/html"})

    def once() -> float:
        time.sleep(pause)  # until the last page is too old to be shown again
        began = time.perf_counter()
        with urllib.request.urlopen(request, timeout=30) as answer:
            answer.read()
        return (time.perf_counter() - began) * 1000

    return statistics.median(once() for _ in range(times))
