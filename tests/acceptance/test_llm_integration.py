"""The four checks of the LLM layer: mock, Ollama if one runs, an agent with a model, a scheduler with one.

Run by pytest, or by hand, which prints what each check found and ends with 0 or 1:

    python tests/acceptance/test_llm_integration.py
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # run as a script, a checkout need not be installed

from agents.base import BaseAgent
from agents.context import AgentContext
from agents.proposal import Proposal
from daemon import AgentScheduler
from daemon.settings import load_settings
from llm import LLMConfig, get_llm_client, select_backend
from tests.support.fake_ollama import FakeOllama

OLLAMA_HOST = os.environ.get("OLLAMA_HOST")
"""As it was before the tests hid it: check 2 is about the Ollama of this machine."""

QUESTION = "What are the benefits of gift economies?"


class GardenAgent(BaseAgent):
    """Asks the model what to do with what would spoil, and proposes its answer."""

    async def analyze(self) -> list[Proposal]:
        response = await self.use_llm(
            prompt="Should we match these resources?",
            context={"offer": "10kg tomatoes", "need": "vegetables"},
            system_prompt="You are a solarpunk AI assistant.",
        )
        return [
            self.propose(
                kind="match",
                title="Tomatoes for whoever needs vegetables",
                explanation=response.content,
                payload={"offer": "10kg tomatoes", "need": "vegetables"},
                fingerprint="tomatoes-vegetables",
                decided_by="model",
                call_ids=(response.call_id,),
            )
        ]


class NotHere(Exception):
    """What a check is about is not on this machine; the text says why."""


async def check_mock(folder: Path) -> str:
    """1. The mock backend always works."""
    config = LLMConfig(backend="mock", cache_dir=str(folder / "cache"))
    async with get_llm_client(config) as client:
        assert await client.health_check() is True
        first = await client.generate(prompt=QUESTION, system_prompt="You are a solarpunk AI assistant.")
        second = await client.generate(prompt=QUESTION, system_prompt="You are a solarpunk AI assistant.")
    assert first.content
    assert first.tokens_used > 0
    assert (first.cached, second.cached, second.content) == (False, True, first.content)
    return f"answered with {first.tokens_used} tokens, and the second time from the cache"


async def check_ollama(folder: Path) -> str:
    """2. An Ollama answers, if one is running."""
    environ = {name: value for name, value in os.environ.items() if name != "LLM_BACKEND"}
    selection = await select_backend({**environ, "LLM_CACHE_DIR": str(folder / "cache")})
    config = selection.config
    if config is None or config.backend != "ollama":
        raise NotHere(selection.considered[0])
    async with get_llm_client(config.with_values(timeout=max(config.timeout, 120))) as client:
        assert await client.health_check() is True
        response = await client.generate("Name three vegetables.", max_tokens=40)
    assert response.content.strip()
    assert response.completion_tokens > 0
    return f"{response.model} answered with {response.tokens_used} tokens: {response.content.strip()[:60]!r}"


async def check_agent(folder: Path) -> str:
    """3. An agent thinks with a model and proposes."""
    config = LLMConfig(backend="mock", cache_dir=str(folder / "cache"))
    async with get_llm_client(config) as client:
        agent = GardenAgent(AgentContext(llm=client))
        (proposal,) = await agent.analyze()
        (call,) = agent.context.calls
    assert (proposal.agent, proposal.kind) == ("garden", "match")
    assert call.reply == proposal.explanation != ""
    assert "10kg tomatoes" in call.prompt
    assert proposal.call_ids == (call.id,)
    return f"the agent {proposal.agent!r} asked {call.backend} and proposes: {proposal.title}"


async def check_scheduler(folder: Path) -> str:
    """4. A scheduler runs an agent with a model, once and on its schedule."""
    settings_file = folder / "askfirst.toml"
    settings_file.write_text('[daemon]\ndata_dir = "state"\n', encoding="utf-8")
    scheduler = AgentScheduler(
        llm_config=LLMConfig(backend="mock", cache_dir=str(folder / "cache")),
        agents=[GardenAgent],
        settings=load_settings(settings_file),
    )
    (first,) = await scheduler.run_once()
    (second,) = await scheduler.run_once()
    assert (first.outcome, first.error) == ("succeeded", None)
    assert (first.agent, first.calls, first.backend) == ("garden", 1, "mock")
    assert [proposal.status for proposal in first.proposals] == ["pending"]
    assert (len(second.proposals), second.duplicates, second.cached_calls) == (0, 1, 1)
    await scheduler.start()
    assert scheduler.get_stats()["running"] is True
    assert list(scheduler.get_stats()["agents"]) == ["garden"]
    await scheduler.stop()
    stats = scheduler.get_stats()
    assert stats["running"] is False
    return f"runs: {stats['runs']['succeeded']} succeeded; proposals: {stats['proposals']}"


Check = Callable[[Path], Awaitable[str]]
CHECKS: tuple[Check, ...] = (check_mock, check_ollama, check_agent, check_scheduler)


async def test_1_the_mock_backend_always_works(tmp_path: Path) -> None:
    assert "from the cache" in await check_mock(tmp_path)


async def test_2_ollama_answers_where_it_is_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OLLAMA_HOST")
    if OLLAMA_HOST is not None:
        monkeypatch.setenv("OLLAMA_HOST", OLLAMA_HOST)
    try:
        found = await check_ollama(tmp_path)
    except NotHere as reason:
        pytest.skip(str(reason))
    assert "answered" in found


async def test_2_with_an_ollama_on_loopback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with FakeOllama() as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        assert "qwen2.5:1.5b answered" in await check_ollama(tmp_path)


async def test_2_without_an_ollama_says_why(tmp_path: Path) -> None:
    with pytest.raises(NotHere, match="Ollama is not used"):
        await check_ollama(tmp_path)


async def test_3_an_agent_thinks_with_a_model(tmp_path: Path) -> None:
    assert "proposes" in await check_agent(tmp_path)


async def test_4_a_scheduler_runs_an_agent_with_a_model(tmp_path: Path) -> None:
    assert "'pending': 1" in await check_scheduler(tmp_path)


def run_script(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, __file__],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=folder,
        env={**os.environ, **environment},
    )


@pytest.mark.process
def test_the_script_says_what_each_check_found_and_ends_with_success(tmp_path: Path) -> None:
    done = run_script(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[:8:2]] == ["ok", "skipped", "ok", "ok"]
    assert "Ollama is not used" in lines[3]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.process
def test_the_script_goes_on_after_a_check_that_fails_and_ends_with_failure(tmp_path: Path) -> None:
    done = run_script(tmp_path, LLM_TIMEOUT="soon")
    assert done.returncode == 1
    outcomes = [line.split()[0] for line in done.stdout.splitlines()[:8:2]]
    assert (outcomes[0], outcomes[1], outcomes[2]) == ("ok", "FAILED", "ok")
    assert "ConfigurationError: LLM_TIMEOUT" in done.stdout


async def run_check(check: Check) -> tuple[str, str]:
    """One check in a folder of its own: "ok", "skipped" or "FAILED", and what it found."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return "ok", await check(Path(folder))
        except NotHere as reason:
            return "skipped", str(reason)
        except Exception as error:  # noqa: BLE001 - a check that fails must not keep the others from running
            return "FAILED", f"{type(error).__name__}: {error}"


def main() -> int:
    """Run the four checks; 0 when none failed."""
    failed = 0
    for check in CHECKS:
        outcome, found = asyncio.run(run_check(check))
        failed += outcome == "FAILED"
        print(f"{outcome:<8} {check.__doc__}\n         {found}")
    print(f"{failed} of {len(CHECKS)} checks failed" if failed else "no check failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
