"""Ollama's JSON: what is sent, and what its recorded replies become."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.errors import BadReply
from llm.types import LLMMessage, LLMRequest, LLMResponse
from llm.wire.ollama import OllamaModel, chat_body, read_chat, read_models, same_model
from tests.support.replay_server import recording

REQUEST = LLMRequest(
    messages=(LLMMessage("system", "Be brief."), LLMMessage("user", "Name three fruits.")),
    model="smollm2:135m",
    temperature=0.0,
    max_tokens=24,
    top_p=0.9,
    seed=1,
)
GOOD: dict[str, Any] = {"model": "m", "message": {"content": "hi"}, "done": True, "done_reason": "stop"}


def replayed(name: str) -> LLMResponse:
    return read_chat(json.loads(recording(name)["response"]["body"]), REQUEST, backend="ollama")


def test_a_request_is_one_answer_without_thinking_or_silent_cutting() -> None:
    assert chat_body(REQUEST, num_ctx=4096) == {
        "model": "smollm2:135m",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Name three fruits."},
        ],
        "stream": False,
        "think": False,
        "truncate": False,
        "options": {"temperature": 0.0, "top_p": 0.9, "seed": 1, "num_predict": 24, "num_ctx": 4096},
    }


def test_what_is_left_to_the_model_is_not_sent_and_temperature_zero_is() -> None:
    left = replace(REQUEST, temperature=None, top_p=None, seed=None)
    assert chat_body(left, num_ctx=512)["options"] == {"num_predict": 24, "num_ctx": 512}
    assert chat_body(REQUEST, num_ctx=512)["options"]["temperature"] == 0.0


def test_a_schema_is_sent_as_format() -> None:
    schema = {"type": "object", "properties": {"fits": {"type": "boolean"}}}
    assert chat_body(replace(REQUEST, schema=schema), num_ctx=512)["format"] == schema


@pytest.mark.parametrize(
    ("model", "think"), [("gpt-oss:20b", "low"), ("someone/gpt-oss", "low"), ("qwen3:1.7b", False)]
)
def test_a_family_that_always_thinks_is_asked_to_think_little(model: str, think: object) -> None:
    assert chat_body(replace(REQUEST, model=model), num_ctx=512)["think"] == think


@pytest.mark.parametrize(
    ("name", "content", "reason", "prompt", "completion"),
    [
        ("chat_nostream", "1. Bananas\n2. Oranges\n3. Grapes", "stop", 13, 15),
        ("chat_think_false", "1. Bananas\n2. Or", "length", 13, 8),
        ("chat_think_supported_false", "1. Bananas\n2. Oranges\n3. Grapes", "stop", 13, 15),
    ],
)
def test_recorded_answers_are_read(
    name: str, content: str, reason: str, prompt: int, completion: int
) -> None:
    response = replayed(name)
    assert (response.content, response.finish_reason) == (content, reason)
    assert (response.prompt_tokens, response.completion_tokens) == (prompt, completion)
    assert response.backend == "ollama"


def test_a_recorded_answer_to_a_schema_is_json() -> None:
    assert isinstance(replayed("chat_format_schema").json(), dict)


def test_counters_that_ollama_leaves_out_are_zero() -> None:
    response = read_chat(GOOD, REQUEST, backend="ollama")
    assert (response.prompt_tokens, response.completion_tokens, response.tokens_used) == (0, 0, 0)


@pytest.mark.parametrize("reason", [None, ""])
def test_a_finished_reply_without_a_reason_ended_by_itself(reason: str | None) -> None:
    assert read_chat({**GOOD, "done_reason": reason}, REQUEST, backend="ollama").finish_reason == "stop"
    assert read_chat({**GOOD, "done_reason": "new word"}, REQUEST, backend="ollama").finish_reason == "other"


def test_a_model_that_was_only_loaded_did_not_answer() -> None:
    with pytest.raises(BadReply, match="loaded the model"):
        replayed("chat_load_empty_messages")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"done": False}, "not finished"),
        ({"done": None}, "not finished"),
        ({"done": 1}, "not finished"),
        ({"message": None}, "message must be an object"),
        ({"message": {"content": None}}, "message.content must be text"),
        ({"message": {"content": ["hi"]}}, "message.content must be text"),
        ({"message": {"content": "", "thinking": "hmm"}}, "LLM_MAX_TOKENS"),
        ({"message": {"content": ""}, "done_reason": "length"}, "LLM_MAX_TOKENS"),
        ({"done_reason": {}}, None),
        ({"done_reason": {"a": 1}}, "done_reason must be text"),
        ({"eval_count": -3}, "eval_count"),
        ({"prompt_eval_count": "12"}, "prompt_eval_count"),
    ],
)
def test_a_reply_of_another_shape_is_a_bad_reply(change: dict[str, Any], fault: str | None) -> None:
    if fault is None:
        assert read_chat({**GOOD, **change}, REQUEST, backend="ollama").content == "hi"
        return
    with pytest.raises(BadReply, match=fault):
        read_chat({**GOOD, **change}, REQUEST, backend="ollama")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from([*GOOD, "eval_count", "models"]), JSON) | JSON)
def test_whatever_a_server_says_is_an_answer_or_a_bad_reply(payload: Any) -> None:
    for read in (lambda: read_chat(payload, REQUEST, backend="ollama"), lambda: read_models(payload)):
        with suppress(BadReply):  # and nothing else
            read()


def test_recorded_models_are_listed_with_size_and_capabilities() -> None:
    response = recording("tags_all_models")["response"]
    models = read_models(json.loads("".join(chunk["text"] for chunk in response["chunks"])))
    assert (
        OllamaModel(name="smollm2-think:135m", size=98363020, capabilities=("completion", "thinking"))
        in models
    )
    assert read_models(json.loads(recording("create_01_tags_empty")["response"]["body"])) == []


def test_an_older_server_does_not_say_what_a_model_can() -> None:
    listed = read_models({"models": [{"name": "m:latest", "size": None}]})
    assert listed == [OllamaModel(name="m:latest", size=0, capabilities=None)]


@pytest.mark.parametrize(
    ("wanted", "name", "same"),
    [
        ("qwen2.5:1.5b", "qwen2.5:1.5b", True),
        ("Qwen2.5:1.5B", "qwen2.5:1.5b", True),
        ("mistral", "mistral:latest", True),
        ("mistral", "mistral:7b", False),
        ("hub:5000/me/mistral", "hub:5000/me/mistral:latest", True),
        ("mistral:7b", "mistral:latest", False),
    ],
)
def test_a_name_without_a_tag_means_latest(wanted: str, name: str, *, same: bool) -> None:
    assert same_model(wanted, name) is same
