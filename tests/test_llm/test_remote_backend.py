"""RemoteBackend: OpenAI's wire and Anthropic's, against recorded and made-up replies on loopback."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from llm import LLMConfig, errors
from llm.backends.http import HttpExchange
from llm.backends.remote import RemoteBackend, choose_service, openai_chat
from llm.events import ParameterDropped
from llm.testing import Recorder
from llm.types import Capabilities, LLMMessage, LLMRequest
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


@pytest.mark.parametrize(
    ("base", "url", "headers"),
    [
        ("https://openrouter.ai", "https://openrouter.ai/api/v1", {"X-Title": "askfirst"}),
        ("https://api.groq.com", "https://api.groq.com/openai/v1", {}),
        ("https://api.mistral.ai", "https://api.mistral.ai/v1", {}),
        ("https://api.deepseek.com", "https://api.deepseek.com/v1", {}),
        ("https://router.huggingface.co", "https://router.huggingface.co/v1", {}),
        ("https://api.together.xyz/v1", "https://api.together.xyz/v1", {}),
        ("https://me.openai.azure.com", "https://me.openai.azure.com/openai/v1", {"api-key": KEY}),
        ("http://127.0.0.1:1234", "http://127.0.0.1:1234/v1", {}),
        ("https://groq.com.evil.example", "https://groq.com.evil.example/v1", {}),
    ],
)
def test_a_gateway_is_known_by_its_host(base: str, url: str, headers: dict[str, str]) -> None:
    service = choose_service(LLMConfig(backend="remote", model="m", api_base=base))
    assert service.address.url == url
    bearer = {} if "api-key" in headers else {"Authorization": f"Bearer {KEY}"}
    assert service.gateway.authorization(KEY) == headers | bearer
    assert "Bearer" not in str(service.gateway.authorization(None))


async def sent(model: str, base: str = "", **options: Any) -> dict[str, Any]:
    """The body that a call to a server on loopback gets."""
    path = base or "/v1"
    mount = "/anthropic" if path == "/anthropic" else ""
    message = {"type": "message", "content": [{"type": "text", "text": "hi"}], "stop_reason": "end_turn"}
    async with ReplayServer(
        canned("POST", CHAT, 200, GOOD), canned("POST", "/v1/messages", 200, message), mount=mount
    ) as server:
        config = {name: options.pop(name) for name in ("api_version",) if name in options}
        async with backend(server.origin + path, model=model, **config) as client:
            assert (await client.generate("Hi", **options)).content == "hi"
        body: dict[str, Any] = server.seen[0].body
        return body


async def test_an_open_model_behind_a_server_of_ones_own_is_told_not_to_think() -> None:
    assert (await sent("qwen3"))["chat_template_kwargs"] == {"enable_thinking": False}
    thinking = await sent("qwen3", think="high", stop=["END"])
    assert thinking["chat_template_kwargs"] == {"enable_thinking": True}
    assert (thinking["reasoning_effort"], thinking["stop"]) == ("high", ["END"])


async def test_a_server_that_knows_no_template_switch_is_asked_without_from_then_on() -> None:
    async with ReplayServer(canned("POST", CHAT, 200, GOOD)) as server, backend(f"{server.url}/v1") as client:
        server.play(refusal("Unrecognized request argument supplied: chat_template_kwargs"))
        for _ in range(2):
            await client.generate("Hi")
        assert ["chat_template_kwargs" in seen.body for seen in server.seen] == [True, False, False]


async def test_a_model_that_refuses_an_effort_is_asked_without_and_that_is_said_once() -> None:
    recorder = Recorder()
    async with ReplayServer(canned("POST", CHAT, 200, GOOD)) as server:
        config = LLMConfig(backend="remote", api_base=f"{server.url}/v1", model=MODEL, think="high")
        async with RemoteBackend(config, observers=[recorder]) as client:
            server.play("v1_chat_reasoning_effort_unsupported", refusal("unknown: chat_template_kwargs"))
            for _ in range(2):
                await client.generate("Hi")
        assert "reasoning_effort" not in server.seen[-1].body
    dropped = [event for event in recorder.events if isinstance(event, ParameterDropped)]
    assert [(event.backend, event.model, event.parameter) for event in dropped] == [
        ("remote", MODEL, "think")
    ]


@pytest.mark.parametrize(
    ("model", "think", "extra"),
    [
        ("claude-3-7-sonnet", False, {}),
        (
            "claude-3-7-sonnet",
            "low",
            {"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 1536},
        ),
        (
            "claude-sonnet-4-5",
            True,
            {"thinking": {"type": "enabled", "budget_tokens": 4096}, "max_tokens": 4608},
        ),
        ("claude-opus-4-6", True, {"thinking": {"type": "adaptive"}}),
        (
            "claude-opus-4-6",
            "high",
            {"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}},
        ),
        ("claude-sonnet-5", False, {}),
        ("claude-opus-5-5", False, {"output_config": {"effort": "low"}}),
        ("claude-opus-5-5", "medium", {"output_config": {"effort": "medium"}}),
        ("claude-opus-5-5", True, {}),
        ("claude-3-haiku", True, {}),
    ],
)
async def test_each_claude_is_asked_to_think_in_its_own_way(
    model: str, think: Any, extra: dict[str, Any]
) -> None:
    body = await sent(model, "/anthropic", think=think)
    keys = ("thinking", "output_config", "max_tokens")
    assert {key: body[key] for key in keys if key in body} == {"max_tokens": 512} | extra
    if "thinking" in extra:
        assert not {"temperature", "top_p"} & set(body)


async def test_the_newer_version_of_anthropics_api_gets_no_sampling_parameters_at_all() -> None:
    old = await sent("claude-3-haiku", "/anthropic", temperature=0.5)
    new = await sent("claude-3-haiku", "/anthropic", temperature=0.5, api_version="2026-10-21")
    assert old["temperature"] == 0.5
    assert not {"temperature", "top_p", "top_k"} & set(new)


async def test_the_version_of_the_configuration_is_the_one_that_is_named() -> None:
    async with ReplayServer("anthropic_messages", mount="/anthropic") as server:
        async with backend(server.url, api_version="2026-10-21") as client:
            await client.generate("Name three fruits.")
        assert server.seen[0].headers["anthropic-version"] == "2026-10-21"


def test_a_version_that_is_no_date_is_refused() -> None:
    with pytest.raises(errors.ConfigurationError, match="LLM_API_VERSION"):
        backend(None, api_version="latest")


async def test_texts_that_stop_an_anthropic_model_go_by_their_name() -> None:
    assert (await sent("claude-3-haiku", "/anthropic", stop=["END"]))["stop_sequences"] == ["END"]


@pytest.mark.parametrize(
    ("model", "base", "expected"),
    [
        ("gpt-4", None, {"schema": False, "tools": True, "thinking": False, "context_length": 8192}),
        ("gpt-4o-mini", None, {"schema": True, "tools": True, "context_length": 128_000}),
        ("o3", None, {"thinking": True, "always_thinks": True, "sampling": frozenset()}),
        ("gpt-5.1", None, {"thinking": True, "always_thinks": False, "context_length": 400_000}),
        ("text-embedding-3-small", None, {"embedding": True, "chat": False, "tools": False}),
        ("new-model", None, {"schema": False, "context_length": None}),
        ("claude-opus-5-5", None, {"schema": True, "always_thinks": True, "sampling": frozenset()}),
        ("claude-3-haiku", None, {"schema": False, "tools": True, "thinking": False}),
        ("qwen3", "http://127.0.0.1:8000", {"schema": False, "tools": False, "context_length": None}),
        ("gpt-4o", "https://gate.example/v1", {"schema": False, "tools": False, "context_length": None}),
        ("any", "https://api.groq.com", {"tools": True, "schema": False}),
    ],
)
async def test_what_a_model_can_is_told_by_its_name_and_cautiously_without(
    model: str, base: str | None, expected: dict[str, Any]
) -> None:
    able = await backend(base, model=model).capabilities()
    assert isinstance(able, Capabilities)
    assert able.model == model
    assert {name: getattr(able, name) for name in expected} == expected


async def test_a_recorded_vector_is_read_and_made_one_long() -> None:
    async with (
        ReplayServer("v1_embeddings_ok") as server,
        backend(f"{server.url}/v1", embed_model="smollm2-embed:135m") as client,
    ):
        found = await client.embed(["hello"])
        assert server.seen[0].body == {"model": "smollm2-embed:135m", "input": ["hello"]}
    assert abs(sum(number * number for number in found.vectors[0]) - 1.0) < 1e-9
    assert found.prompt_tokens > 0


async def test_vectors_are_put_in_the_order_of_their_texts() -> None:
    data = [{"index": 1, "embedding": [0, 3]}, {"index": 0, "embedding": [2, 0]}]
    reply = canned("POST", "/v1/embeddings", 200, {"data": data, "usage": {"prompt_tokens": 4}})
    async with ReplayServer(reply) as server, backend(f"{server.url}/v1") as client:
        found = await client.embed(["one", "two"])
    assert found.vectors == ((1.0, 0.0), (0.0, 1.0))
    assert found.dimensions == 2


@pytest.mark.parametrize(
    ("data", "part"),
    [
        ([{"embedding": [1.0]}], "1 vectors for 2"),
        ([{"index": 0, "embedding": [1]}, {"index": 0, "embedding": [1]}], "not numbered"),
        ([{"index": 0, "embedding": "AAAA"}, {"index": 1, "embedding": [1]}], "must be a list"),
        (None, "data must be a list"),
    ],
)
async def test_vectors_of_another_shape_are_a_bad_reply(data: Any, part: str) -> None:
    reply = canned("POST", "/v1/embeddings", 200, {"data": data})
    async with ReplayServer(reply) as server, backend(f"{server.url}/v1") as client:
        with pytest.raises(errors.BadReply, match=part):
            await client.embed(["one", "two"])


async def test_a_server_or_service_without_vectors_says_so() -> None:
    async with ReplayServer() as server:
        server.play("v1_embeddings")
        async with backend(f"{server.url}/v1") as client:
            with pytest.raises(errors.NotSupported, match="does not support embeddings"):
                await client.embed(["hello"])
        async with backend(f"{server.url}/anthropic") as client:
            with pytest.raises(errors.NotSupported, match="Anthropic"):
                await client.embed(["hello"])


LONG = "This model's maximum context length is 256 tokens. However, your messages resulted in 900 tokens."


@pytest.mark.parametrize("how", ["whole", "stream"])
async def test_a_prompt_that_is_too_long_is_shortened_if_it_may_be(how: str) -> None:
    turns = [LLMMessage("user", "old " * 300), LLMMessage("assistant", "ok"), LLMMessage("user", "new")]
    async with ReplayServer("v1_chat_stream_usage") as server:
        async with backend(f"{server.url}/v1") as client:
            server.play(refusal(LONG))
            with pytest.raises(errors.BadRequest, match="context length"):
                await client.chat(turns)
        async with backend(f"{server.url}/v1", overflow="trim") as client:
            server.play(refusal(LONG))
            if how == "stream":
                await client.stream_chat(turns).collect()
            else:
                server.play(canned("POST", CHAT, 200, GOOD))
                await client.chat(turns)
        assert [len(seen.body["messages"]) for seen in server.seen] == [3, 3, 1]
