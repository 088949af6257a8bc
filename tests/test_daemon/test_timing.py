"""Timing: names are called when they are due, over clocks that are set, without keeping the loop."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from agents.schedule import Cron, Every, Schedule
from daemon.clock import ClockWatch
from daemon.crew import Crew
from daemon.errors import StoreError
from daemon.events import DueTime, Fate
from daemon.timer import Timer
from daemon.timing import Timing
from daemon.turns import Hold, Turn
from tests.support.waiting import seen

HOUR = timedelta(hours=1)
SECOND = timedelta(seconds=1)


class Clocks:
    """Clocks that a test sets; otherwise they are the machine's own."""

    step = timedelta()
    slept = timedelta()

    def now(self) -> datetime:
        return datetime.now(UTC) + self.step + self.slept

    def watch(self) -> ClockWatch:
        return ClockWatch(
            lambda: time.time() + (self.step + self.slept).total_seconds(),
            lambda: time.monotonic() + self.slept.total_seconds(),
            time.monotonic,
        )


class SetTimer:
    """A timer by the clock that a test sets."""

    def __init__(self, clocks: Clocks) -> None:
        self._clocks = clocks
        self._look: Callable[[], None] = print
        self._handle: asyncio.Handle | None = None

    def start(self, look: Callable[[], None]) -> None:
        self._look = look

    def at(self, moment: datetime | None) -> None:
        if self._handle is not None:
            self._handle.cancel()
        if moment is not None:
            wait = (moment - self._clocks.now()).total_seconds()
            self._handle = asyncio.get_running_loop().call_later(min(wait, 86_400), self._look)

    def wake_up(self) -> None:
        self._look()

    async def aclose(self) -> None:
        self.at(None)


class Calls:
    """Calls, and what was settled without one."""

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self.settled: list[DueTime] = []
        self.writes = 0
        self.hold: asyncio.Event | None = None
        self.fault: Exception | None = None

    async def __call__(self, turn: Turn) -> None:
        self.turns.append(turn)
        if self.hold is not None:
            await self.hold.wait()
        if self.fault is not None:
            raise self.fault

    async def settle(self, rows: Sequence[DueTime]) -> None:
        if self.fault is not None:
            raise self.fault
        self.writes += 1
        self.settled += rows

    def names(self) -> list[str]:
        return [turn.agent for turn in self.turns]


@asynccontextmanager
async def going(
    calls: Calls, clocks: Clocks | None = None, size: int = 100, **more: Any
) -> AsyncIterator[tuple[Timing, Any]]:
    timer = Timer() if clocks is None else SetTimer(clocks)
    clocks = clocks or Clocks()
    timing = Timing(
        calls, timer, Crew(size), settle=calls.settle, clock=clocks.watch(), now=clocks.now, **more
    )
    timer.start(timing.look)
    timing.start()
    try:
        yield timing, timer
    finally:
        timing.stop()
        await timing.crew.finish(0)
        await timer.aclose()
        await timing.aclose()


def every(interval: timedelta, **more: Any) -> Schedule:
    return Schedule(timed=(Every(interval),), **more)


async def test_a_name_is_called_at_its_due_times_by_the_timer_alone() -> None:
    calls = Calls()
    async with going(calls) as (timing, _):
        first = datetime.now(UTC) + 0.1 * SECOND
        timing.add("a", every(0.2 * SECOND), last=first - 0.2 * SECOND)
        await seen(lambda: len(calls.turns) >= 4)
        assert [turn.due for turn in calls.turns[:4]] == [first + n * 0.2 * SECOND for n in range(4)]
        assert timing.next_due("a") == timing.next_run("a")


async def test_one_that_is_due_sooner_than_all_others_moves_the_timer_forward() -> None:
    calls = Calls()
    async with going(calls) as (timing, timer):
        timing.add("late", every(HOUR), last=datetime.now(UTC))
        assert timer._aps.get_job("#wake-up") is not None
        timing.add("soon", every(HOUR), last=datetime.now(UTC) - HOUR + 0.1 * SECOND)
        await seen(lambda: calls.names() == ["soon"])
        assert len(timer._aps.get_jobs()) == 1  # one job for all of them


async def test_nothing_is_looked_at_while_nothing_is_due() -> None:
    calls = Calls()
    async with going(calls) as (timing, _):
        for n in range(50):
            timing.add(f"a{n}", every(HOUR), last=datetime.now(UTC))
        await asyncio.sleep(0.05)
        looked = timing.looked_at
        await asyncio.sleep(0.5)
        assert timing.looked_at == looked
    assert calls.turns == []
    assert calls.writes == 0


async def test_a_thousand_that_are_due_at_once_leave_the_loop_its_time() -> None:
    calls, begun = Calls(), [0]

    async def other_work() -> None:
        while True:
            begun.append(len(calls.turns))
            await asyncio.sleep(0)

    timer = Timer()
    timing = Timing(calls, timer, Crew(5000))
    due = datetime.now(UTC)
    for n in range(1000):
        timing.add(f"a{n}", every(HOUR), last=due - HOUR + SECOND / 1000)
    await asyncio.sleep(0.01)  # all of them are due, and none is late
    task = asyncio.create_task(other_work())
    timer.start(timing.look)
    timing.start()
    await seen(lambda: len(calls.turns) == 1000)
    task.cancel()
    timing.stop()
    await timer.aclose()
    await timing.aclose()
    assert timing.slices >= 2
    assert max(later - earlier for earlier, later in pairwise(begun)) < 500
    assert len(set(calls.names())) == 1000


async def test_those_without_a_place_are_entries_and_no_tasks() -> None:
    calls = Calls()
    calls.hold = asyncio.Event()
    async with going(calls, size=2) as (timing, _):
        first = datetime.now(UTC) + 0.2 * SECOND
        for n in range(500):
            timing.add(f"a{n}", every(HOUR), last=first - HOUR)
        await seen(lambda: timing.crew.queued == 498)
        assert len(asyncio.all_tasks()) < 10
        calls.hold.set()
        await seen(lambda: len(calls.turns) == 500)


@pytest.mark.parametrize("step", [-7200.0, -86_400 * 3650.0, 7200.0, 86_400 * 30.0, 86_400 * 21_900.0])
async def test_a_step_of_the_clock_changes_no_remaining_time(
    step: float, caplog: pytest.LogCaptureFixture
) -> None:
    calls, clocks = Calls(), Clocks()
    async with going(calls, clocks) as (timing, timer):
        timing.add("a", every(HOUR), last=clocks.now() - HOUR + 600 * SECOND)
        timing.add("b", every(HOUR), last=clocks.now())
        clocks.step = timedelta(seconds=step)
        timer.wake_up()
        timer.wake_up()
        await asyncio.sleep(0.05)
        left = timing.next_run("a")
        assert left is not None
        assert 500 * SECOND < left - clocks.now() <= 600 * SECOND
        assert calls.turns == []
    logged = [r for r in caplog.records if "the clock was set" in r.message]
    assert [round(record.__dict__["step_seconds"]) for record in logged] == [step]


async def test_a_step_is_told_to_who_has_moments_of_the_calendar() -> None:
    calls, clocks, told = Calls(), Clocks(), []
    async with going(calls, clocks) as (timing, timer):
        timing.on_clock_change = lambda: told.append(1)
        timer.wake_up()
        assert told == []
        clocks.step = HOUR
        timer.wake_up()
        assert told == [1]


async def test_what_came_due_during_a_sleep_is_called_once_soon_after_it() -> None:
    calls, clocks = Calls(), Clocks()
    async with going(calls, clocks) as (timing, timer):
        for n in range(20):
            timing.add(f"a{n}", every(HOUR), last=clocks.now() - HOUR / 2, spread=n * SECOND / 20)
        clocks.slept = 5.2 * HOUR
        timer.wake_up()
        await seen(lambda: len(calls.turns) == 20)
        assert calls.names() == [f"a{n}" for n in range(20)]  # spread out
        (coalesced,) = calls.turns[0].settled
        assert (coalesced.fate, coalesced.count) == (Fate.COALESCED, 5)
        assert "asleep" in coalesced.reason
        due = timing.next_due("a0")
        assert due is not None
        assert HOUR / 2 < due - clocks.now() <= HOUR


async def test_a_jump_of_sixty_years_with_many_names_does_not_keep_the_loop() -> None:
    calls, clocks = Calls(), Clocks()
    async with going(calls, clocks, size=1000) as (timing, timer):
        for n in range(100):
            timing.add(f"a{n}", Schedule(timed=(Cron("* * * * *", UTC),)), last=clocks.now())
        clocks.step = timedelta(days=21_900)
        timing.slices = 0
        timer.wake_up()
        await seen(lambda: len(calls.turns) >= 100)
        assert timing.slices > 20
        assert sorted(set(calls.names())) == sorted(f"a{n}" for n in range(100))


async def test_a_due_time_that_was_settled_before_the_clock_went_back_is_not_called_again() -> None:
    calls, clocks, asked = Calls(), Clocks(), []
    settled: set[datetime] = set()

    async def known(_: str, due: datetime) -> bool:
        asked.append(due)
        return due in settled

    async with going(calls, clocks, known=known) as (timing, timer):
        due = datetime(2026, 1, 1, 12, tzinfo=UTC)
        clocks.step = due - clocks.now() - SECOND
        timer.wake_up()
        timing.add("a", Schedule(timed=(Cron("0 12 * * *", UTC),)), last=due - timedelta(days=1))
        await seen(lambda: len(calls.turns) == 1)
        assert asked == []
        settled.add(due)
        clocks.step -= 3 * SECOND
        timer.wake_up()
        await seen(lambda: asked == [due])
        await seen(lambda: timing.next_due("a") == due + timedelta(days=1))
        assert len(calls.turns) == 1


async def test_what_leads_to_no_run_is_recorded_in_one_go() -> None:
    calls, clocks = Calls(), Clocks()
    async with going(calls, clocks) as (timing, timer):
        for n in range(200):
            timing.add(f"a{n}", every(HOUR, catch_up="skip"), last=clocks.now())
        clocks.slept = 3.5 * HOUR
        timer.wake_up()
        await seen(lambda: len(calls.settled) == 200)
        assert calls.writes < 20  # in slices, not one by one
        assert {(row.fate, row.count, row.reason) for row in calls.settled} == {
            (Fate.MISSED, 3, "the machine was asleep")
        }


async def test_what_cannot_be_recorded_is_recorded_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    calls, clocks = Calls(), Clocks()
    async with going(calls, clocks) as (timing, timer):
        timing.add("a", every(HOUR, catch_up="skip"), last=clocks.now())
        calls.fault = StoreError("the disk is away")
        clocks.slept = 3 * HOUR
        timer.wake_up()
        await seen(lambda: "the disk is away" in caplog.text)
        calls.fault = None
    assert [row.count for row in calls.settled] == [3]


@pytest.mark.parametrize("fault", [StoreError("away"), sqlite3.OperationalError("broken")])
async def test_a_call_that_fails_leaves_its_due_time_to_the_next_one(fault: Exception) -> None:
    calls = Calls()
    async with going(calls) as (timing, _):
        calls.fault = fault
        timing.add("a", every(0.2 * SECOND), last=datetime.now(UTC) - 0.1 * SECOND)
        await seen(lambda: len(calls.turns) >= 1)
        calls.fault = None
        await seen(lambda: any(turn.settled for turn in calls.turns))
        lost = next(turn.settled[0] for turn in calls.turns if turn.settled)
        assert (lost.fate, lost.due) == (Fate.SKIPPED, calls.turns[0].due)
        assert lost.reason == "its run could not be recorded"


async def test_a_run_by_hand_keeps_the_schedule_waiting_and_is_not_counted_as_a_turn() -> None:
    calls, go = Calls(), asyncio.Event()
    async with going(calls) as (timing, _):
        timing.add("a", every(0.1 * SECOND), last=datetime.now(UTC) - 0.05 * SECOND)
        task = timing.by_hand("a", go.wait)
        await asyncio.sleep(0.3)
        assert calls.turns == []
        go.set()
        await task
        await seen(lambda: len(calls.turns) >= 1)
        (skipped,) = calls.turns[0].settled
        assert skipped.fate is Fate.SKIPPED
        assert skipped.count >= 2


async def test_nothing_is_called_after_the_stop() -> None:
    calls = Calls()
    async with going(calls) as (timing, timer):
        timing.add("a", every(0.1 * SECOND), last=datetime.now(UTC))
        timing.stop()
        timer._aps.wakeup()
        assert timing.trigger("a", "file")
        await asyncio.sleep(0.3)
    assert calls.turns == []
    assert [(row.fate, row.reason) for row in calls.settled] == [
        (Fate.SKIPPED, "the program was stopped before it could begin")
    ]


async def test_holds_pass_through() -> None:
    calls = Calls()
    async with going(calls) as (timing, _):
        timing.add("a", every(0.1 * SECOND), last=datetime.now(UTC))
        timing.hold("a", "state", Hold(reason="paused by ana", drops=True))
        timing.hold_all(Hold(reason="the disk is full"))
        await asyncio.sleep(0.25)
        timing.release_all()
        assert calls.turns == []
        timing.release("a", "state")
        await seen(lambda: len(calls.turns) >= 1)
        timing.change("a", every(HOUR), timedelta())
        timing.remove("a")
        await asyncio.sleep(0.05)
        assert timing.next_due("a") is None
    assert "paused by ana" in {row.reason for row in calls.settled}


async def test_the_log_has_no_line_of_the_timers_own(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    calls = Calls()
    async with going(calls) as (timing, _):
        timing.add("a", every(0.05 * SECOND), last=datetime.now(UTC))
        await seen(lambda: len(calls.turns) >= 3)
    assert [r for r in caplog.records if r.name.startswith(("apscheduler", "daemon"))] == []


async def test_what_comes_just_when_the_others_were_recorded_is_recorded_too() -> None:
    calls, clocks = Calls(), Clocks()
    async with going(calls, clocks) as (timing, timer):
        for n in range(30):
            timing.add(f"a{n}", every(HOUR, catch_up="skip"), last=clocks.now())
            clocks.slept += 1.5 * HOUR
            timer.wake_up()
            for _ in range(n % 5):
                await asyncio.sleep(0)
        await seen(lambda: {row.agent for row in calls.settled} == {f"a{n}" for n in range(30)})


async def test_it_counts_how_often_the_clock_was_set_or_the_machine_slept() -> None:
    calls, clocks = Calls(), Clocks()
    async with going(calls, clocks) as (timing, timer):
        timer.wake_up()
        assert timing.clock_changes == 0
        clocks.slept = HOUR
        timer.wake_up()
        clocks.step = -2 * HOUR
        timer.wake_up()
        timer.wake_up()
        assert timing.clock_changes == 2
