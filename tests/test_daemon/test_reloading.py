"""A new configuration: whole or not at all, with runs under way ending by the old one."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import SecretStr

from agents.base import BaseAgent
from agents.proposal import Proposal
from daemon import AgentScheduler
from daemon.errors import DaemonError, SettingsError
from daemon.runtime import Runtime
from daemon.settings import DaemonSettings, Settings
from daemon.settings.model import LLMSettings, MetricsSettings, WebSettings
from llm import LLMConfig
from tests.support.waiting import seen

MOCK = LLMConfig(backend="mock", enable_cache=False)


class EagerAgent(BaseAgent):
    """Says which model it was handed, and lasts until a test lets it end."""

    every = "1h"
    begun: ClassVar[list[Any]] = []
    go: ClassVar[asyncio.Event]

    async def analyze(self) -> list[Proposal]:
        self.begun.append(self.context.llm)
        await self.go.wait()
        await self.use_llm("Are you still there?")
        return []


class CalmAgent(EagerAgent):
    """A second one."""

    async def analyze(self) -> list[Proposal]:
        return []


@pytest.fixture(autouse=True)
def fresh() -> None:
    EagerAgent.begun.clear()
    EagerAgent.go = asyncio.Event()


def settings_of(
    folder: Path,
    agents: dict[str, dict[str, Any]] | None = None,
    *,
    web: int = 8484,
    series: int = 200,
    **daemon: Any,
) -> Settings:
    daemon = {"data_dir": folder / "data", "stop_grace": timedelta(seconds=0.2), **daemon}
    return Settings(
        daemon=DaemonSettings(**daemon),
        llm=LLMSettings(backend="mock", enable_cache=False),
        web=WebSettings(port=web),
        metrics=MetricsSettings(max_series=series),
        agents=agents or {},
    )


def scheduler_of(settings: Settings, *agents: type[BaseAgent]) -> AgentScheduler:
    return AgentScheduler(None, agents or None, settings)


def opened(scheduler: AgentScheduler) -> Runtime:
    assert scheduler.runtime is not None
    return scheduler.runtime


PLUGIN = """
from agents.base import BaseAgent

class {name}(BaseAgent):
    "A user's own."
    name = "{agent}"
    every = "1h"
    async def analyze(self):
        return []
"""


def plugin(settings: Settings, agent: str) -> None:
    folder = settings.daemon.plugin_dir
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    (folder / f"{agent}.py").write_text(PLUGIN.format(name=agent.title(), agent=agent))


async def test_what_is_different_is_told_in_sentences(tmp_path: Path) -> None:
    old = settings_of(tmp_path, {"calm": {"every": "1h"}})
    async with scheduler_of(old, CalmAgent) as scheduler:
        before = scheduler.next_due("calm")
        new = settings_of(tmp_path, {"calm": {"every": "2h"}}, max_concurrent_runs=5)
        told = await scheduler.reload(new)
        assert sorted(told) == ["agents.calm.every: 1h -> 2h", "daemon.max_concurrent_runs: 2 -> 5"]
        assert opened(scheduler).settings is new
        assert scheduler.next_due("calm") != before or before is None
        assert await scheduler.reload(new) == ()
        assert scheduler.running


async def test_a_schedule_keeps_its_last_due_time(tmp_path: Path) -> None:
    async with scheduler_of(settings_of(tmp_path, {"calm": {"every": "1h"}}), CalmAgent) as scheduler:
        await seen(lambda: scheduler.get_stats()["runs"]["succeeded"] == 1)
        (ran,) = await opened(scheduler).due_times.list()
        await scheduler.reload(settings_of(tmp_path, {"calm": {"every": "3h"}}))
        assert scheduler.next_due("calm") == ran.due + timedelta(hours=3)
        await scheduler.reload(settings_of(tmp_path, {"calm": {"every": "2h"}}))
        assert scheduler.next_due("calm") == ran.due + timedelta(hours=2)


async def test_agents_come_and_go(tmp_path: Path) -> None:
    one = settings_of(tmp_path, {"ants": {}, "bees": {}})
    for name in ("ants", "bees", "cats"):
        await asyncio.to_thread(plugin, one, name)
    async with scheduler_of(one) as scheduler:
        assert opened(scheduler).agent_names == ("ants", "bees")
        due = scheduler.next_due("bees")
        told = await scheduler.reload(settings_of(tmp_path, {"bees": {}, "cats": {"every": "2h"}}))
        assert told == ("agents.cats: added", "agents.ants: removed")
        assert opened(scheduler).agent_names == ("bees", "cats")
        assert scheduler.next_due("bees") == due
        assert scheduler.next_due("ants") is None
        new = scheduler.next_run("cats")
        assert new is not None
        assert new - datetime.now(UTC) <= timedelta(seconds=2)
        assert set(scheduler.get_stats()["agents"]) == {"bees", "cats"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"agents": {"calm": {"every": "sometimes"}}}, "agents.calm.every"),
        ({"agents": {"calm": {"catch_up": "perhaps"}, "eager": {"timeout": 0}}}, "agents.calm.catch_up"),
        ({"agents": {"calm": {"colour": "red"}}}, "agents.calm.colour"),
        ({"web": 8485}, "8484 -> 8485 needs a restart"),
        ({"series": 500}, "200 -> 500 needs a restart"),
        ({"data_dir": Path("/nowhere")}, "/nowhere needs a restart"),
    ],
    ids=["schedule", "two", "unknown", "web", "series", "data"],
)
async def test_a_configuration_that_cannot_work_changes_nothing(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    old = settings_of(tmp_path, {"calm": {}, "eager": {}}, max_concurrent_runs=3)
    async with scheduler_of(old, CalmAgent, EagerAgent) as scheduler:
        runtime, due = scheduler.runtime, scheduler.next_due("calm")
        with pytest.raises(SettingsError) as refused:
            await scheduler.reload(settings_of(tmp_path, **{"max_concurrent_runs": 9, **change}))
        assert words in str(refused.value)
        assert scheduler.runtime is runtime
        assert scheduler.next_due("calm") in (due, due and due + timedelta(hours=1))
        assert scheduler.running
        (result,) = await scheduler.run_once("calm")
        assert result.error is None


async def test_every_problem_is_named_at_once(tmp_path: Path) -> None:
    async with scheduler_of(settings_of(tmp_path), CalmAgent, EagerAgent) as scheduler:
        wrong = settings_of(tmp_path, {"calm": {"catch_up": "perhaps"}, "eager": {"timeout": 0}})
        with pytest.raises(SettingsError) as refused:
            await scheduler.reload(wrong)
        assert [problem.key for problem in refused.value.problems] == [
            "agents.calm.catch_up",
            "agents.eager.timeout",
        ]


async def test_an_agent_that_there_is_not_is_refused(tmp_path: Path) -> None:
    async with scheduler_of(settings_of(tmp_path)) as scheduler:
        with pytest.raises(SettingsError, match="there is no agent 'ghost'"):
            await scheduler.reload(settings_of(tmp_path, {"ghost": {}}))


async def test_a_run_under_way_ends_with_the_old_model_which_is_closed_after_it(tmp_path: Path) -> None:
    async with scheduler_of(settings_of(tmp_path), EagerAgent) as scheduler:
        await seen(lambda: len(EagerAgent.begun) == 1)
        old = opened(scheduler)
        new = settings_of(tmp_path)
        new = new.model_copy(update={"llm": new.llm.model_copy(update={"max_tokens": 99})})
        told = await scheduler.reload(new)
        assert told == ("llm.max_tokens: 512 -> 99",)
        assert opened(scheduler).llm is not old.llm
        assert old.llm is not None
        assert not old.llm._closed
        EagerAgent.go.set()
        await seen(lambda: scheduler.get_stats()["runs"]["succeeded"] == 1)
        await seen(lambda: old.llm is not None and old.llm._closed)
        (result,) = await scheduler.run_once("eager")
        assert result.error is None
        assert EagerAgent.begun == [old.llm, opened(scheduler).llm]
        last = opened(scheduler).llm
    assert last is not None
    assert last._closed


async def test_a_model_whose_settings_are_the_same_stays_open(tmp_path: Path) -> None:
    async with scheduler_of(settings_of(tmp_path), CalmAgent) as scheduler:
        before = opened(scheduler).llm
        await scheduler.reload(settings_of(tmp_path, max_concurrent_runs=7))
        assert opened(scheduler).llm is before
        assert before is not None
        await asyncio.sleep(0.05)
        assert not before._closed
        (result,) = await scheduler.run_once("calm")
        assert result.error is None


async def test_a_secret_is_told_to_be_different_and_not_shown(tmp_path: Path) -> None:
    def with_key(key: str, url: str) -> Settings:
        settings = settings_of(tmp_path, {"calm": {"ping_url": url}})
        return settings.model_copy(
            update={"llm": settings.llm.model_copy(update={"api_key": SecretStr(key)})}
        )

    async with scheduler_of(with_key("first-canary", "https://ping.test/one-canary"), CalmAgent) as scheduler:
        told = await scheduler.reload(with_key("second-canary", "https://ping.test/two-canary"))
        assert sorted(told) == ["agents.calm.ping_url: changed (hidden)", "llm.api_key: changed (hidden)"]


async def test_nothing_is_reloaded_that_was_not_started(tmp_path: Path) -> None:
    scheduler = scheduler_of(settings_of(tmp_path), CalmAgent)
    with pytest.raises(DaemonError, match="not started"):
        await scheduler.reload(settings_of(tmp_path))


async def test_a_stop_right_after_a_reload_leaves_nothing_behind(tmp_path: Path) -> None:
    scheduler = scheduler_of(settings_of(tmp_path), EagerAgent)
    await scheduler.start()
    await seen(lambda: len(EagerAgent.begun) == 1)
    old = opened(scheduler)
    new = settings_of(tmp_path)
    new = new.model_copy(update={"llm": new.llm.model_copy(update={"max_tokens": 99})})
    await scheduler.reload(new)
    await scheduler.stop()
    assert old.llm is not None
    assert old.llm._closed
    assert scheduler.get_stats()["runs"]["cancelled"] == 1


async def test_a_new_limit_holds_for_the_next_run(tmp_path: Path) -> None:
    async with scheduler_of(settings_of(tmp_path, max_concurrent_runs=1), EagerAgent, CalmAgent) as scheduler:
        await seen(lambda: len(EagerAgent.begun) == 1)
        scheduler.trigger("calm", "webhook")
        await asyncio.sleep(0.05)
        assert "daemon.max_concurrent_runs" in "".join(scheduler.holds("calm"))
        await scheduler.reload(settings_of(tmp_path, max_concurrent_runs=2))
        await seen(lambda: scheduler.get_stats()["runs"]["succeeded"] >= 1)
        EagerAgent.go.set()
