"""Daemon: everything opened together, in order, and closed in reverse."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
from pydantic import SecretStr

from agents.base import BaseAgent
from agents.proposal import Proposal
from daemon.app import Daemon
from daemon.errors import AddressInUse, ExitCode, StoreError
from daemon.scheduler import AgentScheduler
from daemon.settings import DaemonSettings, LLMSettings, Settings, WebSettings
from llm import LLMConfig
from tests.support.prometheus import samples
from tests.support.waiting import seen

MOCK = LLMConfig(backend="mock", enable_cache=False)


class AskingAgent(BaseAgent):
    """Asks the model and proposes what it says."""

    every = "1d"

    async def analyze(self) -> list[Proposal]:
        answer = await self.use_llm("What now?")
        return [self.propose("ask", "Do it", explanation=answer.content, payload={}, fingerprint="it")]


class WaitingAgent(BaseAgent):
    """Waits for ever."""

    every = "1d"
    begun: ClassVar[asyncio.Event]

    async def analyze(self) -> list[Proposal]:
        self.begun.set()
        await asyncio.Event().wait()
        return []


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    WaitingAgent.begun = asyncio.Event()
    return Settings(
        daemon=DaemonSettings(
            data_dir=tmp_path / "data", stop_grace=timedelta(seconds=0.1), log_format="json"
        ),
        web=WebSettings(port=0),
    )


@asynccontextmanager
async def running(daemon: Daemon) -> AsyncIterator[httpx.AsyncClient]:
    """A daemon that is ready, and a client of its endpoints; it must end with OK."""
    task = asyncio.create_task(daemon.run_until_stopped())
    ready = asyncio.create_task(daemon.ready.wait())
    await asyncio.wait({task, ready}, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        await task
    try:
        async with httpx.AsyncClient(
            base_url=daemon.url or "http://nowhere.invalid", trust_env=False
        ) as client:
            yield client
    finally:
        daemon.lifecycle.ask_to_stop("test")
        assert await task is ExitCode.OK


def log_lines(capfd: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]


async def test_it_runs_agents_serves_its_endpoints_and_says_so(
    settings: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    daemon = Daemon(settings, llm_config=MOCK, agents=[AskingAgent])
    async with running(daemon) as client:
        async with asyncio.timeout(60):
            while True:
                found = samples((await client.get("/metrics")).text)
                ran = found['askfirst_agent_runs_total{agent="asking",outcome="succeeded"}'] == 1
                # Counted in the database before the scrape began, so perhaps one scrape later.
                if ran and found.get('askfirst_proposals{agent="asking",status="pending"}') == 1:
                    break
                await asyncio.sleep(0.05)
        ready = await client.get("/readyz")
        assert ready.status_code == 200
        checks = ready.json()["checks"]
        assert set(checks) == {"database", "scheduler", "storage", "model"}
        assert checks["database"]["detail"] == "1 proposals"
        assert (await client.get("/healthz")).status_code == 200
    assert found['askfirst_llm_prompt_tokens_total{backend="mock",model="mock"}'] > 0
    lines = log_lines(capfd)
    started = next(line for line in lines if line["event"] == "askfirst is running")
    assert started["address"] == daemon.url
    assert started["model"] == "mock mock"
    assert started["agents"] == ["asking"]
    assert started["data"] == str(settings.daemon.data_dir)
    assert "mock" in started["why"]
    assert [line["outcome"] for line in lines if line["event"] == "run finished"] == ["succeeded"]
    assert [line["proposals"] for line in lines if line["event"] == "run finished"] == [1]
    assert [line["reason"] for line in lines if line["event"] == "stopping"] == ["test"]


async def test_health_and_readiness_tell_what_is_wrong(settings: Settings) -> None:
    daemon = Daemon(settings, llm_config=MOCK, agents=[AskingAgent])
    async with running(daemon) as client:
        daemon._scheduler.hold()
        unready = await client.get("/readyz")
        assert unready.status_code == 503
        assert unready.json()["checks"]["scheduler"]["ok"] is False
        sick = await client.get("/healthz")
        assert (sick.status_code, sick.json()["failing"]) == (503, ["scheduler"])


async def test_a_model_that_does_not_answer_is_told_and_does_not_make_it_unready(settings: Settings) -> None:
    gone = LLMConfig(backend="ollama", api_base="http://127.0.0.1:1", enable_cache=False)
    async with running(Daemon(settings, llm_config=gone, agents=[])) as client:
        async with asyncio.timeout(60):
            while True:
                model = (await client.get("/readyz")).json()["checks"]["model"]
                if model["ok"] is not None:
                    break
                await asyncio.sleep(0.01)
        assert model["ok"] is False
        assert "ollama qwen2.5:1.5b does not answer" in model["detail"]
        assert (await client.get("/readyz")).status_code == 200


async def test_a_host_name_of_the_settings_is_answered(settings: Settings) -> None:
    web = WebSettings(port=0, allowed_hosts=("pi.example.net",))
    async with running(
        Daemon(settings.model_copy(update={"web": web}), llm_config=MOCK, agents=[])
    ) as client:
        for host, status in (("pi.example.net", 200), ("evil.example", 421)):
            assert (await client.get("/healthz", headers={"Host": host})).status_code == status


async def test_without_web_endpoints_nothing_listens(
    settings: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    daemon = Daemon(
        settings.model_copy(update={"web": WebSettings(enabled=False)}), llm_config=MOCK, agents=[]
    )
    async with running(daemon):
        assert daemon.url is None
    events = {line["event"]: line for line in log_lines(capfd)}
    assert events["askfirst is running"]["address"] == "none: web.enabled is false"
    assert [event for event in events if event.startswith("no agent is enabled")]


async def test_a_taken_port_is_told_before_anything_else_happens(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        web = WebSettings(port=other.getsockname()[1])
        daemon = Daemon(settings.model_copy(update={"web": web}), llm_config=MOCK, agents=[AskingAgent])
        with pytest.raises(AddressInUse, match="ASKFIRST_WEB__PORT"):
            await daemon.run_until_stopped()
    assert await asyncio.to_thread(os.listdir, settings.daemon.data_dir) == ["daemon.lock"]


async def test_a_database_that_cannot_be_used_ends_it_and_frees_the_port(settings: Settings) -> None:
    settings.daemon.data_dir.mkdir(mode=0o700)
    (settings.daemon.data_dir / "askfirst.sqlite3").write_bytes(b"this is no database" * 1000)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    daemon = Daemon(settings.model_copy(update={"web": WebSettings(port=port)}), llm_config=MOCK, agents=[])
    with pytest.raises(StoreError):
        await daemon.run_until_stopped()
    socket.create_server(("127.0.0.1", port)).close()


async def test_logging_and_signals_are_as_before_when_it_has_ended(settings: Settings) -> None:
    root = logging.getLogger()
    before = (root.handlers[:], signal.getsignal(signal.SIGTERM))
    async with running(Daemon(settings, llm_config=MOCK, agents=[])):
        assert root.handlers != before[0]
    assert (root.handlers[:], signal.getsignal(signal.SIGTERM)) == before


async def test_somebody_who_stops_it_while_it_starts_does_not_wait_for_the_start(settings: Settings) -> None:
    daemon = Daemon(settings, llm_config=MOCK, agents=[AskingAgent])
    daemon.lifecycle.ask_to_stop("at once")
    async with asyncio.timeout(30):
        assert await daemon.run_until_stopped() is ExitCode.OK
    assert not daemon.ready.is_set()


async def test_a_signal_in_mid_run_ends_it_with_the_run_recorded(settings: Settings) -> None:
    daemon = Daemon(settings, llm_config=MOCK, agents=[WaitingAgent])
    async with running(daemon):
        await seen(WaitingAgent.begun.is_set)
        os.kill(os.getpid(), signal.SIGTERM)
        await daemon.lifecycle.stopping.wait()
        assert daemon.lifecycle.reason == "SIGTERM"
    (result,) = await recorded(settings)
    assert result.outcome == "cancelled"


async def recorded(settings: Settings) -> Any:
    from daemon.runtime import open_runtime

    async with open_runtime(settings, with_llm=False) as runtime:
        return await runtime.runs.list()


async def test_web_endpoints_that_break_end_it_as_failed(
    settings: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    daemon = Daemon(settings, llm_config=MOCK, agents=[])
    task = asyncio.create_task(daemon.run_until_stopped())
    await daemon.ready.wait()
    assert daemon._serving._web is not None
    assert daemon._serving._web._server is not None
    daemon._serving._web._server.stop.set()
    async with asyncio.timeout(30):
        assert await task is ExitCode.FAILED
    assert "the web endpoints ended by themselves" in capfd.readouterr().err


async def test_the_last_success_of_before_a_restart_is_still_known(settings: Settings) -> None:
    (ran,) = await AgentScheduler(MOCK, [AskingAgent], settings).run_once()
    async with running(Daemon(settings, llm_config=MOCK, agents=[AskingAgent])) as client:
        found = samples((await client.get("/metrics")).text)
    name = 'askfirst_agent_last_success_timestamp_seconds{agent="asking"}'
    assert found[name] == pytest.approx(ran.finished_at.timestamp())


@pytest.fixture
def keyed(settings: Settings) -> Settings:
    key = SecretStr("canary-3141592653")
    llm = LLMSettings(backend="remote", api_base="http://127.0.0.1:1/v1", api_key=key)
    return settings.model_copy(update={"llm": llm})


async def test_a_key_of_the_configuration_is_nowhere_in_log_and_metrics(
    keyed: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    async with running(Daemon(keyed, agents=[AskingAgent])) as client:
        logging.getLogger("agents.own").warning("leak: canary-3141592653")
        shown = (await client.get("/metrics")).text + (await client.get("/readyz")).text
    shown += capfd.readouterr().err
    assert "leak: [redacted]" in shown
    assert "3141592653" not in shown


async def test_each_named_backend_is_counted_under_its_own_name(settings: Settings) -> None:
    both = {"small": {"backend": "mock", "model": "tiny"}, "big": {"backend": "mock", "model": "large"}}
    several = settings.model_copy(update={"llm": LLMSettings.model_validate({"backends": both})})
    async with running(Daemon(several, agents=[AskingAgent])) as client:
        found = samples((await client.get("/metrics")).text)
    for name, model in (("small", "tiny"), ("big", "large")):
        assert f'askfirst_llm_prompt_tokens_total{{backend="{name}",model="{model}"}}' in found
