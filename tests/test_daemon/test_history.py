"""History: sums of runs over stretches of time, last runs, and what waits."""

from __future__ import annotations

import random
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from agents.proposal import ProposalStatus
from daemon.events import RunOutcome, RunResult, first_run_id
from daemon.outcome import new_run_id
from daemon.store.history import History, RunSums
from tests.support.stores import START, Bench, bench, line, run_result


@pytest.fixture
async def made(tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench(tmp_path) as opened:
        yield opened


async def keep(made: Bench, results: list[RunResult]) -> None:
    async with made.db.write() as connection:
        for result in results:
            await made.runs.save(connection, result)


def a_run(minutes: float, **fields: object) -> RunResult:
    at = START + timedelta(minutes=minutes)
    return run_result(new_run_id(at), **{"started_at": at, "finished_at": at, **fields})


async def test_every_run_is_counted_in_the_stretch_in_which_it_began(made: Bench) -> None:
    chance = random.Random(3)
    edges = [START + timedelta(hours=hour) for hour in (0, 1, 2, 5, 6)]
    results = [a_run(0, calls=2), a_run(60), a_run(-0.001), a_run(360)]  # on the edges, and just outside
    for _ in range(200):
        outcome = chance.choice(list(RunOutcome))
        calls = chance.randint(0, 4)
        cached = chance.randint(0, calls)
        minutes = chance.uniform(-60, 420)
        results.append(a_run(minutes, outcome=outcome, calls=calls, cached_calls=cached))
    await keep(made, results)
    expected = []
    for since, until in pairwise(edges):
        # To the millisecond, as names of runs are.
        inside = [r for r in results if first_run_id(since) <= r.run_id[:9] < first_run_id(until)]
        assert all(since <= r.started_at + timedelta(milliseconds=1) for r in inside)
        outcomes = dict(Counter(r.outcome for r in inside))
        calls, cached = sum(r.calls for r in inside), sum(r.cached_calls for r in inside)
        expected.append(RunSums(outcomes=outcomes, calls=calls, cached_calls=cached))
    assert await History(made.db).runs(edges) == tuple(expected)


async def test_a_stretch_without_runs_is_there_and_empty(made: Bench) -> None:
    edges = [START, START + timedelta(days=1), START + timedelta(days=2)]
    assert await History(made.db).runs(edges) == (RunSums(), RunSums())


async def test_only_the_asked_stretch_of_the_table_is_read(made: Bench) -> None:
    """Whatever a year of runs holds: the plan is a search by the key, for runs as for last runs."""
    asked: list[tuple[str, Any]] = []

    def note(_c: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        asked.append((statement, parameters))

    event.listen(made.db._reader.sync_engine, "before_cursor_execute", note)
    await History(made.db).runs([START, START + timedelta(days=1)])
    await History(made.db).last_runs(["ledger"])
    db = sqlite3.connect(made.db.path)
    queries = [each for each in asked if "runs" in each[0]]
    plans = [row[3] for query, given in queries for row in db.execute(f"EXPLAIN QUERY PLAN {query}", given)]
    db.close()
    assert any("SEARCH runs USING PRIMARY KEY (id>? AND id<?)" in step for step in plans)
    assert any("ix_runs_agent (agent=?)" in step for step in plans)
    assert not any(step.startswith("SCAN runs") for step in plans)


async def test_the_last_run_of_each_agent_is_told_with_its_error(made: Bench) -> None:
    await keep(
        made,
        [
            a_run(0, agent="one"),
            a_run(5, agent="one", outcome=RunOutcome.FAILED, error="no paper"),
            a_run(3, agent="two"),
            a_run(9, agent="three"),
        ],
    )
    last = await History(made.db).last_runs(["one", "two", "never"])
    assert {agent: (run.outcome, run.error) for agent, run in last.items()} == {
        "one": (RunOutcome.FAILED, "no paper"),
        "two": (RunOutcome.SUCCEEDED, None),
    }
    assert last["one"].started_at == START + timedelta(minutes=5)
    assert await History(made.db).last_runs([]) == {}
    many = [f"agent {n}" for n in range(2_500)]
    assert set(await History(made.db).last_runs([*many, "three"])) == {"three"}


async def test_what_waits_for_a_person_comes_with_the_oldest_first(made: Bench) -> None:
    await made.keep(*(line(f"number {n}") for n in range(4)))
    failing = await made.one(text="five", trouble="fails")
    await made.desk.reject(2, by="ana", via="cli")
    await made.desk.approve(failing, by="ana", via="cli")
    waiting = await History(made.db).waiting(10)
    assert [each.id for each in waiting] == [1, 3, 4, failing]
    assert waiting[0].title == "Write number 0"
    assert [each.status for each in waiting[-2:]] == [ProposalStatus.PENDING, ProposalStatus.APPLY_FAILED]
    assert [each.id for each in await History(made.db).waiting(2)] == [1, 3]
