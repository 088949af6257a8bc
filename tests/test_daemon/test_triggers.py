"""Triggers: runs, files and calendars together, as the scheduler uses them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from agents.proposal import ProposalStatus
from agents.schedule import BeforeEvent, Every, Schedule
from daemon.events import EventBus, ProposalChanged, RunBegun, RunFinished, RunOutcome, RunResult
from daemon.triggers import Triggers, calendar, files
from tests.support.calendars import event, ics
from tests.support.stores import line
from tests.support.waiting import seen

Fired = list[tuple[str, str, datetime | None]]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.FileWatch.__init__, "__kwdefaults__", {
        **(files.FileWatch.__init__.__kwdefaults__ or {}), "tick": 0.02, "settle": 0.05,
    })  # fmt: skip


@asynccontextmanager
async def started(
    folder: Path, schedules: dict[str, Schedule], **options: Any
) -> AsyncIterator[tuple[Triggers, Fired]]:
    fired: Fired = []
    made = Triggers(schedules, folder, lambda *told: fired.append(told), **options)
    await made.start()
    try:
        yield made, fired
    finally:
        await made.aclose()


def ended(agent: str, outcome: RunOutcome = RunOutcome.SUCCEEDED, run_id: str = "r1") -> RunResult:
    now = datetime.now(UTC)
    return RunResult(
        run_id=run_id, agent=agent, trigger="schedule", outcome=outcome, started_at=now, finished_at=now
    )


async def test_agents_come_after_the_successful_runs_of_others(tmp_path: Path) -> None:
    schedules = {
        "first": Schedule(timed=(Every(timedelta(hours=1)),)),
        "second": Schedule(after=("first", "third")),
        "also": Schedule(after=("first",)),
    }
    async with started(tmp_path, schedules) as (triggers, fired):
        triggers.note(ended("first"))
        assert fired == [("second", "after first", None), ("also", "after first", None)]
        triggers.note(ended("third"))
        assert fired[2:] == [("second", "after third", None)]
        for outcome in set(RunOutcome) - {RunOutcome.SUCCEEDED}:
            triggers.note(ended("first", outcome))
        triggers.note(ended("also"))
        assert len(fired) == 3


async def test_files_and_calendars_make_agents_due(tmp_path: Path) -> None:
    due = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=2)
    (tmp_path / "events.ics").write_text(ics(event(due + timedelta(hours=1))), encoding="utf-8")
    schedules = {
        "files": Schedule(watch=("in",)),
        "calendar": Schedule(before=BeforeEvent("events.ics", timedelta(hours=1))),
    }
    async with started(tmp_path, schedules) as (_, fired):
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "a").write_text("x", encoding="utf-8")
        await seen(lambda: len(fired) == 2)
        assert sorted(fired, key=lambda told: told[0]) == [
            ("calendar", "calendar", due),
            ("files", "file", None),
        ]


async def test_what_an_agent_changes_in_its_runs_and_applied_proposals_is_its_own(tmp_path: Path) -> None:
    async with started(tmp_path, {"garden": Schedule(watch=("in",))}) as (triggers, fired):
        bus = EventBus()
        bus.subscribe(triggers.observe)
        number = 0

        async def change() -> None:
            nonlocal number
            number += 1
            (tmp_path / "in").mkdir(exist_ok=True)
            (tmp_path / "in" / "a").write_text("x" * number, encoding="utf-8")
            await asyncio.sleep(0.15)

        def run(run_id: str, *, begins: bool) -> None:
            begun = RunBegun(agent="garden", run_id=run_id, trigger="schedule")
            bus.publish(begun if begins else RunFinished(result=ended("garden", run_id=run_id)))

        run("r0", begins=False)  # it ended before it began: its agent could not be loaded
        run("r1", begins=True)
        await change()
        run("r2", begins=True)  # the end of the first one could not be recorded
        await change()
        run("r2", begins=False)
        await settled(triggers)
        assert fired == []

        proposal = line(agent="garden")
        steps = (
            ProposalStatus.APPROVED, ProposalStatus.APPLYING, ProposalStatus.APPLIED,
            ProposalStatus.UNDOING, ProposalStatus.UNDONE,
        )  # fmt: skip
        for before, status in pairwise(steps):
            bus.publish(ProposalChanged(proposal=replace(proposal, status=status), before=before))
            if status in {ProposalStatus.APPLYING, ProposalStatus.UNDOING}:
                await change()
            await settled(triggers)
        assert fired == []

        await change()
        await seen(lambda: fired == [("garden", "file", None)])


async def settled(triggers: Triggers) -> None:
    watched = triggers._files._agents["garden"]
    await seen(lambda: bool(watched.busy) or (not watched.own and watched.first is None))


async def test_a_receiver_that_fails_is_logged_and_the_others_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []

    def fire(agent: str, why: str, due: datetime | None) -> None:
        told.append(agent)
        if agent == "one":
            raise RuntimeError("no room")

    schedules = {name: Schedule(after=("first",)) for name in ("one", "two")}
    triggers = Triggers(schedules, tmp_path, fire)
    triggers.note(ended("first"))
    assert told == ["one", "two"]
    assert [record.message for record in caplog.records] == ["an agent that is due could not be run"]


async def test_agents_that_are_due_by_the_clock_cost_no_task_and_no_thread(tmp_path: Path) -> None:
    tasks = asyncio.all_tasks()
    async with started(tmp_path, {"agent": Schedule(timed=(Every(timedelta(hours=1)),), webhook=True)}):
        assert asyncio.all_tasks() == tasks


async def test_a_change_of_the_clock_is_handed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = datetime.now(UTC)
    ahead = timedelta()
    due = start.replace(microsecond=0) + timedelta(hours=5)
    (tmp_path / "events.ics").write_text(ics(event(due)), encoding="utf-8")
    schedules = {"agent": Schedule(before=BeforeEvent("events.ics", timedelta()))}
    async with started(tmp_path, schedules, now=lambda: datetime.now(UTC) + ahead) as (triggers, fired):
        await seen(lambda: triggers._calendars._calendars["agent"].dues == (due,))
        ahead = timedelta(hours=5)
        triggers.clock_changed()
        await seen(lambda: fired == [("agent", "calendar", due)])


async def test_who_takes_over_misses_nothing_and_repeats_nothing(tmp_path: Path) -> None:
    due = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=5)
    (tmp_path / "events.ics").write_text(ics(event(due), event(due + timedelta(hours=9))), encoding="utf-8")
    schedules = {
        "files": Schedule(watch=("in",)),
        "own": Schedule(watch=("in",)),
        "calendar": Schedule(before=BeforeEvent("events.ics", timedelta())),
    }
    ahead = timedelta()
    fired: Fired = []

    async def begun(since: dict[str, datetime] | None) -> Triggers:
        made = Triggers(
            schedules,
            tmp_path,
            lambda *told: fired.append(told),
            since=since,
            now=lambda: datetime.now(UTC) + ahead,
        )
        await made.start()
        await seen(lambda: len(made._calendars._calendars["calendar"].dues) == 2)
        return made

    first = await begun({})
    first.suppress("own")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a").write_text("x", encoding="utf-8")
    ahead = timedelta(hours=5, seconds=1)  # the clock was set, and nobody said so
    moment = await first.hand_over()
    expected: Fired = [("calendar", "calendar", due), ("files", "file", None)]
    assert fired == expected
    ahead = timedelta()
    (tmp_path / "in" / "b").write_text("x", encoding="utf-8")  # while nobody watches
    second = await begun({"files": moment - timedelta(hours=5, seconds=1), "calendar": moment})
    assert fired == [*expected, ("files", "file", None)]
    ahead = timedelta(hours=5, seconds=2)
    second.clock_changed()
    await seen(lambda: second._calendars._pause() > 1)
    await second.aclose()
    assert fired == [*expected, ("files", "file", None)]


async def test_nothing_of_before_counts_without_a_moment_and_all_of_a_week_without_any(
    tmp_path: Path,
) -> None:
    past = datetime.now(UTC).replace(microsecond=0) - timedelta(days=2)
    (tmp_path / "events.ics").write_text(ics(event(past)), encoding="utf-8")
    schedules = {"agent": Schedule(before=BeforeEvent("events.ics", timedelta()), watch=("events.ics",))}
    known = {"agent": past - timedelta(days=1)}
    for since, expected in (
        (None, [("agent", "calendar", past)]),
        ({}, []),
        (known, [("agent", "file", None), ("agent", "calendar", past)]),
    ):
        async with started(tmp_path, schedules, since=since) as (triggers, fired):
            found = triggers._calendars._calendars["agent"]
            await seen(lambda found=found: found.dues == (past,))  # type: ignore[misc]
            await seen(
                lambda triggers=triggers: triggers._calendars._pause() == calendar.LOOK_EVERY.total_seconds()
            )  # type: ignore[misc]
            await asyncio.sleep(0.05)
        assert fired == expected
