"""The owner's document on the LLM layer: its examples run as written, with this project's import paths.

(`app.llm` is `llm` here, and `app.services` is `daemon`.)
"""

from __future__ import annotations

import ast
import inspect
import logging
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import llm
from llm import LLMConfig, get_llm_client
from tests.support.fake_ollama import FakeOllama

BASIC = """
from llm import get_llm_client, LLMConfig

# Use environment config
client = get_llm_client()

# Or explicit config
config = LLMConfig(
    backend="ollama",
    model="qwen2.5:1.5b",
    temperature=0.7,
    max_tokens=512,
)
client = get_llm_client(config)

# Generate text
response = await client.generate(
    prompt="What are the benefits of gift economies?",
    system_prompt="You are a solarpunk AI assistant.",
)

print(response.content)
print(f"Tokens used: {response.tokens_used}")
print(f"Cached: {response.cached}")
"""

SCHEDULER = """
from daemon import AgentScheduler

# Scheduler creates all agents with LLM client
scheduler = AgentScheduler()

# Or provide custom config
from llm import LLMConfig
config = LLMConfig(backend="ollama", model="qwen2.5:1.5b")
scheduler = AgentScheduler(llm_config=config)

# Run agents once
await scheduler.run_once()

# Or start background scheduling
await scheduler.start()
"""

AGENT = """
from typing import List
from agents import BaseAgent, Proposal

class MyAgent(BaseAgent):
    async def analyze(self) -> List[Proposal]:
        # Use LLM for reasoning
        response = await self.use_llm(
            prompt="Should we match these resources?",
            context={"offer": "10kg tomatoes", "need": "vegetables"},
        )

        # Parse response and create proposals
        ...
        return [
            self.propose("match", "10kg tomatoes", explanation=response.content, payload={}, fingerprint="t")
        ]
"""

CACHING = """
# First call - makes LLM request
response1 = await client.generate(prompt="Hello")
assert response1.cached == False

# Second call - returns cached
response2 = await client.generate(prompt="Hello")
assert response2.cached == True
"""

ERRORS = """
try:
    response = await client.generate(prompt="...")
except Exception as e:
    logger.error(f"LLM call failed: {e}")
    # Fall back to rule-based logic
"""

HEALTH = """
if not await client.health_check():
    logger.warning("LLM backend not available")
    # Use mock backend or skip LLM features
"""

SETTINGS = {
    "Ollama": ("export LLM_BACKEND=ollama\nexport LLM_MODEL=qwen2.5:1.5b", "OllamaBackend", "qwen2.5:1.5b"),
    "MLX": (
        "export LLM_BACKEND=mlx\nexport LLM_MODEL=mlx-community/Qwen2.5-1.5B-Instruct-4bit",
        "MLXBackend",
        "mlx-community/Qwen2.5-1.5B-Instruct-4bit",
    ),
    "remote": (
        """
export LLM_BACKEND=remote
export LLM_MODEL=gpt-4  # or claude-3-opus, etc.
export LLM_API_KEY=your-api-key-here
""",
        "RemoteBackend",
        "gpt-4",
    ),
    "development": (
        "export LLM_BACKEND=remote\nexport LLM_MODEL=gpt-3.5-turbo",
        "RemoteBackend",
        "gpt-3.5-turbo",
    ),
    "mock": ("export LLM_BACKEND=mock", "MockBackend", "mock"),
    "a Raspberry Pi": (
        """
export LLM_BACKEND=ollama
export LLM_MODEL=qwen2.5:1.5b  # or llama3.2:1b
export LLM_MAX_TOKENS=256      # Limit generation length
""",
        "OllamaBackend",
        "qwen2.5:1.5b",
    ),
}

ALL_VARIABLES = """
# Backend selection
LLM_BACKEND=ollama          # ollama, mlx, remote, mock

# Model selection
LLM_MODEL=qwen2.5:1.5b      # Model name/ID

# API settings (for remote backend)
LLM_API_KEY=your-key
LLM_API_BASE=https://api.openai.com/v1

# Generation parameters
LLM_TEMPERATURE=0.7         # Sampling temperature (0.0-1.0)
LLM_MAX_TOKENS=512          # Max tokens to generate
LLM_TOP_P=0.9              # Nucleus sampling threshold

# Performance
LLM_TIMEOUT=30              # Request timeout in seconds
LLM_ENABLE_CACHE=true       # Enable response caching
LLM_CACHE_DIR=.llm_cache    # Cache directory
"""

logger = logging.getLogger(__name__)


async def run(example: str, **names: Any) -> dict[str, Any]:
    """Run an example with top-level `await`; returns the names it leaves."""
    namespace = {"__name__": "example", **names}
    code = compile(example, "document", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    result = eval(code, namespace)
    if inspect.isawaitable(result):
        await result
    return namespace


def sourced(script: str) -> dict[str, str]:
    """The `LLM_*` variables that a shell has after reading `script`."""
    done = subprocess.run(
        ["bash", "-c", f"set -a\n{script}\nenv"], capture_output=True, text=True, check=True, env={}
    )
    lines = (line.partition("=") for line in done.stdout.splitlines())
    return {name: value for name, _, value in lines if name.startswith("LLM_")}


@pytest.fixture(autouse=True)
async def ollama(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, clean_environment: None
) -> AsyncIterator[FakeOllama]:
    monkeypatch.chdir(tmp_path)
    async with FakeOllama() as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        yield server


async def test_the_basic_example_answers(capsys: pytest.CaptureFixture[str]) -> None:
    names = await run(BASIC)
    assert names["response"].content
    assert f"Tokens used: {names['response'].tokens_used}" in capsys.readouterr().out
    await names["client"].aclose()


async def test_the_scheduler_example_runs_and_schedules() -> None:
    names = await run(SCHEDULER)
    scheduler = names["scheduler"]
    assert scheduler.get_stats()["running"]
    await scheduler.stop()


async def test_the_agent_example_gets_its_client_from_the_scheduler() -> None:
    names = await run(AGENT)
    scheduler = (await run("from daemon import AgentScheduler"))["AgentScheduler"](
        llm_config=LLMConfig(backend="ollama", model="qwen2.5:1.5b"), agents=[names["MyAgent"]]
    )
    (result,) = await scheduler.run_once()
    assert result.outcome == "succeeded", result.error
    assert [proposal.title for proposal in result.proposals] == ["10kg tomatoes"]
    assert (result.backend, result.calls) == ("ollama", 1)


@pytest.mark.parametrize("backend", ["ollama", "mock"])
async def test_the_caching_example_holds(backend: str, tmp_path: Path) -> None:
    async with get_llm_client(LLMConfig(backend=backend, cache_dir=str(tmp_path / "cache"))) as client:
        await run(CACHING, client=client)


async def test_the_error_and_health_examples_survive_a_backend_that_is_down(
    caplog: pytest.LogCaptureFixture,
) -> None:
    down = LLMConfig(backend="ollama", api_base="http://127.0.0.1:1")
    async with get_llm_client(down) as client:
        await run(ERRORS, client=client, logger=logger)
        await run(HEALTH, client=client, logger=logger)
    assert "LLM call failed: " in caplog.text
    assert "LLM backend not available" in caplog.text


@pytest.mark.parametrize("case", SETTINGS)
def test_the_exports_of_each_section_choose_its_backend(case: str) -> None:
    script, backend, model = SETTINGS[case]
    config = LLMConfig.from_env(sourced(script))
    client = get_llm_client(config)
    assert isinstance(client, getattr(llm, backend))
    assert client.config.model == model


def test_the_table_of_variables_shows_the_defaults() -> None:
    shown = LLMConfig.from_env(sourced(ALL_VARIABLES))
    assert shown == LLMConfig(api_key="your-key", api_base="https://api.openai.com/v1")
    assert LLMConfig.from_env({}) == LLMConfig()


def test_an_unknown_backend_falls_back_to_mock_and_names_the_known_ones(
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = get_llm_client(LLMConfig(backend="olama"))
    assert isinstance(client, llm.MockBackend)
    assert all(name in caplog.text for name in ("olama", "ollama", "mlx", "remote", "mock"))
