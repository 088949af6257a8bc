"""Every backend keeps the contract of `llm.testing.LLMContract`, with a real engine wherever there is one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Protocol

import pytest
import pytest_asyncio

from llm import LLMConfig
from llm.testing import LLMContract
from tests.support.engines import requires_llamacpp, requires_mlx
from tests.support.fake_ollama import FakeOllama, model
from tests.support.llama_server import KEY, MODEL, Gateway, LlamaServer
from tests.support.tiny_mlx import make_tiny_model

pytestmark = pytest.mark.contract

NOBODY = "http://127.0.0.1:1"
Pair = tuple[LLMConfig, LLMConfig | None]


def config(**values: object) -> LLMConfig:
    """Greedy, so that a failure can be repeated; patient, so that a busy machine is none."""
    return LLMConfig.from_mapping(
        {"temperature": 0.0, "timeout": 120.0, "context_length": 2048, "enable_cache": False, **values}
    )


@pytest.fixture(scope="session")
def llama_server() -> Iterator[LlamaServer]:
    server = LlamaServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def engine_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


@asynccontextmanager
async def ollama(server: LlamaServer, folder: Path) -> AsyncIterator[Pair]:
    async with FakeOllama(model("qwen2.5:1.5b")) as fake:
        working = config(backend="ollama", api_base=fake.url)
        yield working, working.with_values(api_base=NOBODY)


@asynccontextmanager
async def remote_openai(server: LlamaServer, folder: Path) -> AsyncIterator[Pair]:
    working = config(backend="remote", model=MODEL, api_key=KEY, api_base=f"{server.address}/v1")
    yield working, working.with_values(api_base=f"{NOBODY}/v1")


@asynccontextmanager
async def remote_anthropic(server: LlamaServer, folder: Path) -> AsyncIterator[Pair]:
    async with Gateway(server.address, "/anthropic") as gateway:
        working = config(backend="remote", model=MODEL, api_key=KEY, api_base=gateway.url)
        yield working, working.with_values(api_base=f"{NOBODY}/anthropic")


@asynccontextmanager
async def llamacpp(server: LlamaServer, folder: Path) -> AsyncIterator[Pair]:
    working = config(backend="llamacpp", model=MODEL)
    yield working, working.with_values(model=str(folder / "absent.gguf"))


@asynccontextmanager
async def mlx_tiny(server: LlamaServer, folder: Path) -> AsyncIterator[Pair]:
    tiny = folder / "tiny"
    if not tiny.exists():
        make_tiny_model(tiny)
    working = config(backend="mlx", model=str(tiny), cache_dir=str(folder / "cache"))
    yield working, working.with_values(model=str(folder / "absent"))


@asynccontextmanager
async def mock(server: LlamaServer, folder: Path) -> AsyncIterator[Pair]:
    yield config(backend="mock"), None


class Opener(Protocol):
    def __call__(self, server: LlamaServer, folder: Path) -> AbstractAsyncContextManager[Pair]: ...


LLAMACPP = [pytest.mark.engine, requires_llamacpp]
MLX = [pytest.mark.engine, requires_mlx]

EVERY_BACKEND = [
    pytest.param(ollama, id="ollama-replay"),
    pytest.param(remote_openai, id="remote-openai", marks=LLAMACPP),
    pytest.param(remote_anthropic, id="remote-anthropic", marks=LLAMACPP),
    pytest.param(llamacpp, id="llamacpp", marks=LLAMACPP),
    pytest.param(mlx_tiny, id="mlx-tiny", marks=MLX),
    pytest.param(mock, id="mock"),
]


class TestEveryBackend(LLMContract):
    @pytest_asyncio.fixture(params=EVERY_BACKEND)
    async def pair(
        self, request: pytest.FixtureRequest, llama_server: LlamaServer, engine_folder: Path
    ) -> AsyncIterator[Pair]:
        opener: Opener = request.param
        async with opener(llama_server, engine_folder) as made:
            yield made

    def holds_to_schemas(self, config: LLMConfig) -> bool:
        # llama.cpp ignores the schema of the Messages API, and 135M parameters do not follow words.
        return "/anthropic" not in (config.api_base or "")

    @pytest.fixture
    def llm_config(self, pair: Pair) -> LLMConfig:
        return pair[0]

    @pytest.fixture
    def unavailable_config(self, pair: Pair) -> LLMConfig | None:
        return pair[1]
