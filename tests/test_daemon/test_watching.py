"""Watching: each metric changes when what it tells of happens."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from itertools import chain, repeat
from pathlib import Path
from typing import Any, ClassVar

import pytest

from agents.base import BaseAgent
from agents.proposal import Proposal
from daemon import AgentScheduler
from daemon.app import Daemon
from daemon.clock import ClockWatch
from daemon.errors import ExitCode
from daemon.events import AgentState, DueTime, Fate, RunOutcome
from daemon.observability.metrics import Metrics
from daemon.runtime import open_runtime
from daemon.settings import DaemonSettings, LLMSettings, Settings, WebSettings
from daemon.watching import Watching
from llm import LLMConfig
from llm.events import BreakerOpened
from tests.support.prometheus import samples
from tests.support.stores import run_result
from tests.support.waiting import seen
from tests.support.workload import World, missing, watched

MOCK = LLMConfig(backend="mock", enable_cache=False)
HOUR = timedelta(hours=1)


class CalmAgent(BaseAgent):
    """Finds nothing."""

    every = "1h"

    async def analyze(self) -> list[Proposal]:
        return []


class FaultyAgent(CalmAgent):
    """Fails."""

    async def analyze(self) -> list[Proposal]:
        raise ValueError("no data today")


def keep(seconds: float) -> None:
    """Keep the event loop from all other work."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


class BlockingAgent(CalmAgent):
    """Keeps the whole program from its work for a moment, and then lasts until it may end."""

    go: ClassVar[asyncio.Event]

    async def analyze(self) -> list[Proposal]:
        keep(0.4)
        await self.go.wait()
        return []


class SecondAgent(BlockingAgent):
    """Another one."""


class ThirdAgent(BlockingAgent):
    """One more."""


class Seen:
    """A scheduler, and its metrics as a scrape shows them."""

    def __init__(self, settings: Settings, *agents: type[BaseAgent], llm: LLMConfig | None = MOCK) -> None:
        self.watching = Watching(Metrics(max_series=1000))
        observers = [self.watching.note_call]
        self.scheduler = AgentScheduler(llm, agents or None, settings, llm_observers=observers)
        self.watching.watch(self.scheduler)

    async def metrics(self) -> dict[str, float]:
        text, _ = await self.watching.metrics.scrape()
        return samples(text.decode())

    async def value(self, series: str, wanted: float) -> None:
        """Wait until a series has that value: what is read is some seconds old at most."""
        async with asyncio.timeout(60):
            while True:
                if (await self.metrics()).get(series) == wanted:
                    return
                await asyncio.sleep(0.05)


def settings_of(folder: Path, agents: dict[str, dict[str, Any]] | None = None, **daemon: Any) -> Settings:
    daemon = {"stop_grace": timedelta(seconds=0.2), **daemon}
    return Settings(
        daemon=DaemonSettings(data_dir=folder / "data", **daemon),
        llm=LLMSettings(backend="mock", enable_cache=False, budget="100 tokens/month"),
        agents=agents or {},
    )


# the real program


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with watched(tmp_path_factory.mktemp("watched")) as made:
        made.work()
        yield made


def value(found: dict[str, float], name: str, **labels: str) -> float:
    """The value of the one series with these labels."""
    wanted = [f'{label}="{text}"' for label, text in labels.items()]
    values = [
        number
        for series, number in found.items()
        if series.partition("{")[0] == name and all(each in series for each in wanted)
    ]
    assert len(values) == 1, (name, labels, values)
    return values[0]


@pytest.mark.process
def test_after_the_workload_every_metric_of_the_catalogue_tells_something(world: World) -> None:
    text = world.scrape()
    assert missing(text) == set()
    found = samples(text)
    model = {"backend": "small", "model": "small"}
    expected: list[tuple[float, str, dict[str, str]]] = [
        (2, "askfirst_llm_escalations_total", {"backend": "small"}),
        (2, "askfirst_llm_fallbacks_total", {"backend": "small"}),
        (2, "askfirst_llm_budget_refusals_total", {"backend": "dear"}),
        (0, "askfirst_llm_breaker_open", {"backend": "small"}),
        (2, "askfirst_llm_errors_total", {"backend": "small", "code": "bad_request"}),
        (9 * 40, "askfirst_llm_prompt_tokens_total", model),
        (7 * 16, "askfirst_llm_cached_prompt_tokens_total", model),
        (7 * 5, "askfirst_llm_completion_tokens_total", model),
        (0.01, "askfirst_llm_budget_used", {"budget": "backend big: 5 usd/month"}),
        (4.99, "askfirst_llm_budget_left", {"budget": "backend big: 5 usd/month"}),
        (0.01, "askfirst_llm_cost_usd_total", {"backend": "big"}),
        (1, "gen_ai_client_operation_time_to_first_chunk_seconds_count", {"gen_ai_request_model": "small"}),
        (2, "askfirst_agent_runs_total", {"agent": "porter", "outcome": "succeeded"}),
        (1, "askfirst_agent_runs_total", {"agent": "locked", "outcome": "failed"}),
        (2, "askfirst_agent_run_lateness_seconds_count", {}),
        (4, "askfirst_agent_run_duration_seconds_count", {}),
        (0, "askfirst_agent_missed_total", {"agent": "porter"}),
        (0, "askfirst_agent_quarantined", {"agent": "locked"}),
        (1, "askfirst_proposals", {"agent": "porter", "status": "undone"}),
        (1, "askfirst_proposals", {"agent": "porter", "status": "apply_failed"}),
        (2, "askfirst_proposals", {"agent": "garden", "status": "pending"}),
        (0, "askfirst_proposals_late", {}),
        (4, "askfirst_proposal_decision_duration_seconds_count", {}),
        (3, "askfirst_proposal_decisions_total", {"action": "approve"}),
        (1, "askfirst_proposal_decisions_total", {"action": "edit"}),
        (1, "askfirst_proposal_decisions_total", {"action": "reject"}),
        (1, "askfirst_proposal_decisions_total", {"action": "snooze"}),
        (1, "askfirst_proposal_decisions_total", {"action": "undo"}),
        (1, "askfirst_proposal_apply_failures_total", {}),
        (0, "askfirst_storage_full", {}),
        (0, "askfirst_clock_steps_total", {}),
        (0, "askfirst_queue_length", {"queue": "runs"}),
    ]
    for number, name, labels in expected:
        assert value(found, name, **labels) == pytest.approx(number), (name, labels)
    assert value(found, "askfirst_llm_retries_total", backend="small") >= 2
    assert value(found, "askfirst_llm_coalesced_total", backend="small") >= 1
    assert value(found, "askfirst_llm_cache_hits_total", **model) >= 9
    assert value(found, "askfirst_llm_cache_misses_total", **model) >= 10
    assert value(found, "askfirst_proposal_oldest_pending_age_seconds") > 0
    assert value(found, "askfirst_database_size_bytes") > 100_000
    assert value(found, "askfirst_disk_size_bytes") > value(found, "askfirst_disk_free_bytes") > 0
    assert value(found, "askfirst_agent_next_run_timestamp_seconds", agent="porter") > time.time() + 3000
    assert 0 <= value(found, "askfirst_agent_intervals_since_success", agent="porter") < 0.5
    assert value(found, "askfirst_llm_cache_entries") > 0
    assert "run_id" in world.scrape("application/openmetrics-text")


@pytest.mark.process
def test_another_configuration_is_followed(world: World) -> None:
    file = world.program.folder / "config" / "askfirst.toml"
    before = file.read_text(encoding="utf-8")
    without = before.replace("[agents.locked]", "[agents.locked]\nenabled = false")
    file.write_text(without.replace("100000 tokens/day", "200000 tokens/day"), encoding="utf-8")
    world.command("reload")
    found = samples(world.scrape())
    assert value(found, "askfirst_agent_runs_total", agent="porter", outcome="succeeded") == 2
    assert not [series for series in found if 'agent="locked"' in series]
    assert value(found, "askfirst_llm_budget_used", budget="200000 tokens/day") > 400
    assert not [series for series in found if "100000 tokens/day" in series]
    file.write_text(before, encoding="utf-8")
    world.command("reload")
    found = samples(world.scrape())
    assert value(found, "askfirst_agent_runs_total", agent="locked", outcome="failed") == 0
    assert value(found, "askfirst_llm_budget_used", budget="100000 tokens/day") > 400


# what agents did, and did not do


async def left_behind(settings: Settings, agent: str, **ago: timedelta) -> datetime:
    """A success and a failure of an agent in the database, from before this start; returns now."""
    now = datetime.now(UTC)
    async with open_runtime(settings, llm_config=MOCK, with_llm=False) as runtime:
        async with runtime.db.write() as connection:
            for number, (name, span) in enumerate(ago.items()):
                outcome = RunOutcome.SUCCEEDED if name.startswith("good") else RunOutcome.FAILED
                times = {"started_at": now - span - timedelta(seconds=7), "finished_at": now - span}
                result = run_result(f"run{number}", agent=agent, outcome=outcome, **times)
                await runtime.runs.save(connection, result)
        due = now - min(ago.values())
        await runtime.due_times.settle([DueTime(agent=agent, due=due, last=due, fate=Fate.RUN)])
    return now


async def test_a_restart_does_not_make_an_agent_look_well(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    now = await left_behind(settings, "calm", good=5 * HOUR, bad=0.5 * HOUR)
    it = Seen(settings, CalmAgent)
    async with it.scheduler:
        found = await it.metrics()
    assert found['askfirst_agent_last_success_timestamp_seconds{agent="calm"}'] == pytest.approx(
        (now - 5 * HOUR).timestamp()
    )
    assert found['askfirst_agent_last_run_duration_seconds{agent="calm"}'] == pytest.approx(7)
    assert found['askfirst_agent_intervals_since_success{agent="calm"}'] == pytest.approx(5, abs=0.2)
    assert found['askfirst_agent_next_run_timestamp_seconds{agent="calm"}'] == pytest.approx(
        (now + 0.5 * HOUR).timestamp(), abs=5
    )


async def test_one_that_never_succeeded_is_counted_from_its_first_run(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    await left_behind(settings, "calm", bad_first=9 * HOUR, bad=0.5 * HOUR)
    it = Seen(settings, CalmAgent)
    async with it.scheduler:
        found = await it.metrics()
    assert found['askfirst_agent_intervals_since_success{agent="calm"}'] == pytest.approx(9, abs=0.2)
    assert 'askfirst_agent_last_success_timestamp_seconds{agent="calm"}' not in found


async def test_an_agent_that_only_events_bring_has_no_interval_and_no_next_run(tmp_path: Path) -> None:
    it = Seen(settings_of(tmp_path, {"calm": {"webhook": True, "every": None}}), CalmAgent)
    async with it.scheduler:
        found = await it.metrics()
    assert found['askfirst_agent_quarantined{agent="calm"}'] == 0
    assert 'askfirst_agent_intervals_since_success{agent="calm"}' not in found
    assert 'askfirst_agent_next_run_timestamp_seconds{agent="calm"}' not in found


async def test_due_times_that_were_missed_are_counted(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, {"calm": {"catch_up": "skip"}})
    await left_behind(settings, "calm", good=4.75 * HOUR)
    it = Seen(settings, CalmAgent)
    async with it.scheduler:
        await it.value('askfirst_agent_missed_total{agent="calm"}', 4)
    assert it.scheduler.get_stats()["runs"]["succeeded"] == 0


async def test_a_quarantined_agent_is_one_that_does_not_run_any_more(tmp_path: Path) -> None:
    it = Seen(settings_of(tmp_path, quarantine_after=1), FaultyAgent)
    name = 'askfirst_agent_quarantined{agent="faulty"}'
    async with it.scheduler:
        await it.value(name, 1)
        found = await it.metrics()
        assert 'askfirst_agent_next_run_timestamp_seconds{agent="faulty"}' not in found
        assert found['askfirst_agent_runs_total{agent="faulty",outcome="failed"}'] == 1
        runtime = it.scheduler.runtime
        assert runtime is not None
        status = await runtime.controls.resume("faulty", "ana")
        assert status.state is AgentState.ACTIVE
        assert (await it.metrics())[name] == 0  # told at once, not some seconds later


async def test_a_breaker_is_closed_until_it_opens_and_stays_so_over_a_new_schedule(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, {"calm": {}})
    it = Seen(settings, CalmAgent, llm=None)
    name = 'askfirst_llm_breaker_open{backend="mock"}'
    async with it.scheduler:
        assert (await it.metrics())[name] == 0
        it.watching.note_call(BreakerOpened(backend="mock", model="mock", failures=5, seconds=30))
        assert (await it.metrics())[name] == 1
        await it.scheduler.reload(settings.model_copy(update={"agents": {"calm": {"every": "2h"}}}))
        assert (await it.metrics())[name] == 1
        other = settings.llm.model_copy(update={"budget": "7 tokens/month"})
        await it.scheduler.reload(settings.model_copy(update={"llm": other}))
        it.watching.follow()
        found = await it.metrics()
    assert found[name] == 0  # another client, whose breaker has not opened
    assert found['askfirst_llm_budget_left{budget="7 tokens/month"}'] == 7
    assert 'askfirst_llm_budget_left{budget="100 tokens/month"}' not in found


# the program itself


async def test_how_the_program_is(tmp_path: Path) -> None:
    """One daemon: runs that wait, a loop that stands still, a clock that is set, a database that grows."""
    BlockingAgent.go = asyncio.Event()
    settings = Settings(
        daemon=DaemonSettings(
            data_dir=tmp_path / "data",
            max_concurrent_runs=1,
            stall_after=timedelta(seconds=0.1),
            stop_grace=timedelta(seconds=0.2),
        ),
        web=WebSettings(enabled=False),
    )
    daemon = Daemon(settings, llm_config=MOCK, agents=[BlockingAgent, SecondAgent, ThirdAgent])
    task = asyncio.create_task(daemon.run_until_stopped())

    async def metrics() -> dict[str, float]:
        text, _ = await daemon._metrics.scrape()
        return samples(text.decode())

    before = await metrics()  # also before anything is open
    assert before["askfirst_storage_full"] == 0
    assert "askfirst_disk_free_bytes" not in before
    await daemon.ready.wait()
    scheduler = daemon._scheduler
    await seen(lambda: scheduler.waiting == 2)
    stalls = daemon.stalls
    assert stalls is not None
    await seen(lambda: stalls.stalls > 0 and stalls.seconds > 0)
    found = await metrics()
    assert found['askfirst_queue_length{queue="runs"}'] == 2
    assert found['askfirst_queue_length{queue="log"}'] >= 0
    assert found["askfirst_loop_stalls_total"] == stalls.stalls
    assert found["askfirst_loop_stalled_seconds_total"] == stalls.seconds
    assert found["askfirst_loop_lag_seconds"] > 0.1  # as the stall watch measured
    writes = found["askfirst_database_writes_total"]

    timing = scheduler._timing
    assert timing is not None
    timing._clock = ClockWatch(chain((0.0,), repeat(5000.0)).__next__, lambda: 0.0, lambda: 0.0)
    timing.look()
    assert (await metrics())["askfirst_clock_steps_total"] == 1

    BlockingAgent.go.set()
    await seen(lambda: scheduler.get_stats()["runs"]["succeeded"] == 3)
    found = await metrics()
    assert found['askfirst_queue_length{queue="runs"}'] == 0
    assert found["askfirst_database_writes_total"] >= writes + 3
    daemon.lifecycle.ask_to_stop("test")
    assert await task is ExitCode.OK


async def test_a_scrape_sees_how_long_others_keep_the_loop(tmp_path: Path) -> None:
    watching = Watching(Metrics())
    settings = settings_of(tmp_path)
    scheduler = AgentScheduler(MOCK, [CalmAgent], settings)
    watching.watch(scheduler)

    async def hog() -> None:
        while True:
            keep(0.05)
            await asyncio.sleep(0)

    task = asyncio.create_task(hog())
    await watching.metrics.scrape()
    task.cancel()
    assert scheduler.lag.largest >= 0.05
