"""OllamaBackend against recorded replies of a real Ollama 0.32.15."""

from __future__ import annotations

import time

import pytest

from llm import LLMConfig, LLMMessage, errors
from llm.backends.ollama import OllamaBackend, OllamaModel
from tests.support.chaos_server import ChaosServer
from tests.support.loopback import LoopbackServer
from tests.support.replay_server import ReplayServer, canned

MODEL = "smollm2:135m"
FRUITS = "1. Bananas\n2. Oranges\n3. Grapes"


def backend(base: str, **changes: object) -> OllamaBackend:
    values: dict[str, object] = {"api_base": base, "model": MODEL, "temperature": 0.0, "timeout": 5.0}
    return OllamaBackend(LLMConfig.from_mapping({**values, **changes}))


async def test_a_prompt_is_answered_with_its_counts() -> None:
    async with ReplayServer("chat_nostream") as server, backend(server.url) as client:
        response = await client.generate("Name three fruits.", "Be brief.", seed=1, max_tokens=24)
        sent = server.seen[0].body
    assert str(response) == FRUITS
    assert (response.model, response.backend, response.finish_reason) == (MODEL, "ollama", "stop")
    assert (response.prompt_tokens, response.completion_tokens, response.tokens_used) == (13, 15, 28)
    assert response.latency > 0
    assert [m["role"] for m in sent["messages"]] == ["system", "user"]
    assert sent["options"] == {
        "temperature": 0.0,
        "top_p": 0.9,
        "seed": 1,
        "num_predict": 24,
        "num_ctx": 4096,
    }


async def test_a_conversation_is_sent_as_it_is() -> None:
    turns = [LLMMessage("user", "Hi"), LLMMessage("assistant", "Hello"), LLMMessage("user", "Fruits?")]
    async with ReplayServer("chat_nostream") as server, backend(server.url) as client:
        await client.chat(turns)
        assert [m["content"] for m in server.seen[0].body["messages"]] == ["Hi", "Hello", "Fruits?"]


async def test_a_schema_constrains_the_reply() -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    async with ReplayServer("chat_format_schema") as server, backend(server.url) as client:
        response = await client.generate("Tell me about Paris as JSON.", schema=schema)
        assert server.seen[0].body["format"] == schema
    assert isinstance(response.json(), dict)


async def test_a_base_that_ends_in_v1_means_the_same_server() -> None:
    async with ReplayServer("chat_nostream") as server, backend(f"{server.url}/v1") as client:
        assert (await client.generate("Name three fruits.")).content == FRUITS


async def test_ollama_host_says_where_the_server_is(monkeypatch: pytest.MonkeyPatch) -> None:
    async with ReplayServer("chat_nostream") as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url.replace("http://127.0.0.1", "0.0.0.0"))
        async with OllamaBackend(LLMConfig(model=MODEL)) as client:
            assert (await client.generate("Name three fruits.")).content == FRUITS


async def test_a_key_meant_for_another_service_is_not_sent_to_a_local_server() -> None:
    async with (
        ReplayServer("chat_nostream") as server,
        backend(server.url, api_key="sk-0123456789") as client,
    ):
        await client.generate("Name three fruits.")
        assert "authorization" not in server.seen[0].headers


@pytest.mark.parametrize(
    ("name", "expected", "part"),
    [
        ("chat_unknown_model_nostream", errors.ModelNotFound, "ollama pull smollm2:135m"),
        ("chat_runner_killed_nostream", errors.ServerError, "unexpected EOF"),
        ("chat_queue_full_503", errors.ServerError, "server busy"),
        ("chat_prompt_over_num_ctx_truncate_false", errors.BadRequest, "LLM_CONTEXT_LENGTH (now 4096)"),
        ("chat_format_bad_schema_stream", errors.BadRequest, "schema conversion failed"),
        ("chat_cloud_model_cloud_disabled", errors.AuthenticationFailed, "cloud is disabled"),
        ("chat_load_empty_messages", errors.BadReply, "loaded the model"),
        ("chat_runner_killed_midstream", errors.BadReply, "not valid JSON"),
        ("method_wrong", errors.BadRequest, "method not allowed"),
    ],
)
async def test_what_ollama_refuses_is_a_typed_error_that_names_the_way_out(
    name: str, expected: type[errors.LLMError], part: str
) -> None:
    async with ReplayServer() as server, backend(server.url) as client:
        server.play(name)
        with pytest.raises(expected) as caught:
            await client.generate("Name three fruits.")
        assert type(caught.value) is expected
        assert part in str(caught.value)
        assert client.get_stats()["errors"] == 1


async def test_a_server_that_is_no_ollama_is_a_bad_request_about_the_address() -> None:
    async with ReplayServer() as server, backend(server.url) as client:
        with pytest.raises(errors.BadRequest, match="LLM_API_BASE"):
            await client.generate("Hi")


@pytest.mark.parametrize(
    ("model", "healthy"),
    [(MODEL, True), ("SmolLM2:135M", True), ("smollm2", False), ("nope:1b", False)],
)
async def test_a_server_is_healthy_if_it_has_the_model(model: str, *, healthy: bool) -> None:
    async with ReplayServer("version", "tags") as server, backend(server.url, model=model) as client:
        assert await client.health_check() is healthy
        assert [seen.path for seen in server.seen] == ["/api/version", "/api/tags"]


async def test_a_model_without_a_tag_is_the_latest() -> None:
    tags = canned("GET", "/api/tags", 200, {"models": [{"name": "mistral:latest", "size": 1}]})
    async with ReplayServer("version", tags) as server, backend(server.url, model="mistral") as client:
        assert await client.health_check()


@pytest.mark.parametrize(
    "behaviour", ["silent", "reset", "garbage", "null", "redirect", "status_500", "endless"]
)
async def test_the_health_of_a_misbehaving_server_is_false_in_time(behaviour: str) -> None:
    async with ChaosServer() as server, backend(f"{server.url}/{behaviour}", timeout=1.0) as client:
        started = time.monotonic()
        assert await client.health_check() is False
        assert time.monotonic() - started < 6.0


async def test_the_health_of_an_absent_server_and_of_a_closed_client_is_false() -> None:
    async with LoopbackServer() as gone:
        base = gone.url
    client = backend(base)
    assert await client.health_check() is False
    await client.aclose()
    assert await client.health_check() is False


async def test_the_models_are_listed_with_what_they_can() -> None:
    async with ReplayServer("tags_all_models") as server, backend(server.url) as client:
        models = await client.list_models()
    assert (
        OllamaModel(name="smollm2-tools:135m", size=98364126, capabilities=("completion", "tools")) in models
    )


async def test_listing_the_models_of_a_silent_server_ends_in_time() -> None:
    async with ChaosServer() as server, backend(f"{server.url}/silent", timeout=0.5) as client:
        with pytest.raises(errors.DeadlineExceeded, match="did not list"):
            await client.list_models()


async def test_listing_the_models_of_something_else_is_a_bad_reply_that_names_it() -> None:
    tags = canned("GET", "/api/tags", 200, {"models": "none"})
    async with ReplayServer(tags) as server, backend(server.url) as client:
        with pytest.raises(errors.BadReply, match=server.url):
            await client.list_models()
