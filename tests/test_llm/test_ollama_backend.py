"""OllamaBackend against recorded replies of a real Ollama 0.32.15."""

from __future__ import annotations

import json
import logging
import math
import time
from typing import Any

import pytest

from llm import LLMConfig, LLMMessage, errors
from llm.backends.ollama import OllamaBackend, OllamaModel
from llm.events import ParameterDropped
from llm.testing import Recorder
from tests.support.chaos_server import ChaosServer
from tests.support.loopback import LoopbackServer
from tests.support.replay_server import ReplayServer, canned, recording

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


ABLE = {
    "capabilities": ["completion", "tools", "thinking"],
    "model_info": {"general.architecture": "llama", "llama.context_length": 2048},
}


def shows(**changes: Any) -> dict[str, Any]:
    return canned("POST", "/api/show", 200, {**ABLE, **changes})


async def test_a_model_that_can_think_is_asked_to_and_is_looked_up_once() -> None:
    async with ReplayServer("chat_nostream", shows()) as server, backend(server.url) as client:
        for _ in range(2):
            await client.generate("Name three fruits.", think=True, stop=["4."])
        await client.generate("Name three fruits.")
        chats = [seen.body for seen in server.seen if seen.path == "/api/chat"]
        assert [seen.path for seen in server.seen].count("/api/show") == 1
    assert [body["think"] for body in chats] == [True, True, False]
    assert chats[0]["options"]["stop"] == ["4."]
    assert "stop" not in chats[2]["options"]


async def test_a_model_that_cannot_think_is_not_asked_to_and_that_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    recorder = Recorder()
    able = shows(capabilities=["completion"])
    async with ReplayServer("chat_nostream", able) as server:
        config = LLMConfig(api_base=server.url, model=MODEL, think=True)
        async with OllamaBackend(config, observers=[recorder]) as client:
            for _ in range(2):
                await client.generate("Name three fruits.")
        assert [s.body["think"] for s in server.seen if s.path == "/api/chat"] == [False, False]
    assert [(e.parameter, e.model) for e in recorder.of(ParameterDropped)] == [("think", MODEL)]  # type: ignore[attr-defined]
    assert [record.getMessage() for record in caplog.records] == [
        f"{MODEL} does not take think: left out of every call"
    ]


@pytest.mark.parametrize("how", ["whole", "stream"])
async def test_a_server_that_does_not_say_what_a_model_can_is_asked_and_its_refusal_remembered(
    how: str,
) -> None:
    name = "chat_nostream" if how == "whole" else "chat_stream"
    nothing = canned("POST", "/api/show", 404, {"error": "model 'm' not found"})
    async with ReplayServer(name) as server, backend(server.url) as client:
        server.play(nothing, "chat_think_true_unsupported")
        for _ in range(2):
            if how == "stream":
                response = await client.stream("Name three fruits.", think=True).collect()
            else:
                response = await client.generate("Name three fruits.", think=True)
            assert response.content == FRUITS
        thinks = [s.body["think"] for s in server.seen if s.path == "/api/chat"]
    assert thinks == [True, False, False]


@pytest.mark.parametrize(
    ("text", "sent"), [("10m", "10m"), ("3600", 3600), ("-1", -1), ("0.5", 0.5), ("0", 0), (" 5m ", "5m")]
)
async def test_how_long_a_model_stays_loaded_is_a_number_where_it_is_one(text: str, sent: object) -> None:
    async with (
        ReplayServer("chat_nostream", "embedm_list") as server,
        backend(server.url, keep_alive=text) as client,
    ):
        await client.generate("Name three fruits.")
        await client.embed(["hello", "a cat on a mat", "a kitten on a rug"])
        assert [seen.body["keep_alive"] for seen in server.seen] == [sent, sent]


async def test_a_model_is_described_as_the_server_says() -> None:
    async with ReplayServer(shows()) as server, backend(server.url) as client:
        able = await client.capabilities()
        assert await client.capabilities() == able
        assert len(server.seen) == 1
    assert (able.model, able.context_length) == (MODEL, 2048)
    assert (able.tools, able.thinking, able.schema, able.chat) == (True, True, True, True)
    assert (able.embedding, able.vision, able.always_thinks) == (False, False, False)


async def test_a_model_that_is_not_there_cannot_be_described() -> None:
    async with ReplayServer() as server, backend(server.url) as client:
        server.play("show_unknown")
        with pytest.raises(errors.ModelNotFound, match="ollama pull"):
            await client.capabilities()


async def test_a_silent_server_describes_nothing_and_that_ends_in_time() -> None:
    async with ChaosServer() as server, backend(f"{server.url}/silent", timeout=0.3) as client:
        with pytest.raises(errors.DeadlineExceeded, match="did not describe"):
            await client.capabilities()


TURNS = [
    LLMMessage("system", "Be brief."),
    LLMMessage("user", "old " * 200),
    LLMMessage("assistant", "yes " * 100),
    LLMMessage("user", "Name three fruits."),
]


async def test_a_prompt_over_the_context_is_refused_unless_it_may_be_trimmed() -> None:
    async with ReplayServer("chat_nostream") as server, backend(server.url) as client:
        server.play("chat_prompt_over_num_ctx_truncate_false")
        with pytest.raises(errors.BadRequest, match="LLM_CONTEXT_LENGTH"):
            await client.chat(TURNS)
        assert len(server.seen) == 1


@pytest.mark.parametrize("how", ["whole", "stream"])
async def test_a_prompt_over_the_context_loses_its_oldest_turns_and_is_sent_again(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    name = "chat_nostream" if how == "whole" else "chat_stream"
    async with ReplayServer(name) as server, backend(server.url, overflow="trim") as client:
        server.play("chat_prompt_over_num_ctx_truncate_false")
        response = await (client.chat(TURNS) if how == "whole" else client.stream_chat(TURNS).collect())
        assert response.content == FRUITS
        first, second = (seen.body["messages"] for seen in server.seen)
    assert len(first) == 4
    assert [m["content"] for m in second] == ["Be brief.", "Name three fruits."]
    assert "LLM_OVERFLOW=trim" in caplog.text


async def test_a_prompt_that_is_refused_at_any_length_is_not_sent_for_ever() -> None:
    async with ReplayServer() as server, backend(server.url, overflow="trim") as client:
        server.play(*["chat_prompt_over_num_ctx_truncate_false"] * 9)
        with pytest.raises(errors.BadRequest, match="LLM_CONTEXT_LENGTH"):
            await client.generate("x" * 8000)
        assert 2 <= len(server.seen) <= 5


OLD = canned("GET", "/api/version", 200, {"version": "0.9.3"})


async def test_an_old_server_that_would_cut_silently_is_not_sent_what_cannot_fit() -> None:
    async with ReplayServer("chat_nostream", OLD) as server:
        async with backend(server.url, context_length=256) as client:
            for _ in range(2):
                with pytest.raises(errors.BadRequest, match="update Ollama"):
                    await client.generate("x" * 9000)
            await client.generate("Name three fruits.")
        paths = [seen.path for seen in server.seen]
    assert paths == ["/api/version", "/api/chat"]


async def test_for_an_old_server_a_long_prompt_is_trimmed_before_it_is_sent() -> None:
    async with (
        ReplayServer("chat_nostream", OLD) as server,
        backend(server.url, context_length=256, overflow="trim") as client,
    ):
        await client.generate("x" * 9000)
        (content,) = (seen.body["messages"][0]["content"] for seen in server.seen if seen.body)
    assert len(content) < 512
    assert "left out" in content


@pytest.mark.parametrize("version", ["version", canned("GET", "/api/version", 200, {"version": "HEAD"})])
async def test_a_new_server_decides_itself_what_is_too_long(version: Any) -> None:
    async with (
        ReplayServer("chat_nostream", version) as server,
        backend(server.url, context_length=256) as client,
    ):
        await client.generate("x" * 9000)
        assert len(server.seen[-1].body["messages"][0]["content"]) == 9000
        assert server.seen[-1].body["truncate"] is False


async def test_texts_become_vectors_of_length_one_in_their_order() -> None:
    texts = ["hello", "a cat on a mat", "a kitten on a rug"]
    async with (
        ReplayServer("embedm_list") as server,
        backend(server.url, embed_model="smollm2-embed:135m") as client,
    ):
        found = await client.embed(texts)
        body = server.seen[0].body
    assert (body["model"], body["input"], body["truncate"]) == ("smollm2-embed:135m", texts, False)
    recorded = json.loads("".join(c["text"] for c in recording("embedm_list")["response"]["chunks"]))
    assert [math.isclose(math.hypot(*vector), 1.0) for vector in found.vectors] == [True] * 3
    assert found.vectors[1] == pytest.approx(recorded["embeddings"][1], abs=1e-6)
    assert (found.model, found.backend) == ("smollm2-embed:135m", "ollama")
    assert found.prompt_tokens == recorded["prompt_eval_count"] > 0


async def test_many_texts_go_in_parts() -> None:
    async with ReplayServer() as server, backend(server.url) as client:
        replies = [[[float(n), 1.0] for n in range(32)], [[99.0, 1.0]] * 8]
        server.play(
            *(canned("POST", "/api/embed", 200, {"embeddings": r, "prompt_eval_count": 5}) for r in replies)
        )
        found = await client.embed([f"text {n}" for n in range(40)])
        assert [len(seen.body["input"]) for seen in server.seen] == [32, 8]
        assert server.seen[1].body["input"][0] == "text 32"
    assert (len(found.vectors), found.prompt_tokens) == (40, 10)


@pytest.mark.parametrize(
    ("name", "expected", "part"),
    [
        ("embed_dimensions", errors.NotSupported, "LLM_EMBED_MODEL"),
        ("embed_unknown_model_nostream", errors.ModelNotFound, "ollama pull"),
        ("embed_over_num_ctx_truncate_false", errors.BadRequest, "context length"),
        (canned("POST", "/api/embed", 200, {"embeddings": [[1.0]]}), errors.BadReply, "1 vectors for 2"),
        (canned("POST", "/api/embed", 200, {"embeddings": [[1], [1, 2]]}), errors.BadReply, "one size"),
        (canned("POST", "/api/embed", 200, {"embeddings": [[0], [0]]}), errors.BadReply, "direction"),
        (canned("POST", "/api/embed", 200, {"embeddings": [["a"], [1]]}), errors.BadReply, "numbers"),
        (canned("POST", "/api/embed", 200, {"embeddings": [[], [1]]}), errors.BadReply, "direction"),
        (canned("POST", "/api/embed", 200, {}), errors.BadReply, "embeddings"),
    ],
)
async def test_vectors_that_cannot_be_had_are_a_typed_error(
    name: Any, expected: type[errors.LLMError], part: str
) -> None:
    async with ReplayServer() as server, backend(server.url) as client:
        server.play(name)
        with pytest.raises(expected, match=part) as caught:
            await client.embed(["one", "two"])
        assert type(caught.value) is expected


async def test_a_model_without_tools_says_so() -> None:
    async with ReplayServer() as server, backend(server.url) as client:
        server.play("chat_tools_unsupported")
        with pytest.raises(errors.NotSupported, match="does not support tools"):
            await client.generate("Hi")
