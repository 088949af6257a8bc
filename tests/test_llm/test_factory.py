"""get_llm_client(): configuration in, client out."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from llm import ConfigurationError, LLMConfig, MockBackend, get_llm_client
from llm.events import CallFinished, CallStarted
from llm.factory import PARALLEL_VARIABLE, _usual_concurrency
from llm.middleware.breaker import Breaker
from llm.middleware.cache import ResponseCache
from llm.middleware.coalesce import Coalesce
from llm.middleware.limit import Limit
from llm.middleware.retry import Retry
from llm.testing import Recorder


async def test_without_a_configuration_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_BACKEND", "mock")
    monkeypatch.setenv("LLM_MAX_TOKENS", "17")
    async with get_llm_client() as client:
        assert isinstance(client, MockBackend)
        assert client.config.max_tokens == 17


async def test_backend_auto_without_a_choice_is_the_default_and_never_the_mock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LLM_BACKEND", "auto")
    async with get_llm_client() as client:
        assert client.backend == "ollama"


def test_a_variable_that_cannot_be_read_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_TIMEOUT", "soon")
    with pytest.raises(ConfigurationError, match="LLM_TIMEOUT"):
        get_llm_client()


async def test_an_unknown_backend_answers_from_the_mock_and_says_so(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    async with get_llm_client(LLMConfig(backend="gpt5", cache_dir=str(tmp_path))) as client:
        response = await client.generate("Hello")
    assert response.backend == "mock"
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


@pytest.mark.parametrize("backend", ["ollama", "mlx", "remote", "llamacpp", "mock"])
async def test_making_a_client_connects_loads_and_writes_nothing(backend: str, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    config = LLMConfig(backend=backend, cache_dir=str(folder), api_key="sk-x")
    async with get_llm_client(config) as client:
        assert client.backend == backend
        assert client.config == config
    assert not any(tmp_path.iterdir())  # noqa: ASYNC240 - nothing else runs


async def test_the_wrappers_stand_in_the_order_that_is_drawn(tmp_path: Path) -> None:
    async with get_llm_client(LLMConfig(backend="ollama", cache_dir=str(tmp_path))) as client:
        assert [type(each) for each in client._middleware] == [ResponseCache, Coalesce, Breaker, Retry, Limit]


async def test_what_is_switched_off_is_not_in_the_way() -> None:
    async with get_llm_client(LLMConfig(backend="mock", enable_cache=False, retries=0)) as client:
        assert [type(each) for each in client._middleware] == [Breaker]


@pytest.mark.parametrize(
    ("variable", "at_once"), [("", 1), ("3", 3), ("0", 1), ("many", 1), ("\N{SUPERSCRIPT TWO}", 1)]
)
def test_ollama_is_asked_as_much_at_once_as_it_works_on_at_once(
    monkeypatch: pytest.MonkeyPatch, variable: str, at_once: int
) -> None:
    monkeypatch.setenv(PARALLEL_VARIABLE, variable)
    assert _usual_concurrency("ollama") == at_once
    assert _usual_concurrency("mlx") is None


async def test_observers_are_told_what_happens() -> None:
    recorder = Recorder()
    config = LLMConfig(backend="mock", enable_cache=False)
    async with get_llm_client(config, observers=[recorder]) as client:
        await client.generate("Hello")
    assert [type(event) for event in recorder.events] == [CallStarted, CallFinished]
