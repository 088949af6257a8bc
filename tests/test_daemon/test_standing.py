"""Where agents stand and why; pausing, resuming and running them, alone and inside the daemon."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from agents.base import BaseAgent
from agents.errors import AgentNotFound, SourceError
from agents.proposal import Proposal
from daemon.controls import Controls, Standing
from daemon.errors import DaemonError
from daemon.events import (
    AgentState,
    AgentStateChanged,
    AgentStatus,
    DueTime,
    Event,
    EventBus,
    Fate,
    RunOutcome,
    RunResult,
)
from daemon.plain import dumps, loads
from daemon.runtime import Runtime, open_runtime
from daemon.standing import NO_DAEMON, DaemonControls, LocalControls
from tests.support.stores import START, Clock, settings_for

HOUR = timedelta(hours=1)
Open = Callable[..., Any]


class QuickAgent(BaseAgent):
    """Fails when it is told to."""

    name = "quick"
    every = "2h"
    fails = False

    async def analyze(self) -> list[Proposal]:
        if self.fails:
            msg = "offers.csv is gone"
            raise SourceError(msg)
        return []


@pytest.fixture
async def open_(tmp_path: Path) -> AsyncIterator[Open]:
    QuickAgent.fails = False
    async with AsyncExitStack() as stack:

        async def opener(
            table: dict[str, Any] | None = None, clock: Clock | None = None
        ) -> tuple[Runtime, list[Event]]:
            events: list[Event] = []
            bus = EventBus()
            bus.subscribe(events.append)
            settings = await settings_for(
                tmp_path, **({} if table == {"absent": True} else {"quick": table or {}})
            )
            runtime = open_runtime(
                settings, agents=[QuickAgent], with_llm=False, events=bus, now=clock or Clock()
            )
            return await stack.enter_async_context(runtime), events

        yield opener


class FakeScheduler:
    """Stands in the place of the scheduler, and knows what the test says."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime: Runtime | None = runtime
        self.since: datetime | None = None
        self.due: datetime | None = START + HOUR
        self.next: datetime | None = START + 2 * HOUR
        self.says: tuple[str, ...] = ("two other agents are running; it waits for its turn",)

    def running_since(self, agent: str) -> datetime | None:
        return self.since

    def next_due(self, agent: str) -> datetime | None:
        return self.due

    def next_run(self, agent: str) -> datetime | None:
        return self.next

    def holds(self, agent: str) -> tuple[str, ...]:
        return self.says

    async def run_once(self, agent: str) -> list[RunResult]:
        assert self.runtime is not None
        await self.runtime.runner.config(agent)
        return [await self.runtime.runner.run(agent, "manual")]


async def reload() -> tuple[str, ...]:
    return ("agents.quick.every: 2h -> 3h",)


def inside(runtime: Runtime, scheduler: FakeScheduler | None = None, **options: Any) -> DaemonControls:
    return DaemonControls(scheduler or FakeScheduler(runtime), runtime, reload=reload, **options)


def both(runtime: Runtime) -> tuple[Controls, Controls]:
    return runtime.controls, inside(runtime)


def holds_of(standing: Standing) -> list[str]:
    return [hold for hold in standing.holds if hold != NO_DAEMON]


# --- pause, resume


async def test_a_paused_agent_stays_paused_over_a_restart_until_it_is_resumed(open_: Open) -> None:
    runtime, events = await open_()
    status = await runtime.controls.pause("quick", "ana", "on holiday")
    assert status == AgentStatus(
        agent="quick", state=AgentState.PAUSED, by="ana", reason="on holiday", since=START
    )
    assert events == [AgentStateChanged(status=status, before=AgentState.ACTIVE)]
    again, events = await open_(clock=Clock(START + HOUR))
    assert await again.states.get("quick") == status
    active = await again.controls.resume("quick", "luis")
    assert active == AgentStatus(agent="quick", by="luis", since=START + HOUR)
    assert await again.states.get("quick") == active
    assert events == [AgentStateChanged(status=active, before=AgentState.PAUSED)]


async def test_what_changes_nothing_writes_nothing_and_tells_nobody(open_: Open) -> None:
    runtime, events = await open_()
    await runtime.controls.resume("quick", "ana")
    await runtime.controls.pause("quick", "ana")
    async with runtime.db.write() as connection:
        await connection.execute(
            text("CREATE TRIGGER stop BEFORE UPDATE ON agent_states BEGIN SELECT raise(ABORT, 'no'); END")
        )
    await runtime.controls.pause("quick", "ana")
    assert len(events) == 1


async def test_resuming_forgets_failures_and_holds_and_tells_it(open_: Open) -> None:
    runtime, events = await open_({"backoff": "1h"})
    QuickAgent.fails = True
    await runtime.controls.run("quick")
    assert (await runtime.states.get("quick")).held_until == START + HOUR
    status = await runtime.controls.resume("quick", "ana")
    assert (status.failures, status.held_until) == (0, None)
    assert events[-1] == AgentStateChanged(status=status, before=AgentState.ACTIVE)
    assert holds_of(await runtime.controls.why("quick")) == []


async def test_a_change_of_state_that_is_cancelled_is_whole(open_: Open) -> None:
    runtime, events = await open_()
    for number in range(12):
        changing = asyncio.create_task(runtime.controls.pause("quick", f"ana{number}"))
        await asyncio.sleep(number * 0.0005)
        changing.cancel()
        await asyncio.wait({changing})
        kept = await runtime.states.get("quick")
        told = [event.status for event in events if isinstance(event, AgentStateChanged)]
        assert kept == (told[-1] if told else AgentStatus(agent="quick"))


async def test_an_unknown_agent_is_named_by_every_control(open_: Open) -> None:
    runtime, _ = await open_()
    for controls in both(runtime):
        for ask in (
            controls.pause("quikc", "ana"),
            controls.resume("quikc", "ana"),
            controls.run("quikc"),
            controls.why("quikc"),
        ):
            with pytest.raises(AgentNotFound, match="quikc"):
                await ask
    assert await runtime.states.all() == {}
    assert await runtime.runs.list() == ()


async def test_an_agent_whose_table_is_broken_can_be_paused_and_says_what_is_wrong(open_: Open) -> None:
    runtime, _ = await open_({"timeout": "soon"})
    assert (await runtime.controls.pause("quick", "ana")).state is AgentState.PAUSED
    standing = await runtime.controls.why("quick")
    assert "agents.quick.timeout" in standing.holds[0]
    assert standing.holds[1].startswith("paused by ana")


# --- run, reload, backup


async def test_an_agent_is_run_by_hand_whatever_holds_it(open_: Open) -> None:
    runtime, _ = await open_()
    await runtime.controls.pause("quick", "ana")
    for controls in both(runtime):
        result = await controls.run("quick")
        assert (result.outcome, result.trigger, result.due) == (RunOutcome.SUCCEEDED, "manual", None)
    assert (await runtime.states.get("quick")).state is AgentState.PAUSED
    assert (await runtime.controls.run("quick", "once")).trigger == "once"


async def test_reloading_needs_a_daemon(open_: Open) -> None:
    runtime, _ = await open_()
    alone, in_daemon = both(runtime)
    with pytest.raises(DaemonError, match="no daemon is running"):
        await alone.reload()
    assert await in_daemon.reload() == ("agents.quick.every: 2h -> 3h",)


async def test_backups_are_made_by_whoever_was_handed_in(open_: Open, tmp_path: Path) -> None:
    runtime, _ = await open_()
    asked: list[Path | None] = []

    async def backup(to: Path | None) -> Path:
        asked.append(to)
        return tmp_path / "copy"

    assert await inside(runtime, backup=backup).backup(tmp_path) == tmp_path / "copy"
    assert asked == [tmp_path]
    assert await asyncio.to_thread((await inside(runtime).backup()).exists)  # the runtime's own


# --- why


async def test_an_agent_that_never_ran_is_due_at_once(open_: Open) -> None:
    runtime, _ = await open_()
    standing = await runtime.controls.why("quick")
    assert standing == Standing(
        status=AgentStatus(agent="quick"), schedule="every 2h", next_due=START, holds=(NO_DAEMON,)
    )


async def test_the_next_due_time_follows_the_last_one_and_an_overdue_one_is_still_due(open_: Open) -> None:
    clock = Clock()
    runtime, _ = await open_(clock=clock)
    result = await runtime.runner.run("quick", "schedule", due=START - HOUR)
    standing = await runtime.controls.why("quick")
    assert standing.next_due == START + HOUR
    assert standing.last_run == result
    (due,) = standing.due_times
    assert (due.due, due.fate, due.run_id) == (START - HOUR, Fate.RUN, result.run_id)
    clock.move(hours=6)  # no daemon ran meanwhile: of the three due times the newest one waits
    assert (await runtime.controls.why("quick")).next_due == START + 5 * HOUR


async def test_without_due_times_the_next_one_counts_from_the_last_run(open_: Open) -> None:
    runtime, _ = await open_()
    await runtime.controls.run("quick")
    assert (await runtime.controls.why("quick")).next_due == START + 2 * HOUR


@pytest.mark.parametrize(
    ("table", "words", "due"),
    [
        ({"cron": "0 7 * * *", "schedule_timezone": "UTC"}, "cron 0 7 * * * (UTC)", START + 19 * HOUR),
        ({"at": "2026-03-02T08:00:00+00:00"}, "at 2026-03-02 08:00+00:00", START + 20 * HOUR),
        ({"at": "2026-02-02T08:00:00+00:00"}, "at 2026-02-02 08:00+00:00", None),
        ({"after": "pantry", "webhook": True}, "after pantry; on a webhook", None),
    ],
)
async def test_every_kind_of_schedule_is_said_in_words(
    open_: Open, table: dict[str, Any], words: str, due: datetime | None
) -> None:
    runtime, _ = await open_(table)
    standing = await runtime.controls.why("quick")
    assert (standing.schedule, standing.next_due) == (words, due)


async def held(runtime: Runtime, **status: Any) -> list[str]:
    await runtime.states.set(AgentStatus(agent="quick", **status))
    return holds_of(await runtime.controls.why("quick"))


async def test_each_hold_is_one_sentence_with_its_way_out(open_: Open) -> None:
    runtime, _ = await open_()
    assert await held(runtime, state=AgentState.PAUSED, by="ana", since=START, reason="on holiday") == [
        "paused by ana since 2026-03-01 12:00 UTC: on holiday; resume it: askfirst agents resume quick"
    ]
    assert await held(runtime, state=AgentState.PAUSED) == [
        "paused since an unknown time; resume it: askfirst agents resume quick"
    ]
    assert await held(runtime, state=AgentState.QUARANTINED, since=START, reason="it failed 10 times") == [
        (
            "quarantined since 2026-03-01 12:00 UTC: it failed 10 times; mend it, then resume it: "
            "askfirst agents resume quick (or change its configuration)"
        )
    ]
    assert await held(runtime, failures=1, held_until=START + HOUR, held_because="it failed: no file") == [
        (
            "left alone until 2026-03-01 13:00 UTC: it failed: no file; "
            "run it now: askfirst agents run quick, or end the wait: askfirst agents resume quick"
        )
    ]
    for not_held in (START - HOUR, START + timedelta(days=8)):
        assert await held(runtime, failures=1, held_until=not_held, held_because="it failed") == []


async def test_quiet_time_holds_too(open_: Open) -> None:
    runtime, _ = await open_({"quiet": "10:00-14:00", "schedule_timezone": "UTC"})
    assert holds_of(await runtime.controls.why("quick")) == [
        "quiet until 2026-03-01 14:00 UTC; run it now: askfirst agents run quick"
    ]


@pytest.mark.parametrize("table", [{"absent": True}, {"enabled": False}])
async def test_an_agent_that_is_not_enabled_says_how_to_enable_it(open_: Open, table: dict[str, Any]) -> None:
    runtime, _ = await open_(table)
    standing = await runtime.controls.why("quick")
    assert (standing.enabled, standing.next_due) == (False, None)
    assert holds_of(standing) == ["it is not enabled: give it a table [agents.quick] without enabled = false"]
    assert not (await inside(runtime).why("quick")).enabled


async def test_the_daemon_knows_more(open_: Open) -> None:
    runtime, events = await open_()
    scheduler = FakeScheduler(runtime)
    controls = inside(runtime, scheduler)
    await controls.pause("quick", "ana")
    scheduler.since = START
    standing = await controls.why("quick")
    assert standing.status == await runtime.states.get("quick")
    assert standing.running_since == START
    assert (standing.next_due, standing.next_run) == (START + HOUR, START + 2 * HOUR)
    assert standing.holds == scheduler.says
    status = await controls.resume("quick", "ana")
    assert events[-1] == AgentStateChanged(status=status, before=AgentState.PAUSED)


async def test_the_daemons_controls_follow_the_configuration_that_is_in_force(open_: Open) -> None:
    runtime, _ = await open_()
    later, _ = await open_({"enabled": False, "every": "3h"})
    scheduler = FakeScheduler(runtime)
    controls = inside(runtime, scheduler)
    assert (await controls.why("quick")).schedule == "every 2h"
    scheduler.runtime = later
    standing = await controls.why("quick")
    assert (standing.enabled, standing.schedule) == (False, "every 3h")
    scheduler.runtime = None  # it is stopping
    assert (await controls.why("quick")).schedule == "every 2h"


async def test_the_last_ten_due_times_are_told_the_newest_first(open_: Open) -> None:
    runtime, _ = await open_()
    settled = [
        DueTime(agent="quick", due=START + n * HOUR, last=START + n * HOUR, fate=Fate.MISSED, reason="off")
        for n in range(12)
    ]
    await runtime.due_times.settle(settled)
    assert (await runtime.controls.why("quick")).due_times == tuple(settled[:1:-1])


async def test_a_standing_goes_over_the_wire_and_back(open_: Open) -> None:
    runtime, _ = await open_()
    QuickAgent.fails = True
    await runtime.runner.run("quick", "schedule", due=START)
    standing = await runtime.controls.why("quick")
    assert loads(dumps(standing)) == standing
    assert isinstance(runtime.controls, LocalControls)
