"""AgentScheduler: agents run once or when they are due, whatever happens to the clock."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest

from agents.base import BaseAgent
from agents.errors import AgentNotFound
from agents.proposal import Proposal, ProposalStatus
from daemon import AgentScheduler
from daemon.deadlines import AT_LEAST_EVERY
from daemon.errors import DaemonError, StoreError
from daemon.events import Fate, ProposalChanged, RunFinished, RunOutcome
from daemon.runtime import DATABASE, open_runtime
from daemon.settings import DaemonSettings, Settings
from llm import LLMConfig, RateLimited
from tests.support.waiting import seen

MOCK = LLMConfig(backend="mock", enable_cache=False)


class CountingAgent(BaseAgent):
    """Proposes the same thing each time and counts."""

    every = "1s"
    runs: ClassVar[list[datetime]] = []

    async def analyze(self) -> list[Proposal]:
        self.runs.append(datetime.now(UTC))
        answer = await self.use_llm("Count")
        return [
            self.propose("count", "Count", explanation=answer.content, payload={}, fingerprint="the same")
        ]


class FailingAgent(BaseAgent):
    """Fails."""

    async def analyze(self) -> list[Proposal]:
        raise ValueError("no data today")


class WaitingAgent(BaseAgent):
    """Waits until a test lets it go, or for ever."""

    every = "1s"
    begun: ClassVar[asyncio.Event]
    go: ClassVar[asyncio.Event]
    running: ClassVar[int] = 0
    most: ClassVar[int] = 0

    async def analyze(self) -> list[Proposal]:
        cls = type(self)
        cls.running += 1
        WaitingAgent.most = max(WaitingAgent.most, sum(c.running for c in (WaitingAgent, OtherWaitingAgent)))
        try:
            cls.begun.set()
            await cls.go.wait()
        finally:
            cls.running -= 1
        return []


class OtherWaitingAgent(WaitingAgent):
    """A second one."""

    running: ClassVar[int] = 0


class StubbornAgent(BaseAgent):
    """Ignores being cancelled until a test has seen it."""

    every = "1s"
    begun: ClassVar[asyncio.Event]
    go: ClassVar[asyncio.Event]

    async def analyze(self) -> list[Proposal]:
        self.begun.set()
        while not self.go.is_set():
            try:
                await self.go.wait()
            except asyncio.CancelledError:
                continue
        return []


@pytest.fixture(autouse=True)
def fresh_agents() -> None:
    CountingAgent.runs.clear()
    WaitingAgent.most = 0
    for cls in (WaitingAgent, OtherWaitingAgent, StubbornAgent):
        cls.begun, cls.go = asyncio.Event(), asyncio.Event()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(daemon=DaemonSettings(data_dir=tmp_path / "data", stop_grace=timedelta(seconds=0.2)))


@pytest.fixture
def one_at_a_time(settings: Settings) -> Settings:
    daemon = settings.daemon.model_copy(update={"max_concurrent_runs": 1})
    return settings.model_copy(update={"daemon": daemon})


@pytest.fixture
def patient(settings: Settings) -> Settings:
    daemon = settings.daemon.model_copy(update={"stop_grace": timedelta(hours=1)})
    return settings.model_copy(update={"daemon": daemon})


def scheduler_of(settings: Settings, *agents: str | type[BaseAgent]) -> AgentScheduler:
    return AgentScheduler(llm_config=MOCK, agents=agents or None, settings=settings)


# run_once


async def test_each_agent_runs_once_and_tells_how_it_ended(settings: Settings) -> None:
    scheduler = scheduler_of(settings, CountingAgent, FailingAgent)
    counting, failing = await scheduler.run_once()
    assert (counting.agent, counting.outcome, counting.trigger) == ("counting", RunOutcome.SUCCEEDED, "once")
    assert [p.title for p in counting.proposals] == ["Count"]
    assert (failing.agent, failing.outcome) == ("failing", RunOutcome.FAILED)
    assert "no data today" in str(failing.error)
    assert scheduler.runtime is None
    assert scheduler.selection is not None
    assert scheduler.selection.config == MOCK


async def test_what_ran_is_kept_and_counted(settings: Settings) -> None:
    scheduler = scheduler_of(settings, CountingAgent, FailingAgent)
    await scheduler.run_once()
    (second, _) = await scheduler.run_once()
    assert (len(second.proposals), second.duplicates) == (0, 1)
    stats = scheduler.get_stats()
    assert stats["runs"] == {"succeeded": 2, "failed": 2, "timed_out": 0, "cancelled": 0, "interrupted": 0}
    assert stats["proposals"] == {"pending": 1}
    assert stats["llm"]["backend"] == "mock"
    assert stats["running"] is False
    async with open_runtime(settings, llm_config=MOCK) as runtime:
        assert len(await runtime.runs.list()) == 4


async def test_one_agent_can_be_run_by_name(settings: Settings) -> None:
    results = await scheduler_of(settings, CountingAgent, FailingAgent).run_once("failing")
    assert [result.agent for result in results] == ["failing"]


async def test_an_unknown_agent_is_refused_with_the_known_ones(settings: Settings) -> None:
    with pytest.raises(AgentNotFound, match="counting"):
        await scheduler_of(settings, CountingAgent).run_once("countign")


async def test_no_more_agents_run_at_the_same_time_than_the_settings_allow(one_at_a_time: Settings) -> None:
    scheduler = scheduler_of(one_at_a_time, WaitingAgent, OtherWaitingAgent)
    task = asyncio.create_task(scheduler.run_once())
    await seen(lambda: WaitingAgent.begun.is_set() or OtherWaitingAgent.begun.is_set())
    await asyncio.sleep(0.05)
    WaitingAgent.go.set()
    OtherWaitingAgent.go.set()
    assert len(await task) == 2
    assert WaitingAgent.most == 1


async def test_two_agents_run_at_the_same_time_by_default(settings: Settings) -> None:
    task = asyncio.create_task(scheduler_of(settings, WaitingAgent, OtherWaitingAgent).run_once())
    await seen(lambda: WaitingAgent.begun.is_set() and OtherWaitingAgent.begun.is_set())
    WaitingAgent.go.set()
    OtherWaitingAgent.go.set()
    await task
    assert WaitingAgent.most == 2


async def test_a_cancelled_run_once_leaves_recorded_runs_behind(settings: Settings) -> None:
    task = asyncio.create_task(scheduler_of(settings, WaitingAgent).run_once())
    await seen(WaitingAgent.begun.is_set)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert WaitingAgent.running == 0
    async with open_runtime(settings, llm_config=MOCK) as runtime:
        assert [run.outcome for run in await runtime.runs.list()] == [RunOutcome.CANCELLED]


async def test_without_settings_those_of_the_usual_places_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "askfirst.toml").write_text('[daemon]\ndata_dir = "../mine"\n')
    monkeypatch.chdir(tmp_path)
    (result,) = await AgentScheduler(MOCK, [CountingAgent]).run_once()
    assert result.outcome is RunOutcome.SUCCEEDED
    assert (tmp_path / "mine" / DATABASE).exists()


async def test_a_database_that_breaks_is_raised_and_not_taken_for_a_result(settings: Settings) -> None:
    class BreakingAgent(BaseAgent):
        """Damages the database while it runs."""

        async def analyze(self) -> list[Proposal]:
            await asyncio.to_thread(self.damage)
            return []

        @staticmethod
        def damage() -> None:
            with closing(sqlite3.connect(settings.daemon.data_dir / DATABASE)) as connection:
                connection.execute("alter table runs rename to away")

    with pytest.raises(StoreError):
        await scheduler_of(settings, BreakingAgent, FailingAgent).run_once("breaking")


def test_one_scheduler_serves_one_event_loop_after_another(settings: Settings) -> None:
    scheduler = scheduler_of(settings, CountingAgent, FailingAgent)
    for _ in range(2):
        assert len(asyncio.run(scheduler.run_once())) == 2


# start and stop


async def test_a_started_scheduler_runs_agents_when_they_are_due(settings: Settings) -> None:
    scheduler = scheduler_of(settings, CountingAgent)
    results: list[Any] = []
    scheduler.events.subscribe(
        lambda event: results.append(event) if isinstance(event, RunFinished) else None
    )
    async with scheduler:
        assert scheduler.running
        await seen(lambda: len(results) >= 3)
        stats = scheduler.get_stats()
    assert {event.result.trigger for event in results} == {"schedule"}
    starts = [event.result.started_at for event in results[:3]]
    assert starts[2] - starts[0] > timedelta(seconds=0.5)
    agent = stats["agents"]["counting"]
    assert agent["last_run"]["outcome"] == "succeeded"
    assert datetime.fromisoformat(agent["next_run"]) > starts[2]
    assert scheduler.get_stats()["running"] is False
    assert scheduler.runtime is None


async def test_an_agent_whose_model_asks_to_wait_is_left_alone_until_a_run_by_hand_succeeds(
    settings: Settings,
) -> None:
    class ThrottledAgent(BaseAgent):
        """Its model asks to wait until the test says otherwise."""

        every = "1s"
        waits: ClassVar[list[float]] = [86400.0]
        runs: ClassVar[int] = 0

        async def analyze(self) -> list[Proposal]:
            type(self).runs += 1
            if self.waits:
                msg = "too many requests"
                raise RateLimited(msg, retry_after=self.waits[0])
            return []

    def due() -> timedelta:
        moment = scheduler.get_stats()["agents"]["throttled"]["next_run"]
        return datetime.fromisoformat(moment) - datetime.now(UTC)

    scheduler = scheduler_of(settings, ThrottledAgent, CountingAgent)
    async with scheduler:
        await seen(lambda: due() > timedelta(hours=23))
        runs = len(CountingAgent.runs)
        await seen(lambda: len(CountingAgent.runs) >= runs + 2)  # the others go on
        assert ThrottledAgent.runs == 1
        held = scheduler.get_stats()["agents"]["throttled"]["held_until"]
        assert datetime.fromisoformat(held) > datetime.now(UTC) + timedelta(hours=23)
        ThrottledAgent.waits.clear()
        (result,) = await scheduler.run_once("throttled")
        assert result.outcome is RunOutcome.SUCCEEDED
        assert due() <= timedelta(seconds=1)
        assert scheduler.get_stats()["agents"]["throttled"]["held_until"] is None
        await seen(lambda: ThrottledAgent.runs >= 3)


async def test_an_agent_that_fails_is_run_again_and_disturbs_no_other(settings: Settings) -> None:
    class OftenFailingAgent(FailingAgent):
        """Fails each second."""

        every = "1s"

    settings = settings.model_copy(update={"agents": {"often_failing": {"backoff": []}, "counting": {}}})
    scheduler = scheduler_of(settings, OftenFailingAgent, CountingAgent)
    async with scheduler:
        await seen(lambda: scheduler.get_stats()["runs"]["failed"] >= 2 and len(CountingAgent.runs) >= 2)


async def test_an_agent_that_is_still_running_is_not_started_again(settings: Settings) -> None:
    scheduler = scheduler_of(settings, WaitingAgent)
    async with scheduler:
        await seen(WaitingAgent.begun.is_set)
        began = scheduler.running_since("waiting")
        await asyncio.sleep(2.2)
        assert WaitingAgent.running == 1
        assert scheduler.running_since("waiting") == began
        assert scheduler.get_stats()["agents"]["waiting"]["running"] is True
        WaitingAgent.go.set()
        await seen(lambda: scheduler.get_stats()["runs"]["succeeded"] >= 2)
        runtime = scheduler.runtime
        assert runtime is not None
        skipped = [each for each in await runtime.due_times.list() if each.fate is Fate.SKIPPED]
    assert [each.reason for each in skipped] == ["its run before was still under way"]
    assert skipped[0].count >= 2


async def test_run_once_of_a_started_scheduler_uses_what_is_open(settings: Settings) -> None:
    class RareAgent(CountingAgent):
        """Is not due by itself."""

        every = "300d"

    async with scheduler_of(settings, RareAgent) as scheduler:
        runtime = scheduler.runtime
        (result,) = await scheduler.run_once("rare")
        assert result.trigger in ("manual", "schedule")
        assert scheduler.runtime is runtime


async def test_a_scheduler_cannot_be_started_twice_but_again_after_a_stop(settings: Settings) -> None:
    scheduler = scheduler_of(settings, CountingAgent)
    await scheduler.start()
    with pytest.raises(RuntimeError, match="stop"):
        await scheduler.start()
    await scheduler.stop()
    await scheduler.stop()
    await scheduler.start()
    assert scheduler.running
    await scheduler.stop()


async def test_stopping_gives_a_run_its_grace(settings: Settings) -> None:
    scheduler = scheduler_of(settings, WaitingAgent)
    await scheduler.start()
    await seen(WaitingAgent.begun.is_set)
    asyncio.get_running_loop().call_later(0.05, WaitingAgent.go.set)
    await scheduler.stop()
    assert scheduler.get_stats()["runs"]["succeeded"] == 1


async def test_a_run_that_outlasts_the_grace_is_cancelled_and_recorded(settings: Settings) -> None:
    scheduler = scheduler_of(settings, WaitingAgent)
    await scheduler.start()
    await seen(WaitingAgent.begun.is_set)
    await scheduler.stop()
    assert scheduler.get_stats()["runs"]["cancelled"] == 1
    assert WaitingAgent.running == 0
    async with open_runtime(settings, llm_config=MOCK) as runtime:
        assert [run.outcome for run in await runtime.runs.list()] == [RunOutcome.CANCELLED]


async def test_hurrying_cuts_the_grace_short(patient: Settings) -> None:
    scheduler = scheduler_of(patient, WaitingAgent)
    await scheduler.start()
    await seen(WaitingAgent.begun.is_set)
    stop = asyncio.create_task(scheduler.stop())
    await asyncio.sleep(0.05)
    assert not stop.done()
    scheduler.hurry()
    async with asyncio.timeout(30):
        await stop


async def test_a_run_that_ignores_being_cancelled_is_left_behind_within_a_limit(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    scheduler = scheduler_of(settings, StubbornAgent)
    await scheduler.start()
    await seen(StubbornAgent.begun.is_set)
    began = time.monotonic()
    await scheduler.stop()
    assert time.monotonic() - began < 20
    assert "ignore" in caplog.text
    StubbornAgent.go.set()
    await asyncio.sleep(0.05)


async def test_nothing_begins_after_the_scheduler_was_told_to_hold(settings: Settings) -> None:
    async with scheduler_of(settings, CountingAgent) as scheduler:
        scheduler.hold()
        before = len(CountingAgent.runs)
        await asyncio.sleep(1.3)
        assert len(CountingAgent.runs) == before
        assert not scheduler.running


async def test_stopping_ends_a_run_once_that_waits_with_an_error_of_ours(one_at_a_time: Settings) -> None:
    scheduler = scheduler_of(one_at_a_time, WaitingAgent, OtherWaitingAgent)
    await scheduler.start()
    task = asyncio.create_task(scheduler.run_once())
    await seen(lambda: WaitingAgent.begun.is_set() or OtherWaitingAgent.begun.is_set())
    await scheduler.stop()
    with pytest.raises(DaemonError, match="stopped when 0 of 2 agents had run"):
        await task


async def test_stopping_logs_no_error(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(5):
        async with scheduler_of(settings, CountingAgent, WaitingAgent):
            pass
    assert [record.message for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_an_agent_whose_settings_cannot_work_does_not_stop_the_others(settings: Settings) -> None:
    settings = settings.model_copy(update={"agents": {"counting": {}, "failing": {"every": "sometimes"}}})
    async with scheduler_of(settings, FailingAgent, CountingAgent) as scheduler:
        stats = scheduler.get_stats()["agents"]
        assert "every" in stats["failing"]["problem"]
        assert stats["failing"]["next_run"] is None
        assert stats["counting"]["next_run"] is not None


# after a crash


class SlowlyApplyingAgent(CountingAgent):
    """Applies when a test lets it."""

    every = "300d"
    begun: ClassVar[asyncio.Event]
    go: ClassVar[asyncio.Event]

    async def apply(self, proposal: Proposal) -> None:
        self.begun.set()
        await self.go.wait()


async def cut_off_while_applying(settings: Settings) -> int:
    """Leave a proposal in the middle of its apply, as a crash does."""
    SlowlyApplyingAgent.begun, SlowlyApplyingAgent.go = asyncio.Event(), asyncio.Event()
    async with open_runtime(settings, llm_config=MOCK, agents=[SlowlyApplyingAgent]) as runtime:
        (made,) = (await runtime.runner.run("slowly_applying")).proposals
        number = int(made.id or 0)
        approval = asyncio.create_task(runtime.desk.approve(number, by="ana", via="cli"))
        await seen(SlowlyApplyingAgent.begun.is_set)
    await asyncio.gather(approval, return_exceptions=True)
    return number


async def status_of(settings: Settings, number: int) -> ProposalStatus:
    async with open_runtime(settings, with_llm=False) as runtime:
        return (await runtime.proposals.get(number)).status


async def test_what_a_crash_left_half_way_is_finished_at_the_start(settings: Settings) -> None:
    number = await cut_off_while_applying(settings)
    assert await status_of(settings, number) is ProposalStatus.APPLYING
    SlowlyApplyingAgent.go.set()
    async with scheduler_of(settings, SlowlyApplyingAgent):
        assert await status_of(settings, number) is ProposalStatus.APPLIED


async def test_what_a_crash_left_half_way_is_finished_by_a_single_run_too(settings: Settings) -> None:
    number = await cut_off_while_applying(settings)
    SlowlyApplyingAgent.go.set()
    await scheduler_of(settings, SlowlyApplyingAgent).run_once()
    assert await status_of(settings, number) is ProposalStatus.APPLIED


async def test_an_apply_that_takes_long_does_not_hold_up_the_start(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    number = await cut_off_while_applying(settings)
    async with scheduler_of(settings, SlowlyApplyingAgent) as scheduler:
        assert scheduler.running
        assert "still being finished" in caplog.text
        SlowlyApplyingAgent.go.set()
        await seen(lambda: scheduler.get_stats()["proposals"] == {"applied": 1})
    assert await status_of(settings, number) is ProposalStatus.APPLIED


async def test_a_stop_during_a_long_recovery_leaves_it_to_the_next_start(settings: Settings) -> None:
    number = await cut_off_while_applying(settings)
    async with scheduler_of(settings, SlowlyApplyingAgent):
        pass
    assert await status_of(settings, number) is ProposalStatus.APPLYING


# due times


async def next_run(settings: Settings, agent: type[BaseAgent]) -> datetime:
    async with scheduler_of(settings, agent) as scheduler:
        return datetime.fromisoformat(scheduler.get_stats()["agents"][agent.name]["next_run"])


class DailyAgent(CountingAgent):
    """Once a day."""

    every = "1d"


async def test_the_first_run_of_a_new_agent_comes_soon(settings: Settings) -> None:
    assert await next_run(settings, DailyAgent) - datetime.now(UTC) < timedelta(seconds=5)


async def test_a_restart_does_not_restart_the_count(settings: Settings) -> None:
    (ran,) = await scheduler_of(settings, DailyAgent).run_once()
    for _ in range(2):
        assert await next_run(settings, DailyAgent) == ran.started_at + timedelta(days=1)
    assert len(DailyAgent.runs) == 1


async def test_a_hundred_agents_do_not_all_start_at_once(settings: Settings) -> None:
    crowd = [type(f"Crowd{n}Agent", (DailyAgent,), {"name": f"crowd-{n}"}) for n in range(100)]
    async with scheduler_of(settings, *crowd) as scheduler:
        due = sorted(
            datetime.fromisoformat(agent["next_run"]) for agent in scheduler.get_stats()["agents"].values()
        )
        assert due[-1] - due[0] > timedelta(seconds=30)


# deadlines of proposals


class ShortAgent(BaseAgent):
    """Proposes something that soon expires."""

    every = "1d"
    lives: ClassVar[timedelta] = timedelta(seconds=0.5)

    async def analyze(self) -> list[Proposal]:
        until = datetime.now(UTC) + self.lives
        return [
            self.propose(
                "short", "Soon over", explanation="", payload={}, fingerprint="short", expires_at=until
            )
        ]


async def test_a_proposal_expires_by_a_timer_and_is_never_approved(settings: Settings) -> None:
    scheduler = scheduler_of(settings, ShortAgent)
    seen_statuses: list[ProposalStatus] = []
    scheduler.events.subscribe(
        lambda event: (
            seen_statuses.append(event.proposal.status) if isinstance(event, ProposalChanged) else None
        )
    )
    began = time.monotonic()
    async with scheduler:
        await seen(lambda: ProposalStatus.EXPIRED in seen_statuses)
        assert scheduler.get_stats()["proposals"] == {"expired": 1}
    assert seen_statuses == [ProposalStatus.PENDING, ProposalStatus.EXPIRED]
    assert (
        time.monotonic() - began < AT_LEAST_EVERY.total_seconds()
    )  # by its own timer, not by the next round


async def test_a_snoozed_proposal_wakes_by_a_timer(settings: Settings) -> None:
    scheduler = scheduler_of(settings, CountingAgent)
    ((made,),) = [result.proposals for result in await scheduler.run_once()]
    async with open_runtime(settings, llm_config=MOCK) as runtime:
        until = datetime.now(UTC) + timedelta(seconds=1)
        await runtime.desk.snooze(int(made.id or 0), until, by="ana", via="cli")
    assert scheduler.get_stats()["proposals"] == {"pending": 1}
    async with scheduler:
        await seen(lambda: scheduler.get_stats()["proposals"] == {"snoozed": 1})
        await seen(lambda: scheduler.get_stats()["proposals"] == {"pending": 1})
    assert datetime.now(UTC) >= until


async def test_what_another_program_decided_shows_in_the_stats(settings: Settings) -> None:
    scheduler = scheduler_of(settings, DailyAgent)
    ((made,),) = [result.proposals for result in await scheduler.run_once()]
    async with scheduler:
        async with open_runtime(settings, with_llm=False) as other:
            await other.desk.reject(int(made.id or 0), by="ana", via="cli")
        await scheduler._tend_deadlines()
        assert scheduler.get_stats()["proposals"] == {"rejected": 1}
