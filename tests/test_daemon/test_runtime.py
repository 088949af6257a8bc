"""What a process needs is opened in order, closed in reverse, and one that cannot be closed stops nothing."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from agents.base import BaseAgent
from agents.errors import AgentLoadError
from agents.proposal import Proposal, ProposalStatus
from daemon.errors import StoreError
from daemon.events import EventBus, ProposalChanged, RunBegun, RunFinished
from daemon.runtime import open_runtime
from llm import ConfigurationError, LLMConfig
from llm.events import CallEvent, CallFinished
from llm.middleware.base import Handler, Middleware
from llm.types import LLMRequest, LLMResponse
from tests.support.stores import ROOT, START, Clock, LedgerAgent, line, settings_for

MOCK = LLMConfig(backend="mock", enable_cache=False)


class Asking(LedgerAgent):
    """Asks the model once and proposes one line."""

    name = "asking"

    async def analyze(self) -> list[Proposal]:
        if self.context.llm is not None:
            await self.use_llm("Which?")
        return [line(agent="asking", expires_at=None)]


async def test_from_a_run_to_the_undo(tmp_path: Path) -> None:
    async with open_runtime(await settings_for(tmp_path), agents=[Asking], llm_config=MOCK) as runtime:
        assert runtime.agent_names == ("asking",)
        (proposal,) = (await runtime.runner.run("asking")).proposals
        done = await runtime.desk.approve(int(proposal.id or 0), "ana", "cli")
        assert done.status is ProposalStatus.APPLIED
        file = tmp_path / "data" / "agents" / "asking" / "ledger.txt"
        assert file.read_text() == "1 one\n"
        assert (await runtime.desk.undo(1, "ana", "cli")).status is ProposalStatus.UNDONE
        assert file.read_text() == ""
    async with open_runtime(await settings_for(tmp_path), agents=[Asking], with_llm=False) as runtime:
        assert (await runtime.proposals.get(1)).status is ProposalStatus.UNDONE


async def test_the_callers_model_is_used_and_observed(tmp_path: Path) -> None:
    seen: list[CallEvent] = []
    settings = await settings_for(tmp_path)
    async with open_runtime(
        settings, agents=[Asking], llm_config=MOCK, llm_observers=[seen.append]
    ) as runtime:
        assert runtime.selection.config is MOCK
        assert "mock" in runtime.selection.reason
        await runtime.runner.run("asking")
        llm = runtime.llm
    assert any(isinstance(event, CallFinished) for event in seen)
    assert llm is not None
    with pytest.raises(Exception, match="closed"):
        await llm.generate("Anybody there?")


async def test_without_a_model_agents_work_by_their_rules(tmp_path: Path) -> None:
    async with open_runtime(await settings_for(tmp_path), agents=[Asking], with_llm=False) as runtime:
        assert runtime.llm is None
        assert runtime.selection.config is None
        result = await runtime.runner.run("asking")
    assert (len(result.proposals), result.calls, result.backend) == (1, 0, None)


async def test_the_environment_chooses_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_BACKEND", "mock")
    async with open_runtime(await settings_for(tmp_path), agents=[Asking]) as runtime:
        assert runtime.llm is not None
        assert runtime.llm.backend == "mock"
        assert runtime.llm.config.cache_dir == str(tmp_path / "data" / "llm_cache")


async def test_model_settings_that_cannot_work_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_TIMEOUT", "soon")
    with pytest.raises(ConfigurationError, match="LLM_TIMEOUT"):
        async with open_runtime(await settings_for(tmp_path)):
            pass


async def test_the_enabled_agents_of_the_configuration_are_run_unless_others_are_named(
    tmp_path: Path,
) -> None:
    settings = await settings_for(tmp_path, b={}, a={"enabled": False}, c={"enabled": True})
    async with open_runtime(settings, with_llm=False) as runtime:
        assert runtime.agent_names == ("b", "c")
    async with open_runtime(settings, agents=["a", Asking, "a"], with_llm=False) as runtime:
        assert runtime.agent_names == ("a", "asking")
        assert runtime.registry.get("asking") is Asking


async def test_a_class_that_is_no_agent_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AgentLoadError):
        async with open_runtime(await settings_for(tmp_path), agents=[int]):  # type: ignore[list-item]
            pass


async def test_a_plugin_is_found_in_the_plugin_folder(tmp_path: Path) -> None:
    plugins = tmp_path / "data" / "plugins"
    plugins.mkdir(parents=True)
    (plugins / "mine.py").write_text(
        "from agents.base import BaseAgent\n\n\nclass Mine(BaseAgent):\n"
        "    async def analyze(self):\n        return []\n"
    )
    async with open_runtime(await settings_for(tmp_path, mine={}), with_llm=False) as runtime:
        assert (await runtime.runner.run("mine")).error is None


async def test_events_go_to_the_callers_bus(tmp_path: Path) -> None:
    events = EventBus()
    told: list[object] = []
    events.subscribe(told.append)
    async with open_runtime(
        await settings_for(tmp_path), agents=[Asking], with_llm=False, events=events
    ) as runtime:
        assert runtime.events is events
        await runtime.runner.run("asking")
    assert [type(event) for event in told] == [RunBegun, ProposalChanged, RunFinished]


async def test_the_clock_is_handed_to_everybody(tmp_path: Path) -> None:
    clock = Clock()
    async with open_runtime(
        await settings_for(tmp_path), agents=[Asking], with_llm=False, now=clock
    ) as runtime:
        result = await runtime.runner.run("asking")
    assert result.started_at == result.proposals[0].created_at == START


async def test_a_close_that_fails_does_not_keep_the_rest_open(tmp_path: Path) -> None:
    class Broken(Middleware):
        async def complete(self, request: LLMRequest, call_next: Handler) -> LLMResponse:
            return await call_next(request)

        async def aclose(self) -> None:
            raise ZeroDivisionError

    async def open_and_break() -> None:
        async with open_runtime(await settings_for(tmp_path), agents=[Asking], llm_config=MOCK) as runtime:
            assert runtime.llm is not None
            await runtime.runner.run("asking")
            runtime.llm._middleware = (Broken(),)

    with pytest.raises(ZeroDivisionError):
        await open_and_break()
    assert not (tmp_path / "data" / "askfirst.sqlite3-wal").exists()  # the database was closed all the same


async def test_decisions_under_way_are_waited_for_when_closing(tmp_path: Path) -> None:
    settings = await settings_for(tmp_path)

    class Waiting(LedgerAgent):
        async def analyze(self) -> list[Proposal]:
            return [line(agent="waiting", trouble="waits", expires_at=None)]

    async with open_runtime(settings, agents=[Waiting], with_llm=False) as runtime:
        await runtime.runner.run("waiting")
        asking = asyncio.create_task(runtime.desk.approve(1, "ana", "web"))
        while (await runtime.proposals.get(1)).status is not ProposalStatus.APPLYING:
            assert not asking.done()
        folder = tmp_path / "data" / "agents" / "waiting"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "go").touch()
    assert (await asking).status is ProposalStatus.APPLIED


async def test_a_database_that_cannot_be_opened_opens_nothing(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(StoreError):
        async with open_runtime(await settings_for(tmp_path), with_llm=False):
            pass


async def test_an_agents_log_lines_name_the_agent_and_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    class Talking(BaseAgent):
        async def analyze(self) -> list[Proposal]:
            self.context.log.info("3 rows read", file="offers.csv")
            return []

    logging.getLogger("agents.talking").setLevel(logging.INFO)
    async with open_runtime(await settings_for(tmp_path), agents=[Talking], with_llm=False) as runtime:
        result = await runtime.runner.run("talking")
    said = "".join(capsys.readouterr()) + caplog.text  # wherever structlog is set to write by now
    assert "3 rows read" in said
    assert result.run_id in said
    assert "talking" in said


def test_importing_the_runtime_loads_no_database_library() -> None:
    script = (
        "import sys, daemon.runtime, daemon.proposals, daemon.runner\n"
        "heavy = ('sqlalchemy', 'alembic', 'aiosqlite', 'apscheduler', 'structlog')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
