"""RemoteBackend: OpenAI's wire and Anthropic's, against recorded and made-up replies on loopback."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from llm import LLMConfig, errors
from llm.backends.http import HttpExchange
from llm.backends.remote import RemoteBackend, choose_service, openai_chat
from llm.types import LLMMessage, LLMRequest
from tests.support.chaos_server import ChaosServer
from tests.support.replay_server import ReplayServer, canned

KEY = "sk-test-0123456789abcdef"
MODEL = "smollm2:135m"
CHAT = "/v1/chat/completions"
GOOD = {"model": "m", "choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]}
SCHEMA = {"type": "object", "properties": {"fits": {"type": "boolean"}}, "required": ["fits"]}


def backend(base: str | None, **changes: Any) -> RemoteBackend:
    values = {"backend": "remote", "api_base": base, "model": MODEL, "api_key": KEY, "timeout": 5.0}
    return RemoteBackend(LLMConfig(**{**values, **changes}))


def refusal(message: str) -> dict[str, Any]:
    return canned("POST", CHAT, 400, {"error": {"message": message, "type": "invalid_request_error"}})


@pytest.mark.parametrize(
    ("model", "base", "url", "anthropics"),
    [
        ("gpt-4", None, "https://api.openai.com/v1", False),
        ("gpt-3.5-turbo", None, "https://api.openai.com/v1", False),
        ("claude-3-opus", None, "https://api.anthropic.com/v1", True),
        ("anthropic/claude-opus-5-5", None, "https://api.anthropic.com/v1", True),
        ("gpt-4", "https://api.openai.com", "https://api.openai.com/v1", False),
        ("claude-3-opus", "https://api.anthropic.com", "https://api.anthropic.com/v1", True),
        ("any", "https://api.anthropic.com/v1/messages", "https://api.anthropic.com/v1", True),
        ("anthropic/claude-3-opus", "https://openrouter.ai/api/v1", "https://openrouter.ai/api/v1", False),
        ("claude-3-opus", "http://127.0.0.1:4000/v1/", "http://127.0.0.1:4000/v1", False),
        ("m", "http://127.0.0.1:8080", "http://127.0.0.1:8080/v1", False),
        ("m", "http://127.0.0.1:8080/v1/chat/completions", "http://127.0.0.1:8080/v1", False),
        ("m", "https://gate.example/anthropic", "https://gate.example/anthropic/v1", True),
        ("m", "https://gate.example/anthropic/v1", "https://gate.example/anthropic/v1", True),
        ("m", "https://anthropic.com.evil.example/v1", "https://anthropic.com.evil.example/v1", False),
    ],
)
def test_the_service_follows_from_the_base_or_the_models_name(
    model: str, base: str | None, url: str, *, anthropics: bool
) -> None:
    service = choose_service(LLMConfig(backend="remote", model=model, api_base=base))
    assert (service.address.url, service.speaks_anthropic) == (url, anthropics)


async def test_an_openai_compatible_server_is_asked_with_the_key() -> None:
    async with ReplayServer("v1_chat_natural_stop") as server, backend(f"{server.url}/v1") as client:
        response = await client.generate("Say hi.", "Be kind.", temperature=0.0, max_tokens=200)
        seen = server.seen[0]
    assert response.content.startswith("Hello there.")
    assert (response.backend, response.model, response.tokens_used) == ("remote", MODEL, 45)
    assert seen.headers["authorization"] == f"Bearer {KEY}"
    assert seen.body["temperature"] == 0.0
    assert seen.body["max_tokens"] == 200


async def test_an_anthropic_server_is_asked_its_own_way() -> None:
    async with (
        ReplayServer("anthropic_messages", mount="/anthropic") as server,
        backend(server.url) as client,
    ):
        response = await client.generate("Name three fruits.", "Be brief.", max_tokens=24)
        seen = server.seen[0]
    assert response.content == "1. Bananas\n2. Oranges\n3. Grapes"
    assert (response.prompt_tokens, response.completion_tokens) == (13, 15)
    assert seen.path == "/anthropic/v1/messages"
    assert seen.headers["x-api-key"] == KEY
    assert seen.headers["anthropic-version"] == "2023-06-01"
    assert "authorization" not in seen.headers
    assert seen.body["system"] == "Be brief."


async def test_a_local_gateway_needs_no_key() -> None:
    async with ReplayServer("v1_chat_natural_stop", "v1_models") as server:
        async with backend(f"{server.url}/v1", api_key=None) as client:
            await client.generate("Say hi.")
            assert await client.health_check()
        assert not any("authorization" in seen.headers for seen in server.seen)


@pytest.mark.parametrize("model", ["gpt-4", "claude-3-opus"])
async def test_a_vendor_without_a_key_is_not_even_asked(model: str) -> None:
    async with backend(None, model=model, api_key=None) as client:
        with pytest.raises(errors.AuthenticationFailed, match="LLM_API_KEY"):
            await client.generate("Hi")
        assert await client.health_check() is False


def test_a_key_over_clear_text_to_the_internet_is_refused_at_once() -> None:
    with pytest.raises(errors.ConfigurationError, match="clear text") as caught:
        backend("http://api.example.com/v1")
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "expected", "part"),
    [
        ("v1_chat_unknown_model", errors.ModelNotFound, "LLM_MODEL"),
        ("v1_chat_queue_full_503", errors.ServerError, "server busy"),
        ("v1_chat_runner_killed_nostream", errors.ServerError, "unexpected EOF"),
        ("v1_chat_bad_schema", errors.BadRequest, "schema conversion failed"),
        ("v1_chat_empty_messages", errors.BadRequest, "messages"),
        ("v1_chat_thinking_model", errors.BadReply, "LLM_MAX_TOKENS"),
        ("v1_unknown_path", errors.BadRequest, "LLM_API_BASE"),
    ],
)
async def test_what_an_openai_compatible_server_refuses_is_a_typed_error(
    name: str, expected: type[errors.LLMError], part: str
) -> None:
    async with ReplayServer() as server, backend(f"{server.url}/v1") as client:
        server.play(name)
        with pytest.raises(expected) as caught:
            await client.generate("Hi", schema=SCHEMA)
        assert type(caught.value) is expected
        assert part in str(caught.value)
        assert len(server.seen) == 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [("anthropic_unknown_model", errors.ModelNotFound), ("anthropic_missing_max_tokens", errors.BadRequest)],
)
async def test_what_an_anthropic_server_refuses_is_a_typed_error(
    name: str, expected: type[errors.LLMError]
) -> None:
    async with ReplayServer(mount="/anthropic") as server, backend(server.url) as client:
        server.play(name)
        with pytest.raises(expected) as caught:
            await client.generate("Hi")
        assert type(caught.value) is expected


async def test_a_used_up_quota_is_told_from_a_busy_moment() -> None:
    spent = {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}
    busy = {"error": {"message": "Slow down", "code": "rate_limit_exceeded"}}
    async with ReplayServer() as server, backend(f"{server.url}/v1") as client:
        server.play(canned("POST", CHAT, 429, spent), canned("POST", CHAT, 429, busy, {"Retry-After": "7"}))
        with pytest.raises(errors.RateLimited, match="quota") as first:
            await client.generate("Hi")
        with pytest.raises(errors.RateLimited) as second:
            await client.generate("Hi")
    assert (first.value.quota, second.value.quota) == (True, False)
    assert second.value.retry_after == 7.0


async def test_a_parameter_that_the_model_refuses_is_left_out_from_then_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    async with ReplayServer(canned("POST", CHAT, 200, GOOD)) as server, backend(f"{server.url}/v1") as client:
        server.play(
            refusal("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."),
            refusal("Unsupported value: 'temperature' does not support 0.2 with this model."),
        )
        for _ in range(2):
            assert (await client.generate("Hi", temperature=0.2, max_tokens=9)).content == "hi"
    tried = [
        (set(seen.body) & {"max_tokens", "max_completion_tokens", "temperature"}) for seen in server.seen
    ]
    assert tried == [
        {"max_tokens", "temperature"},
        {"max_completion_tokens", "temperature"},
        {"max_completion_tokens"},
        {"max_completion_tokens"},
    ]
    assert server.seen[-1].body["max_completion_tokens"] == 9
    assert [record.getMessage() for record in caplog.records] == [
        f"{MODEL} does not take temperature: left out of every call"
    ]


async def test_a_server_that_refuses_both_names_of_a_limit_is_not_asked_for_ever() -> None:
    async with ReplayServer() as server, backend(f"{server.url}/v1") as client:
        server.play(*[refusal("max_tokens and max_completion_tokens are not supported")] * 9)
        with pytest.raises(errors.BadRequest):
            await client.generate("Hi")
        assert len(server.seen) == 2


async def test_a_server_that_knows_no_schemas_has_it_told_in_words() -> None:
    fits = {"choices": [{"message": {"content": '```json\n{"fits": true}\n```'}, "finish_reason": "stop"}]}
    async with ReplayServer(canned("POST", CHAT, 200, fits)) as server, backend(f"{server.url}/v1") as client:
        server.play(refusal("'response_format' of type 'json_schema' is not supported with this model."))
        response = await client.generate("Does it fit?", schema=SCHEMA)
        assert "response_format" not in server.seen[1].body
        assert '"fits"' in server.seen[1].body["messages"][0]["content"]
    assert response.json() == {"fits": True}


async def test_the_health_of_a_service_is_that_it_lists_its_models_for_the_key() -> None:
    async with ReplayServer("v1_models") as server, backend(f"{server.url}/v1") as client:
        assert await client.health_check()
        assert server.seen[0].headers["authorization"] == f"Bearer {KEY}"


async def test_the_health_of_an_anthropic_service_is_asked_its_own_way() -> None:
    async with ReplayServer("v1_models", mount="/anthropic") as server, backend(server.url) as client:
        assert await client.health_check()
        assert server.seen[0].path == "/anthropic/v1/models"
        assert server.seen[0].headers["x-api-key"] == KEY


@pytest.mark.parametrize("behaviour", ["silent", "status_401", "reset", "login_page", "redirect"])
async def test_the_health_of_a_misbehaving_service_is_false(behaviour: str) -> None:
    async with ChaosServer() as server, backend(f"{server.url}/{behaviour}", timeout=1.0) as client:
        assert await client.health_check() is False


async def test_an_engine_of_our_own_is_asked_through_the_same_function() -> None:
    request = LLMRequest(
        messages=(LLMMessage("user", "Say hi."),), model=MODEL, temperature=0.0, max_tokens=9, top_p=None
    )
    async with ReplayServer("v1_chat_natural_stop") as server:
        exchange = HttpExchange(LLMConfig())
        response = await openai_chat(exchange, request, base=f"{server.url}/v1/", key=KEY, backend="llamacpp")
        await exchange.aclose()
        assert server.seen[0].path == CHAT
        assert server.seen[0].headers["authorization"] == f"Bearer {KEY}"
    assert response.backend == "llamacpp"
    assert response.content.startswith("Hello there.")


async def test_a_reply_of_another_shape_names_the_server() -> None:
    odd = canned("POST", CHAT, 200, {"choices": {}})
    async with ReplayServer(odd) as server, backend(f"{server.url}/v1") as client:
        with pytest.raises(errors.BadReply, match=f"{server.url}: the reply's choices"):
            await client.generate("Hi")
