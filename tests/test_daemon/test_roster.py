"""The agents on schedule: due times over restarts, holds with their way out, events, limits."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest

from agents.base import BaseAgent
from agents.proposal import Proposal
from daemon import AgentScheduler
from daemon.errors import DaemonError
from daemon.events import AgentState, AgentStatus, DueTime, DueTimesSettled, Event, Fate, RunOutcome
from daemon.roster import backends_of
from daemon.runtime import Runtime, open_runtime
from daemon.settings import DaemonSettings, Settings
from llm import LLMConfig, Routes, Selection
from tests.support.waiting import seen

MOCK = LLMConfig(backend="mock", enable_cache=False)
HOUR = timedelta(hours=1)


class QuickAgent(BaseAgent):
    """Notes that it ran."""

    every = "1h"
    runs: ClassVar[list[str]] = []

    async def analyze(self) -> list[Proposal]:
        self.runs.append(self.name)
        return []


class OtherAgent(QuickAgent):
    """A second one."""


class SlowAgent(QuickAgent):
    """Lasts until a test lets it end."""

    go: ClassVar[asyncio.Event]

    async def analyze(self) -> list[Proposal]:
        self.runs.append(self.name)
        await self.go.wait()
        return []


class SlowerAgent(SlowAgent):
    """A second one."""


class FaultyAgent(QuickAgent):
    """Fails."""

    async def analyze(self) -> list[Proposal]:
        raise ValueError("no data today")


@pytest.fixture(autouse=True)
def fresh() -> None:
    QuickAgent.runs.clear()
    SlowAgent.go = SlowerAgent.go = asyncio.Event()


def settings_of(folder: Path, agents: dict[str, dict[str, Any]] | None = None, **daemon: Any) -> Settings:
    daemon = {"stop_grace": timedelta(seconds=0.2), **daemon}
    return Settings(daemon=DaemonSettings(data_dir=folder / "data", **daemon), agents=agents or {})


def scheduler_of(settings: Settings, *agents: type[BaseAgent]) -> AgentScheduler:
    return AgentScheduler(MOCK, agents, settings)


async def ran_before(settings: Settings, agent: str, ago: timedelta) -> datetime:
    """Leave a due time behind, as a program that ran so long ago."""
    due = datetime.now(UTC) - ago
    async with open_runtime(settings, llm_config=MOCK, with_llm=False) as runtime:
        await runtime.due_times.settle([DueTime(agent=agent, due=due, last=due, fate=Fate.RUN)])
    return due


def opened(scheduler: AgentScheduler) -> Runtime:
    assert scheduler.runtime is not None
    return scheduler.runtime


async def rows_of(scheduler: AgentScheduler, agent: str) -> list[DueTime]:
    """The oldest first."""
    return list(reversed(await opened(scheduler).due_times.list(agent)))


def succeeded(scheduler: AgentScheduler) -> int:
    count: int = scheduler.get_stats()["runs"]["succeeded"]
    return count


async def test_what_passed_while_the_program_was_off_is_settled_with_the_first_run(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    before = await ran_before(settings, "quick", 4.75 * HOUR)
    async with scheduler_of(settings, QuickAgent) as scheduler:
        await seen(lambda: succeeded(scheduler) == 1)
        _, missed, run = await rows_of(scheduler, "quick")
        (recorded,) = await opened(scheduler).runs.list()
        due = scheduler.next_due("quick")
    assert (missed.fate, missed.count, missed.due) == (Fate.COALESCED, 4, before + HOUR)
    assert missed.reason == "the program was not running"
    assert (run.fate, run.run_id, run.due) == (Fate.RUN, recorded.run_id, recorded.due)
    assert missed.run_id == recorded.run_id
    assert due == run.due + HOUR


async def test_what_is_not_caught_up_is_recorded_at_once_and_told(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, {"quick": {"catch_up": "skip"}})
    before = await ran_before(settings, "quick", 4.75 * HOUR)
    scheduler = scheduler_of(settings, QuickAgent)
    told: list[Event] = []
    scheduler.events.subscribe(told.append)
    async with scheduler:
        await seen(lambda: any(isinstance(event, DueTimesSettled) for event in told))
        _, missed = await rows_of(scheduler, "quick")
        assert scheduler.next_run("quick") == before + 5 * HOUR
    assert (missed.fate, missed.count) == (Fate.MISSED, 4)
    assert DueTimesSettled(due_times=(missed,)) in told
    assert QuickAgent.runs == []


async def test_a_restart_goes_on_with_the_same_due_time(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    before = await ran_before(settings, "quick", 0.5 * HOUR)
    for _ in range(3):
        async with scheduler_of(settings, QuickAgent) as scheduler:
            assert scheduler.next_due("quick") == scheduler.next_run("quick") == before + HOUR
    assert QuickAgent.runs == []


async def test_an_agent_that_is_paused_stays_so_over_a_restart_and_says_how_to_end_it(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    async with open_runtime(settings, llm_config=MOCK, agents=[QuickAgent]) as runtime:
        await runtime.controls.pause("quick", "ana", "on holiday")
    async with scheduler_of(settings, QuickAgent) as scheduler:
        await asyncio.sleep(1.2)  # a new agent's first run would have come
        assert scheduler.next_run("quick") is None
        (why,) = scheduler.holds("quick")
        assert why == "paused by ana: on holiday; `askfirst agents resume quick` ends that"
        await opened(scheduler).controls.resume("quick", "ana")
        assert scheduler.holds("quick") == ()
        (skipped,) = await settled(scheduler, "quick", 1)
        assert (skipped.fate, skipped.reason) == (Fate.SKIPPED, "paused by ana: on holiday")
    assert QuickAgent.runs == []


async def settled(scheduler: AgentScheduler, agent: str, count: int) -> list[DueTime]:
    """That many rows, as soon as they are there."""
    async with asyncio.timeout(60):
        while len(rows := await rows_of(scheduler, agent)) < count:  # noqa: ASYNC110 - the database tells nobody
            await asyncio.sleep(0.01)
    return rows


async def test_an_agent_that_fails_is_left_alone_and_says_until_when(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, {"faulty": {"every": "1s", "backoff": ["1h"]}})
    async with scheduler_of(settings, FaultyAgent) as scheduler:
        await seen(lambda: scheduler.get_stats()["runs"]["failed"] == 1)
        await seen(lambda: bool(scheduler.holds("faulty")))
        (why,) = scheduler.holds("faulty")
        assert "it failed: ValueError: no data today" in why
        assert "until" in why
        assert "a successful run by hand too" in why
        run = scheduler.next_run("faulty")
        assert run is not None
        assert run - datetime.now(UTC) > 0.9 * HOUR
        due = scheduler.next_due("faulty")
        assert due is not None
        assert due - datetime.now(UTC) <= timedelta(seconds=1)
        await opened(scheduler).controls.resume("faulty", "ana")
        await seen(lambda: scheduler.get_stats()["runs"]["failed"] == 2)


async def test_an_agent_that_is_quarantined_is_not_run_on_schedule(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, {"faulty": {"every": "1s", "backoff": [], "quarantine_after": 2}})
    async with scheduler_of(settings, FaultyAgent, QuickAgent) as scheduler:
        await seen(lambda: bool(scheduler.holds("faulty")))
        assert scheduler.get_stats()["runs"]["failed"] == 2
        (why,) = scheduler.holds("faulty")
        assert why.startswith("quarantined: it failed 2 times in a row")
        (result,) = await scheduler.run_once("faulty")  # by hand it is run nevertheless
        assert result.outcome is RunOutcome.FAILED


async def test_quiet_time_is_a_hold_with_a_way_out(tmp_path: Path) -> None:
    days = ",".join(f"{datetime.now(UTC) + n * timedelta(days=1):%a}".lower() for n in (-1, 0, 1))
    settings = settings_of(tmp_path, {"quick": {"quiet": [f"{days} 00:00-24:00"]}})
    async with scheduler_of(settings, QuickAgent) as scheduler:
        (why,) = scheduler.holds("quick")
        assert why.startswith("it is quiet time until")
        assert "askfirst agents run quick" in why


async def test_what_holds_an_agent_that_is_not_scheduled_is_said_too(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, {"faulty": {"every": "sometimes"}})
    scheduler = scheduler_of(settings, QuickAgent, FaultyAgent)
    assert "askfirst run" in scheduler.holds("quick")[0]
    assert scheduler.next_due("quick") is None
    async with scheduler:
        assert scheduler.holds("quick") == ()
        assert "cannot be scheduled: agents.faulty.every" in scheduler.holds("faulty")[0]
        assert "[agents.nobody]" in scheduler.holds("nobody")[0]
        assert scheduler.next_run("nobody") is None


# events


async def test_an_event_makes_an_agent_due_and_leaves_a_row(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, {"quick": {"webhook": True}})
    scheduler = scheduler_of(settings, QuickAgent)
    assert not scheduler.trigger("quick", "webhook")
    async with scheduler:
        assert scheduler.next_due("quick") is None
        assert not scheduler.trigger("nobody", "webhook")
        assert all(scheduler.trigger("quick", "webhook") for _ in range(3))
        await seen(lambda: succeeded(scheduler) == 1)
        coalesced, run = await rows_of(scheduler, "quick")
        (recorded,) = await opened(scheduler).runs.list()
    assert (recorded.trigger, recorded.due) == ("webhook", run.due)
    assert (coalesced.count, coalesced.run_id) == (2, recorded.run_id)


async def test_an_event_of_the_calendar_is_run_once_however_often_it_is_told(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, {"quick": {"webhook": True}})
    due = datetime.now(UTC) - HOUR
    for _ in range(2):
        async with scheduler_of(settings, QuickAgent) as scheduler:
            for _ in range(2):
                scheduler.trigger("quick", "calendar", due)
                await seen(lambda: len(QuickAgent.runs) == 1)
                await seen(lambda: scheduler.running_since("quick") is None)
            await asyncio.sleep(0.1)
    assert QuickAgent.runs == ["quick"]


async def test_an_event_that_waits_at_the_stop_is_told(tmp_path: Path) -> None:
    settings = settings_of(
        tmp_path, {"quick": {"webhook": True}, "slow": {"webhook": True}}, max_concurrent_runs=1
    )
    async with scheduler_of(settings, QuickAgent, SlowAgent) as scheduler:
        assert scheduler.trigger("slow", "webhook")
        await seen(lambda: scheduler.running_since("slow") is not None)
        assert scheduler.trigger("quick", "webhook")
        await seen(lambda: "daemon.max_concurrent_runs" in "".join(scheduler.holds("quick")))
    async with open_runtime(settings, with_llm=False) as runtime:
        (row,) = await runtime.due_times.list("quick")
    assert (row.fate, row.reason) == (Fate.SKIPPED, "the program was stopped before it could begin")


async def test_an_agent_that_comes_after_another_runs_after_it(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, {"quick": {"every": "1h"}, "other": {"after": ["quick"]}})
    async with scheduler_of(settings, QuickAgent, OtherAgent) as scheduler:
        await seen(lambda: QuickAgent.runs == ["quick", "other"])
        await seen(lambda: succeeded(scheduler) == 2)
        assert {run.agent: run.trigger for run in await opened(scheduler).runs.list()} == {
            "quick": "schedule",
            "other": "after quick",
        }


# limits and holds of all


async def test_while_all_are_held_nothing_runs_and_a_run_by_hand_is_refused(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    scheduler = scheduler_of(settings, QuickAgent)
    scheduler.hold_all("the disk is full: make room in /data")
    async with scheduler:
        await asyncio.sleep(1.2)
        with pytest.raises(DaemonError, match="the disk is full: make room"):
            await scheduler.run_once("quick")
        assert "the disk is full" in scheduler.holds("quick")[0]
        assert scheduler.next_run("quick") is None
        assert QuickAgent.runs == []
        scheduler.release_all()
        await seen(lambda: QuickAgent.runs == ["quick"])
        assert scheduler.holds("quick") == ()
        scheduler.hold_all("again")
        assert scheduler.next_run("quick") is None
    async with scheduler:  # it holds over a stop, too
        assert scheduler.next_run("quick") is None


async def test_agents_that_ask_the_same_backend_wait_for_each_other(tmp_path: Path) -> None:
    table = {"webhook": True}
    settings = settings_of(
        tmp_path, {"slow": table, "slower": table}, max_concurrent_runs=8, max_runs_per_backend=1
    )
    async with scheduler_of(settings, SlowAgent, SlowerAgent) as scheduler:
        scheduler.trigger("slow", "webhook")
        scheduler.trigger("slower", "webhook")
        await seen(lambda: SlowAgent.runs == ["slow"])
        assert "at the backend mock" in scheduler.holds("slower")[0]
        SlowAgent.go.set()
        await seen(lambda: SlowAgent.runs == ["slow", "slower"])


def test_an_agents_backends_are_those_of_its_route() -> None:
    server = LLMConfig(backend="remote", model="m", api_base="http://127.0.0.1:9")
    assert backends_of(Selection(config=None, reason=""), "a") == ()
    assert backends_of(Selection(config=server, reason=""), "a") == ("remote",)
    routes = Routes(backends={"pi": server, "cloud": server}, default=("pi",), agents={"b": ("cloud", "pi")})
    assert backends_of(Selection(config=server, reason="", routes=routes), "a") == ("pi",)
    assert backends_of(Selection(config=server, reason="", routes=routes), "b") == ("cloud", "pi")


async def test_a_run_by_hand_does_not_wait_for_those_on_schedule(tmp_path: Path) -> None:
    table = {"webhook": True}
    settings = settings_of(tmp_path, {"slow": table, "slower": table, "quick": table}, max_concurrent_runs=1)
    async with scheduler_of(settings, SlowAgent, SlowerAgent, QuickAgent) as scheduler:
        scheduler.trigger("slow", "webhook")
        scheduler.trigger("slower", "webhook")
        await seen(lambda: SlowAgent.runs == ["slow"])
        (result,) = await scheduler.run_once("quick")
        assert (result.outcome, result.trigger) == (RunOutcome.SUCCEEDED, "manual")
        assert SlowAgent.runs == ["slow", "quick"]


async def test_three_hundred_agents_start_within_their_time_and_are_all_run(tmp_path: Path) -> None:
    crowd = [type(f"Crowd{n}", (QuickAgent,), {"name": f"crowd-{n}", "every": "1d"}) for n in range(300)]
    settings = settings_of(tmp_path, max_concurrent_runs=8)
    async with scheduler_of(settings, *crowd) as scheduler:
        stats = scheduler.get_stats()["agents"]
        due = [datetime.fromisoformat(agent["next_run"]) for agent in stats.values()]
        assert max(due) - min(due) > timedelta(seconds=30)
        assert opened(scheduler).agent_names == tuple(stats)


@pytest.mark.parametrize("state", list(AgentState))
async def test_a_state_that_is_told_holds_or_releases(tmp_path: Path, state: AgentState) -> None:
    from daemon.events import AgentStateChanged

    async with scheduler_of(settings_of(tmp_path), QuickAgent) as scheduler:
        status = AgentStatus(agent="quick", state=state)
        scheduler.events.publish(AgentStateChanged(status=status, before=AgentState.ACTIVE))
        assert (scheduler.next_run("quick") is None) == (state is not AgentState.ACTIVE)
