"""Retention: what is old goes, what still matters stays, and what was turned down stays turned down."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agents.proposal import CLOSED, Evidence, ProposalStatus
from daemon.events import DueTime, Fate
from daemon.store.due_times import DueTimeStore
from daemon.store.proposals import Verdict
from daemon.store.retention import Ages, Forgotten, Retention
from tests.support.stores import AGENT, START, Bench, bench, line, model_call, run_result

AGES = Ages(runs=timedelta(days=365), calls=timedelta(days=90), proposals=timedelta(days=730))
ALL = Ages(runs=timedelta(0), calls=timedelta(0), proposals=timedelta(0))
_S = ProposalStatus


async def save_run(it: Bench, name: str, at: datetime, *calls: str, agent: str = AGENT) -> None:
    async with it.db.write() as connection:
        result = run_result(name, agent=agent, started_at=at, finished_at=at)
        await it.runs.save(connection, result, [model_call(call, at=at) for call in calls])


def rows(path: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection:
        return [row[0] if len(row) == 1 else row for row in connection.execute(query)]


async def look(it: Bench, query: str) -> list[Any]:
    return await asyncio.to_thread(rows, it.db.path, query)


async def test_each_kind_goes_at_its_age_and_each_agents_newest_run_stays(tmp_path: Path) -> None:
    async with bench(tmp_path) as it:
        for days in (400, 100, 10):
            await save_run(it, f"r{1000 - days}", START - timedelta(days=days), f"c{days}")
        await save_run(it, "q1", START - timedelta(days=900), agent="quiet")
        gone = await Retention(it.db).sweep(START, AGES)
        assert gone == Forgotten(runs=1, calls=2)
        assert await look(it, "SELECT id FROM runs ORDER BY id") == ["q1", "r900", "r990"]
        assert await look(it, "SELECT id FROM model_calls") == ["c10"]
        assert not await Retention(it.db).sweep(START, AGES)


async def test_due_times_go_but_each_agents_newest(tmp_path: Path) -> None:
    async with bench(tmp_path) as it:
        store = DueTimeStore(it.db)
        moments = [START - timedelta(days=days) for days in range(300, 800)]
        for agent in ("one", "two"):
            await store.settle([DueTime(agent=agent, due=m, last=m, fate=Fate.MISSED) for m in moments])
        gone = await Retention(it.db).sweep(START, AGES)
        assert gone == Forgotten(due_times=2 * (800 - 366))
        assert await store.last("one") == START - timedelta(days=300)
        await Retention(it.db).sweep(START + timedelta(days=9999), AGES)
        assert await look(it, "SELECT agent FROM due_times") == ["one", "two"]


async def closed_as(it: Bench, status: ProposalStatus, text: str = "one") -> int:
    """Keep a proposal and bring it to that status."""
    number = await it.one(text=text)
    match status:
        case _S.REJECTED:
            await it.desk.reject(number, "ana", "cli")
        case _S.APPLIED:
            await it.desk.approve(number, "ana", "cli")
        case _S.UNDONE:
            await it.desk.approve(number, "ana", "cli")
            await it.desk.undo(number, "ana", "cli")
        case _S.EXPIRED:
            it.clock.move(hours=73)
            await it.desk.expire_due()
        case _S.WITHDRAWN:
            async with it.db.write() as connection:
                await it.desk.withdraw_in(connection, number, "gone")
    assert (await it.proposals.get(number)).status is status
    return number


@pytest.mark.parametrize("status", [_S.APPLIED, _S.EXPIRED, _S.WITHDRAWN, _S.REJECTED, _S.UNDONE, _S.PENDING])
async def test_only_what_waits_for_nothing_and_was_not_turned_down_is_forgotten(
    tmp_path: Path, status: ProposalStatus
) -> None:
    async with bench(tmp_path) as it:
        number = await closed_as(it, status)
        await it.one(text="newer run")
        gone = await Retention(it.db).sweep(it.clock.move(days=800), AGES)
        kept = status in {_S.REJECTED, _S.UNDONE, _S.PENDING}
        assert gone == (Forgotten() if kept else Forgotten(proposals=1, runs=1))
        assert (number in await look(it, "SELECT id FROM proposals")) is kept
        assert (number in await look(it, "SELECT proposal_id FROM proposal_events")) is kept


async def test_the_calls_behind_an_open_proposal_stay_until_it_is_decided(tmp_path: Path) -> None:
    async with bench(tmp_path) as it:
        async with it.db.write() as connection:
            limits = {"max_new": 9, "max_open": 9}
            known = {"agent": AGENT, "run_id": "r1", "now": START, **limits}
            await it.proposals.save_new(connection, [line(call_ids=("c1",))], **known)
            await it.runs.save(connection, run_result("r1"), [model_call("c1")])
        later = START + timedelta(days=100)
        assert not await Retention(it.db).sweep(later, AGES)
        await it.desk.reject(1, "ana", "cli")
        assert await Retention(it.db).sweep(later, AGES) == Forgotten(calls=1)
        assert (await it.proposals.get(1)).call_ids == ("c1",)
        assert await it.runs.calls_by_id(["c1"]) == ()


async def test_many_rows_go_in_small_transactions_between_which_others_write(tmp_path: Path) -> None:
    async with bench(tmp_path) as it:
        async with it.db.write() as connection:
            for number in range(1000):
                await it.runs.save(connection, run_result(f"r{number:04}"), [model_call(f"c{number}")])
        await save_run(it, "s", START + timedelta(days=500))
        sweeping = asyncio.create_task(Retention(it.db).sweep(START + timedelta(days=500), AGES))
        between = 0
        while not sweeping.done():
            await it.one(text=f"line {between}")
            between += 1
        assert await sweeping == Forgotten(runs=1000, calls=1000)
        assert between > 5


async def test_nothing_is_written_when_nothing_is_old(tmp_path: Path) -> None:
    async with bench(tmp_path) as it:
        await closed_as(it, _S.APPLIED)
        wal = it.db.path.with_name(f"{it.db.path.name}-wal")
        before = await asyncio.to_thread(wal.stat)
        assert not await Retention(it.db).sweep(it.clock(), AGES)
        after = await asyncio.to_thread(wal.stat)
        assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


# A history: what happens to proposals of few fingerprints, each of one of two evidences, in this order.
ENDS = [*sorted(CLOSED - {_S.SUPERSEDED}), _S.PENDING]
HISTORY = st.lists(
    st.tuples(st.sampled_from(["one", "two"]), st.sampled_from(["a", "b"]), st.sampled_from(ENDS)),
    max_size=12,
)


async def live(it: Bench, history: list[tuple[str, str, ProposalStatus]]) -> None:
    for text, seen, end in history:
        it.clock.move(days=1)
        expires = it.clock() + timedelta(days=900 if end is _S.PENDING else 3)
        candidate = line(text, evidence=(Evidence.of("book", "1", seen),), expires_at=expires)
        ((verdict, kept),) = await it.kept(candidate)
        if verdict is not Verdict.KEPT:
            continue
        number = int(kept.id or 0)
        if end in {_S.APPLIED, _S.UNDONE}:
            await it.desk.approve(number, "ana", "cli")
        if end is _S.UNDONE:
            await it.desk.undo(number, "ana", "cli")
        if end is _S.REJECTED:
            await it.desk.reject(number, "ana", "cli")
        if end is _S.WITHDRAWN:
            async with it.db.write() as connection:
                await it.desk.withdraw_in(connection, number, "gone")
        if end is _S.EXPIRED:
            it.clock.move(days=4)
            await it.desk.expire_due()


async def what_matters(it: Bench) -> tuple[Any, ...]:
    """Which candidates would be kept, what agents are told was turned down, and what is open or rejected."""
    verdicts = []
    for text in ("one", "two"):
        for seen in ("a", "b"):
            async with it.db.write() as connection:
                result = await it.proposals.save_new(
                    connection,
                    [line(text, evidence=(Evidence.of("book", "1", seen),))],
                    agent=AGENT,
                    run_id="try",
                    now=it.clock(),
                    max_new=0,
                    max_open=99,
                )
                verdicts.append(result[0][0])
    stays = [(p.id, p.status) for p in await it.proposals.list(limit=None) if _stays(p.status)]
    return verdicts, await it.proposals.turned_down(AGENT), stays


def _stays(status: ProposalStatus) -> bool:
    return status.is_open or status in {_S.REJECTED, _S.UNDONE}


@given(history=HISTORY, days=st.sampled_from([0, 0, 0, 4, 15]))
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_after_any_history_the_same_is_suppressed_as_before(
    tmp_path_factory: pytest.TempPathFactory, history: list[tuple[str, str, ProposalStatus]], days: int
) -> None:
    async def check() -> None:
        async with bench(tmp_path_factory.mktemp("history")) as it:
            await live(it, history)
            before = await what_matters(it)
            ages = Ages(runs=ALL.runs, calls=ALL.calls, proposals=timedelta(days=days))
            await Retention(it.db).sweep(it.clock() + timedelta(seconds=1), ages)
            assert await what_matters(it) == before
            assert await look(it, "PRAGMA foreign_key_check") == []
            assert not await Retention(it.db).sweep(it.clock() + timedelta(seconds=1), ages)
            if days == 0:
                left = [p.status for p in await it.proposals.list(limit=None) if not _stays(p.status)]
                assert len(left) <= 2  # at most the last one of each fingerprint

    asyncio.run(check())
