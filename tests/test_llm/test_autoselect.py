"""Which model is taken when nobody said, and what is said about it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from llm import ConfigurationError, Selection, select_backend
from llm import autoselect as module
from llm.backends.llamacpp import unavailable_reason as llamacpp_unavailable
from tests.support.fake_ollama import CHAT, EMBEDDING, FakeOllama, model
from tests.support.loopback import LoopbackServer, SeenRequest

NOBODY = "http://127.0.0.1:1"


async def chosen(server: FakeOllama, model_hint: str | None = None, **environ: str) -> Selection:
    return await select_backend({"LLM_API_BASE": server.url, **environ}, model_hint=model_hint)


def one_sentence(text: str) -> bool:
    return text[0].isupper() and text.endswith(".") and not text.endswith("..")


@pytest.mark.parametrize("backend", ["ollama", "mlx", "remote", "llamacpp", "mock", "MLX"])
async def test_a_backend_that_is_named_is_taken_without_looking_whether_it_is_there(backend: str) -> None:
    async with FakeOllama(model("qwen2.5:1.5b")) as server:
        found = await chosen(server, LLM_BACKEND=backend, LLM_TEMPERATURE="0")
    assert found.config is not None
    assert (found.config.backend, found.config.temperature) == (backend.lower(), 0)
    assert "LLM_BACKEND" in found.reason
    assert one_sentence(found.reason)
    assert found.considered == ()
    assert server.seen == []


@pytest.mark.parametrize("named", [None, "", "auto", " Auto "])
async def test_an_ollama_that_answers_is_taken_and_all_other_variables_apply(named: str | None) -> None:
    unset = {} if named is None else {"LLM_BACKEND": named}
    async with FakeOllama(model("llama3.2:1b"), model("qwen2.5:1.5b")) as server:
        url = server.url
        found = await chosen(server, LLM_TEMPERATURE="0.1", LLM_TIMEOUT="90", LLM_CACHE_DIR="/x", **unset)
    config = found.config
    assert config is not None
    assert (config.backend, config.model, config.api_base) == ("ollama", "qwen2.5:1.5b", url)
    assert (config.temperature, config.timeout, config.cache_dir) == (0.1, 90, "/x")
    assert found.considered == ()
    assert found.reason == f"Ollama answers at {url} and has qwen2.5:1.5b, so that is used."


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        (["phi3:mini", "llama3.2:1b", "tiny:1m"], "llama3.2:1b"),
        (["phi3:mini", "tiny:1m"], "phi3:mini"),
        (["QWEN2.5:1.5B"], "qwen2.5:1.5b"),
    ],
)
async def test_the_recommended_models_come_first_in_their_order(models: list[str], expected: str) -> None:
    async with FakeOllama(*(model(name, size=5) for name in models)) as server:
        found = await chosen(server)
    assert found.config is not None
    assert found.config.model == expected


async def test_without_a_recommended_model_the_smallest_that_can_chat_here_is_taken() -> None:
    models = [
        model("big:7b", size=7_000),
        model("small:3b", size=3_000),
        model("nomic:latest", size=10, capabilities=EMBEDDING),
        model("old-embed:latest", size=20, capabilities=None),
        model("gpt-oss:120b-cloud", size=300),
        model("deepseek:cloud", size=300),
    ]
    async with FakeOllama(*models) as server:
        found = await chosen(server)
    assert found.config is not None
    assert found.config.model == "small:3b"


async def test_an_ollama_too_old_to_tell_what_its_models_can_do_is_used_all_the_same() -> None:
    async with FakeOllama(model("all-minilm:33m", 5, None), model("mistral:7b", 9, None)) as server:
        found = await chosen(server)
    assert found.config is not None
    assert found.config.model == "mistral:7b"


async def test_the_named_model_is_taken_and_no_other() -> None:
    async with FakeOllama(model("qwen2.5:1.5b"), model("mine:latest")) as server:
        found = await chosen(server, LLM_MODEL="mine")
        missing = await chosen(server, LLM_MODEL="absent:1b")
    assert found.config is not None
    assert found.config.model == "mine"
    assert missing.config is None or missing.config.backend != "ollama"
    assert "ollama pull absent:1b" in missing.considered[0]


async def test_a_hint_is_preferred_and_not_required() -> None:
    async with FakeOllama(model("qwen2.5:1.5b"), model("hinted:2b", size=1)) as server:
        with_it = await chosen(server, model_hint="hinted:2b")
        without = await chosen(server, model_hint="absent:2b")
        overruled = await chosen(server, model_hint="hinted:2b", LLM_MODEL="qwen2.5:1.5b")
    models = [found.config.model for found in (with_it, without, overruled) if found.config is not None]
    assert models == ["hinted:2b", "qwen2.5:1.5b", "qwen2.5:1.5b"]


@pytest.mark.parametrize("models", [[], [model("nomic:latest", capabilities=EMBEDDING)]])
async def test_an_ollama_without_a_usable_model_is_passed_over_and_the_way_out_is_said(
    models: list[dict[str, object]],
) -> None:
    async with FakeOllama(*models, empty=not models) as server:
        found = await chosen(server)
    assert found.config is None or found.config.backend != "ollama"
    assert found.considered[0] == "Ollama answers but has no model that can chat: `ollama pull qwen2.5:1.5b`."


async def test_ollama_host_is_respected_from_the_given_environment() -> None:
    async with FakeOllama(model("qwen2.5:1.5b", capabilities=CHAT)) as server:
        url = server.url
        found = await select_backend({"OLLAMA_HOST": url.removeprefix("http://")})
    assert found.config is not None
    assert (found.config.backend, found.config.api_base) == ("ollama", url)


async def test_a_silent_ollama_holds_nobody_up() -> None:
    async with FakeOllama(model("qwen2.5:1.5b"), silent=True) as server:
        started = time.monotonic()
        found = await chosen(server)
        assert time.monotonic() - started < 10
    assert found.config is None or found.config.backend != "ollama"
    assert found.considered[0].startswith("Ollama is not used:")


class Stranger(LoopbackServer):
    """Something else that listens on Ollama's port."""

    async def answer(self, request: SeenRequest, writer: object) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")  # type: ignore[attr-defined]


async def test_something_else_on_the_port_is_no_ollama() -> None:
    async with Stranger() as server:
        found = await select_backend({"LLM_API_BASE": server.url})
    assert found.config is None or found.config.backend != "ollama"
    assert found.considered[0].startswith("Ollama is not used:")


async def test_without_ollama_the_embedded_engine_is_taken_where_it_is_installed() -> None:
    environ = {"LLM_API_BASE": NOBODY, "LLM_API_KEY": "sk-x", "LLM_MAX_TOKENS": "60"}
    found = await select_backend(environ)
    missing = llamacpp_unavailable("smollm2:135m")
    if missing is None:
        assert found.config is not None
        assert (found.config.backend, found.config.model) == ("llamacpp", "smollm2:135m")
        assert (found.config.api_base, found.config.api_key, found.config.max_tokens) == (None, None, 60)
    else:
        assert found.config is None
        assert missing in found.considered[2]
    assert one_sentence(found.reason)
    assert all(one_sentence(each) or each.startswith(("mlx", "llamacpp")) for each in found.considered)


async def test_without_any_model_the_rules_are_left_and_all_that_was_tried_is_said() -> None:
    found = await select_backend({"LLM_API_BASE": NOBODY, "LLM_MODEL": "absent:1b"})
    assert found.config is None
    assert "rules" in found.reason
    assert [text.split()[0] for text in found.considered] == ["Ollama", "mlx", "llamacpp"]
    assert all(text.endswith(".") for text in found.considered)


async def test_a_variable_that_cannot_be_read_is_an_error_also_when_no_backend_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"LLM_TIMEOUT.*LLM_TOP_P"):
        await select_backend({"LLM_TIMEOUT": "soon", "LLM_TOP_P": "2"})


async def test_a_wrong_ollama_host_is_passed_over_and_named() -> None:
    found = await select_backend({"OLLAMA_HOST": "http://127.0.0.1:99999999"})
    assert "OLLAMA_HOST" in found.considered[0]


async def test_the_environment_of_the_process_is_read_when_none_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with FakeOllama(model("qwen2.5:1.5b")) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        monkeypatch.setenv("LLM_SEED", "4")
        found = await select_backend()
    assert found.config is not None
    assert (found.config.backend, found.config.seed) == ("ollama", 4)


@pytest.mark.engine
async def test_on_apple_silicon_mlx_is_taken_with_a_model_that_is_there(tmp_path: Path) -> None:
    from tests.support.tiny_mlx import make_tiny_model

    folder = make_tiny_model(tmp_path / "tiny")
    found = await module._mlx({"model": str(folder), "api_base": NOBODY, "seed": "3"}, [], here=True)
    assert isinstance(found, Selection)
    assert found.config is not None
    config = found.config
    assert (config.backend, config.model, config.api_base, config.seed) == ("mlx", str(folder), None, 3)
    assert "is there" in found.reason


async def test_elsewhere_mlx_is_not_taken_by_itself(tmp_path: Path) -> None:
    found = await module._mlx({}, [], here=False)
    assert not isinstance(found, Selection)
    assert "Apple silicon" in found.reason


async def test_mlx_without_its_model_is_passed_over(tmp_path: Path) -> None:
    found = await module._mlx({"model": str(tmp_path / "absent")}, [], here=True)
    assert not isinstance(found, Selection)
    assert "absent" in found.reason or "not installed" in found.reason
