"""Every backend keeps the contract of `llm.testing.LLMContract`, with a real engine wherever there is one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, ClassVar

import pytest
import pytest_asyncio

from llm import LLMConfig
from llm.errors import AuthenticationFailed, BadReply, BadRequest, ModelNotFound
from llm.testing import Failure, LLMContract
from tests.support import llama_server, real_ollama
from tests.support.engines import requires_llamacpp, requires_mlx
from tests.support.llama_server import KEY, Gateway
from tests.support.real_engines import Engines
from tests.support.replay_server import ReplayServer
from tests.support.smollm_mlx import make_smollm
from tests.support.tiny_mlx import make_tiny_model

pytestmark = pytest.mark.contract

NOBODY = "http://127.0.0.1:1"
Pair = tuple[LLMConfig, LLMConfig | None]
"""A configuration that works, and the same one with nothing behind it."""


def config(**values: object) -> LLMConfig:
    """Greedy, so that a failure can be repeated; patient, so that a busy machine is none."""
    return LLMConfig.from_mapping(
        {"temperature": 0.0, "timeout": 120.0, "context_length": 2048, "enable_cache": False, **values}
    )


@asynccontextmanager
async def ollama_genuine(engines: Engines) -> AsyncIterator[Pair]:
    working = config(backend="ollama", model=real_ollama.MODEL, api_base=engines.ollama_address())
    yield working, working.with_values(api_base=NOBODY)


@asynccontextmanager
async def ollama_genuine_v1(engines: Engines) -> AsyncIterator[Pair]:
    base = f"{engines.ollama_address()}/v1"
    working = config(backend="remote", model=real_ollama.MODEL, api_base=base)
    yield working, working.with_values(api_base=f"{NOBODY}/v1")


@asynccontextmanager
async def llamacpp_openai(engines: Engines) -> AsyncIterator[Pair]:
    base = f"{engines.llama.address}/v1"
    working = config(backend="remote", model=llama_server.MODEL, api_key=KEY, api_base=base)
    yield working, working.with_values(api_base=f"{NOBODY}/v1")


@asynccontextmanager
async def llamacpp_anthropic(engines: Engines) -> AsyncIterator[Pair]:
    async with Gateway(engines.llama.address, "/anthropic") as gateway:
        working = config(backend="remote", model=llama_server.MODEL, api_key=KEY, api_base=gateway.url)
        yield working, working.with_values(api_base=f"{NOBODY}/anthropic")


@asynccontextmanager
async def llamacpp(engines: Engines) -> AsyncIterator[Pair]:
    working = config(backend="llamacpp", model=llama_server.MODEL)
    yield working, working.with_values(model=str(engines.folder / "absent.gguf"))


def _mlx(engines: Engines, model: str) -> Pair:
    working = config(backend="mlx", model=model, cache_dir=str(engines.folder / "cache"))
    return working, working.with_values(model=str(engines.folder / "absent"))


@asynccontextmanager
async def mlx_tiny(engines: Engines) -> AsyncIterator[Pair]:
    yield _mlx(engines, engines.folder_of("tiny", make_tiny_model))


@asynccontextmanager
async def mlx_smollm2(engines: Engines) -> AsyncIterator[Pair]:
    yield _mlx(engines, engines.folder_of("smollm2", make_smollm))


@asynccontextmanager
async def mock(engines: Engines) -> AsyncIterator[Pair]:
    yield config(backend="mock"), None


Opener = Callable[[Engines], AbstractAsyncContextManager[Pair]]

ENGINE = pytest.mark.engine
LLAMACPP = [ENGINE, requires_llamacpp]
MLX = [ENGINE, requires_mlx]

EVERY_BACKEND = [
    pytest.param(ollama_genuine, id="ollama-0.9.3", marks=LLAMACPP),  # for its model's file
    pytest.param(ollama_genuine_v1, id="ollama-0.9.3-openai", marks=LLAMACPP),
    pytest.param(llamacpp_openai, id="llamacpp-openai", marks=LLAMACPP),
    pytest.param(llamacpp_anthropic, id="llamacpp-anthropic", marks=LLAMACPP),
    pytest.param(llamacpp, id="llamacpp", marks=LLAMACPP),
    pytest.param(mlx_tiny, id="mlx-tiny", marks=MLX),
    pytest.param(mlx_smollm2, id="mlx-smollm2", marks=[*MLX, requires_llamacpp]),
    pytest.param(mock, id="mock"),
]


TOO_LONG = "word " * 4000
"""More than the context of 2048 tokens."""


def _too_long(config: LLMConfig) -> Failure:
    return Failure(error=BadRequest, config=config, prompt=TOO_LONG)


def _failures_of_ollama(config: LLMConfig) -> list[Failure]:
    return [Failure(error=ModelNotFound, config=config.with_values(model="nope:1b"))]


def _failures_of_remote(config: LLMConfig) -> list[Failure]:
    if config.api_key is None:  # Ollama's /v1, which takes any key, and cuts a prompt that is too long
        return _failures_of_ollama(config)
    return [
        Failure(error=AuthenticationFailed, config=config.with_values(api_key="not-the-key")),
        _too_long(config),
    ]


def _failures_of_an_engine(config: LLMConfig) -> list[Failure]:
    return [
        Failure(error=ModelNotFound, config=config.with_values(model="/nowhere/at all")),
        _too_long(config),
    ]


_FAILURES: dict[str, Callable[[LLMConfig], list[Failure]]] = {
    "ollama": _failures_of_ollama,
    "remote": _failures_of_remote,
    "llamacpp": _failures_of_an_engine,
    "mlx": _failures_of_an_engine,
}


class TestEveryBackend(LLMContract):
    @pytest_asyncio.fixture(params=EVERY_BACKEND)
    async def pair(self, request: pytest.FixtureRequest, engines: Engines) -> AsyncIterator[Pair]:
        opener: Opener = request.param
        async with opener(engines) as made:
            yield made

    def holds_to_schemas(self, config: LLMConfig) -> bool:
        # llama.cpp ignores the schema of the Messages API, and 135M parameters do not follow words.
        return "/anthropic" not in (config.api_base or "")

    def failures(self, config: LLMConfig) -> Sequence[Failure]:
        if config.backend == "mock":
            return ()
        too_large = Failure(
            error=BadReply, config=config.with_values(max_reply_bytes=1024), prompt=self.story, stream=True
        )
        made = _FAILURES[config.backend](config)
        # SmolLM2 on mlx takes half a minute to write so much, and the tiny model has shown it.
        return made if config.model.endswith("smollm2") else [*made, too_large]

    @pytest.fixture
    def llm_config(self, pair: Pair) -> LLMConfig:
        return pair[0]

    @pytest.fixture
    def unavailable_config(self, pair: Pair) -> LLMConfig | None:
        return pair[1]


RECORDED = (
    *("chat_nostream", "chat_stream", "chat_multi_turn_same_prefix_longer", "chat_system"),
    *("chat_num_predict_cut", "chat_stream_true_explicit", "chat_natural_stop_stream"),
    *("chat_format_schema", "chat_format_schema_stream", "chat_unknown_model", "chat_unknown_model_nostream"),
    *("version", "tags", "tags_all_models"),
)
PACE = 0.1
"""A tenth of the recorded waiting: chunks come one by one, and the suite stays quick."""


class TestRecordedOllama(LLMContract):
    """Ollama 0.32.15 as it was recorded: asked what it was asked then."""

    question: ClassVar[str] = "Name three fruits."
    story: ClassVar[str] = "Say hi."
    brief: ClassVar[str | None] = None
    few: ClassVar[int] = 24
    cut: ClassVar[int] = 8
    offer: ClassVar[str] = "Tell me about Paris as JSON."
    schema: ClassVar[dict[str, Any]] = {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "population": {"type": "integer"},
            "capital": {"type": "boolean"},
        },
        "required": ["city", "population", "capital"],
    }

    def stops_at_texts(self, config: LLMConfig) -> bool:
        return False  # no recording of a chat has one

    def failures(self, config: LLMConfig) -> Sequence[Failure]:
        return [
            *_failures_of_ollama(config),
            Failure(
                error=BadReply,
                config=config.with_values(max_reply_bytes=1024),
                prompt=self.story,
                stream=True,
            ),
        ]

    @pytest_asyncio.fixture(
        params=[pytest.param(None, id="ollama-0.32-replay"), pytest.param(1, id="ollama-0.32-replay-cut")]
    )
    async def llm_config(self, request: pytest.FixtureRequest) -> AsyncIterator[LLMConfig]:
        async with ReplayServer(*RECORDED, pace=PACE, piece=request.param) as server:
            yield config(backend="ollama", model="smollm2:135m", api_base=server.url)

    @pytest.fixture
    def unavailable_config(self) -> LLMConfig:
        return config(backend="ollama", model="smollm2:135m", api_base=NOBODY)
