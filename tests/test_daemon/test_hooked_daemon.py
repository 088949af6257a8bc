"""Webhooks of the whole daemon: which agents have one, and when it does not run them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from agents.base import BaseAgent
from agents.proposal import Proposal
from daemon.app import Daemon
from daemon.events import AgentState, AgentStatus, Event, RunFinished
from daemon.settings import DaemonSettings, Settings, WebSettings
from daemon.triggers.tokens import HookTokens
from llm import LLMConfig
from tests.support.waiting import seen


class HookedAgent(BaseAgent):
    """Is run when somebody asks for it."""

    async def analyze(self) -> list[Proposal]:
        return []


class ClosedAgent(HookedAgent):
    """Takes no webhook."""


@asynccontextmanager
async def daemon_in(folder: Path) -> AsyncIterator[tuple[Daemon, httpx.AsyncClient]]:
    agents: dict[str, dict[str, object]] = {
        "hooked": {"webhook": True},
        "closed": {"webhook": False, "every": "1d"},
    }
    settings = Settings(
        daemon=DaemonSettings(data_dir=folder / "data", log_format="json"),
        web=WebSettings(port=0),
        agents=agents,
    )
    daemon = Daemon(settings, llm_config=LLMConfig(backend="mock"), agents=[HookedAgent, ClosedAgent])
    task = asyncio.create_task(daemon.run_until_stopped())
    try:
        await seen(lambda: daemon.ready.is_set() or task.done())
        tokens = HookTokens(folder / "data")
        token = await asyncio.to_thread(tokens.make, "hooked")
        (folder / "data" / "hooks" / "closed").write_text(token, encoding="utf-8")
        headers = {"Authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(base_url=str(daemon.url), headers=headers, trust_env=False) as client:
            yield daemon, client
    finally:
        daemon.lifecycle.ask_to_stop("test")
        await task


async def test_an_agent_with_a_webhook_is_run_and_others_are_not(tmp_path: Path) -> None:
    async with daemon_in(tmp_path) as (daemon, client):
        ended: list[tuple[str, str]] = []

        def note(event: Event) -> None:
            if isinstance(event, RunFinished):
                ended.append((event.result.agent, event.result.trigger))

        daemon._scheduler.events.subscribe(note)
        for agent, status in (("closed", 401), ("nobody", 401), ("hooked", 202)):
            assert (await client.post(f"/hooks/{agent}")).status_code == status
        await seen(lambda: ("hooked", "webhook") in ended)
        assert ("closed", "webhook") not in ended


async def test_a_paused_agent_and_a_program_that_stops_say_why_they_do_not_run(tmp_path: Path) -> None:
    async with daemon_in(tmp_path) as (daemon, client):
        runtime = daemon._scheduler.runtime
        assert runtime is not None
        paused = AgentStatus(agent="hooked", state=AgentState.PAUSED, reason="holidays", by="ana")
        await runtime.states.set(paused)
        answer = await client.post("/hooks/hooked")
        assert answer.status_code == 503
        assert answer.json() == {
            "agent": "hooked",
            "taken": False,
            "error": "it is paused: holidays; resume it with: askfirst agents resume hooked",
        }
        await runtime.states.set(AgentStatus(agent="hooked"))
        assert (await client.post("/hooks/hooked")).status_code == 202
        daemon._scheduler.hold()
        answer = await client.post("/hooks/hooked")
        assert (answer.status_code, answer.json()["error"]) == (503, "the program is stopping")
