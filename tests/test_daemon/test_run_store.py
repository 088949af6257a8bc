"""Runs and their model calls: written once, read with what they made."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from daemon.errors import DaemonError
from daemon.events import RunOutcome
from tests.support.stores import AGENT, START, Bench, bench, line, model_call, run_result


@pytest.fixture
async def it(tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench(tmp_path) as made:
        yield made


async def save(it: Bench, run_id: str, *calls: str, **fields: object) -> None:
    async with it.db.write() as connection:
        await it.runs.save(connection, run_result(run_id, **fields), [model_call(name) for name in calls])


async def save_and_raise(it: Bench) -> None:
    limits = {"max_new": 9, "max_open": 9}
    async with it.db.write() as connection:
        await it.proposals.save_new(connection, [line()], agent=AGENT, run_id="r1", now=START, **limits)
        await it.runs.save(connection, run_result("r1"), [model_call()])
        raise ZeroDivisionError


async def test_a_run_comes_back_as_it_was(it: Bench) -> None:
    full = run_result(
        "r1",
        outcome=RunOutcome.TIMED_OUT,
        finished_at=START + timedelta(seconds=3),
        duplicates=1,
        suppressed=2,
        over_cap=3,
        withdrawn=4,
        calls=5,
        cached_calls=1,
        prompt_tokens=100,
        completion_tokens=20,
        backend="ollama",
        model="qwen2.5:1.5b",
        error="it took longer than 5m",
        notes=("12 offers", "no needs"),
    )
    async with it.db.write() as connection:
        await it.runs.save(connection, full)
    assert await it.runs.get("r1") == full
    assert (await it.runs.get("r1")).seconds == 3


async def test_a_run_is_read_with_its_proposals_as_they_stand_now(it: Bench) -> None:
    await it.keep(line("1"), line("2"), run_id="r1")
    await it.desk.reject(1, "ana", "cli")
    result = await it.runs.get("r1")
    assert [(p.id, p.status.value) for p in result.proposals] == [(1, "rejected"), (2, "pending")]


async def test_an_unknown_run_is_told_with_the_way_to_the_list(it: Bench) -> None:
    with pytest.raises(DaemonError, match="no run 'nope'; 'askfirst runs list'"):
        await it.runs.get("nope")


async def test_lists_are_newest_first_and_can_be_narrowed(it: Bench) -> None:
    for name, agent in (("r1", AGENT), ("r2", "other"), ("r3", AGENT)):
        await save(it, name, agent=agent)
    assert [run.run_id for run in await it.runs.list()] == ["r3", "r2", "r1"]
    assert [run.run_id for run in await it.runs.list(agent=AGENT, limit=1)] == ["r3"]


async def test_model_calls_are_found_by_run_and_by_id(it: Bench) -> None:
    await save(it, "r1", "c1", "c2")
    await save(it, "r2", "c3")
    assert await it.runs.calls_of("r1") == (model_call("c1"), model_call("c2"))
    assert await it.runs.calls_by_id(["c3", "unknown", "c1"]) == (model_call("c1"), model_call("c3"))
    assert await it.runs.calls_by_id([]) == ()


async def test_of_two_calls_with_one_id_the_first_is_kept(it: Bench) -> None:
    await save(it, "r1", "same")
    async with it.db.write() as connection:
        await it.runs.save(connection, run_result("r2"), [model_call("same", reply="other")])
    assert await it.runs.calls_by_id(["same"]) == (model_call("same"),)


async def test_a_run_and_its_proposals_are_kept_together_or_not_at_all(it: Bench) -> None:
    with pytest.raises(ZeroDivisionError):
        await save_and_raise(it)
    assert await it.runs.list() == ()
    assert await it.proposals.list() == ()
    assert await it.runs.calls_by_id(["call-1"]) == ()


async def test_what_is_known_of_an_agents_runs_is_its_first_its_last_and_its_last_success(it: Bench) -> None:
    nothing = await it.runs.past(AGENT)
    assert (nothing.began, nothing.succeeded, nothing.seconds) == (None, None, None)
    outcomes = [RunOutcome.FAILED, RunOutcome.SUCCEEDED, RunOutcome.SUCCEEDED, *[RunOutcome.FAILED] * 12]
    for number, outcome in enumerate(outcomes):
        began = START + timedelta(hours=number)
        ended = began + timedelta(seconds=number)
        await save(it, f"run{number:02}", outcome=outcome, started_at=began, finished_at=ended)
    await save(it, "run99", agent="another", started_at=START + timedelta(days=9))
    past = await it.runs.past(AGENT)
    assert past.began == START
    assert past.succeeded == START + timedelta(hours=2, seconds=2)
    assert past.seconds == 14
