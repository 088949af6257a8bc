"""Chat completions: what is sent to whom, and what recorded and made-up replies become."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.errors import BadReply
from llm.types import LLMMessage, LLMRequest, LLMResponse, ToolCall
from llm.wire.gateways import gateway_of
from llm.wire.openai import chat_body, read_chat, takes
from llm.wire.takes import Takes
from tests.support.replay_server import recording

EVERY = ("temperature", "top_p", "seed", "stop", "think")
REQUEST = LLMRequest(
    messages=(LLMMessage("user", "Name three fruits."),),
    model="gpt-4o-mini",
    temperature=0.0,
    max_tokens=24,
    top_p=0.9,
    seed=1,
)
SCHEMA = {"type": "object", "properties": {"fits": {"type": "boolean"}}}
STRICT = {**SCHEMA, "required": ["fits"], "additionalProperties": False}


def reply(message: dict[str, Any], reason: str | None = "stop", **rest: Any) -> dict[str, Any]:
    return {"choices": [{"message": message, "finish_reason": reason}], **rest}


def read(payload: Any, request: LLMRequest = REQUEST) -> LLMResponse:
    return read_chat(payload, request, backend="remote")


def test_a_request_holds_what_the_model_takes() -> None:
    assert chat_body(REQUEST, Takes()) == {
        "model": "gpt-4o-mini",
        "stream": False,
        "max_tokens": 24,
        "messages": [{"role": "user", "content": "Name three fruits."}],
        "temperature": 0.0,
        "top_p": 0.9,
        "seed": 1,
    }


@pytest.mark.parametrize(
    ("model", "sent", "unsent"),
    [
        ("gpt-4", {"max_tokens", "temperature", "top_p", "seed"}, {"max_completion_tokens"}),
        ("gpt-5", {"max_completion_tokens"}, {"max_tokens", "temperature", "top_p", "seed"}),
        ("gpt-5.1-mini", {"max_completion_tokens"}, {"max_tokens", "temperature"}),
        ("gpt-5-chat-latest", {"max_completion_tokens", "temperature"}, {"max_tokens"}),
        ("o1", {"max_completion_tokens"}, {"max_tokens", "temperature"}),
        ("o3-mini", {"max_completion_tokens"}, {"max_tokens", "temperature"}),
        ("ft:gpt-4o-mini:us", {"max_tokens", "temperature"}, {"max_completion_tokens"}),
    ],
)
def test_openai_is_sent_what_each_of_its_families_takes(model: str, sent: set[str], unsent: set[str]) -> None:
    body = chat_body(replace(REQUEST, model=model), takes(model, vendor=True))
    assert sent <= set(body)
    assert not unsent & set(body)


@pytest.mark.parametrize("model", ["o3-mini", "gpt-5", "gpt-4", "openai/gpt-5"])
def test_nothing_is_concluded_from_a_name_at_another_server(model: str) -> None:
    assert takes(model, vendor=False) == Takes()


@pytest.mark.parametrize(
    "model", ["gpt-4", "gpt-4-0613", "gpt-4-turbo", "gpt-3.5-turbo", "gpt-4o-2024-05-13"]
)
def test_a_model_older_than_schemas_is_told_its_schema_in_words(model: str) -> None:
    body = chat_body(replace(REQUEST, model=model, schema=SCHEMA), takes(model, vendor=True))
    assert "response_format" not in body
    assert '"fits"' in body["messages"][0]["content"]
    assert body["messages"][0]["role"] == "system"


def test_a_schema_is_sent_strict_with_a_name() -> None:
    body = chat_body(replace(REQUEST, schema=SCHEMA), Takes())
    described = {"name": "reply", "strict": True, "schema": STRICT}
    assert body["response_format"] == {"type": "json_schema", "json_schema": described}


def test_a_schema_with_free_keys_is_sent_as_it_is_and_not_strict() -> None:
    free = {"type": "object", "additionalProperties": {"type": "string"}}
    described = chat_body(replace(REQUEST, schema=free), Takes())["response_format"]["json_schema"]
    assert described == {"name": "reply", "strict": False, "schema": free}


def test_where_both_are_too_many_the_temperature_is_sent() -> None:
    body = chat_body(REQUEST, Takes(both=False))
    assert "temperature" in body
    assert "top_p" not in body


@pytest.mark.parametrize(
    ("name", "start", "reason", "prompt", "completion"),
    [
        ("v1_chat_natural_stop", "Hello there.", "stop", 12, 33),
        ("v1_chat_json_schema", '{\n  "city": "Paris"', "stop", 16, 27),
    ],
)
def test_recorded_answers_are_read(name: str, start: str, reason: str, prompt: int, completion: int) -> None:
    response = read(json.loads(recording(name)["response"]["body"]))
    assert response.content.startswith(start)
    assert (response.finish_reason, response.prompt_tokens, response.completion_tokens) == (
        reason,
        prompt,
        completion,
    )


def test_a_recorded_reply_of_reasoning_alone_says_what_to_raise() -> None:
    with pytest.raises(BadReply, match="LLM_MAX_TOKENS"):
        read(json.loads(recording("v1_chat_thinking_model")["response"]["body"]))


def test_a_recorded_reply_of_a_tool_call_alone_is_an_answer() -> None:
    response = read(json.loads(recording("v1_chat_tool_call")["response"]["body"]))
    assert (response.content, response.finish_reason) == ("", "tool_calls")
    assert response.tool_calls == (ToolCall("call_unq75lzf", "get_weather", {"city": "Berlin"}),)


def test_a_reply_that_speaks_of_tool_calls_and_has_none_is_no_answer() -> None:
    with pytest.raises(BadReply, match="without any text"):
        read({"choices": [{"message": {"content": ""}, "finish_reason": "tool_calls"}]})


@pytest.mark.parametrize(
    ("payload", "content", "reason"),
    [
        (reply({"content": "hi"}), "hi", "stop"),
        (reply({"content": ""}), "", "stop"),
        (reply({"content": "hi"}, "length"), "hi", "length"),
        (reply({"content": "hi"}, None), "hi", "other"),
        (reply({"content": "hi"}, "eos"), "hi", "other"),
        (reply({"content": None}, "content_filter"), "", "content_filter"),
        (reply({"content": None, "refusal": "I will not."}), "I will not.", "content_filter"),
        (
            reply(
                {"content": [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]}
            ),
            "ab",
            "stop",
        ),
        (reply({"content": "hi"}, usage=None), "hi", "stop"),
        (reply({"content": "hi", "reasoning": "hmm"}), "hi", "stop"),
    ],
)
def test_answers_in_all_their_shapes_are_read(payload: Any, content: str, reason: str) -> None:
    response = read(payload)
    assert (response.content, response.finish_reason) == (content, reason)


def test_a_fence_is_taken_off_only_where_json_was_asked_for() -> None:
    fenced = reply({"content": '```json\n{"fits": true}\n```'})
    assert read(fenced, replace(REQUEST, schema=SCHEMA)).json() == {"fits": True}
    assert read(fenced).content.startswith("```")


@pytest.mark.parametrize(
    ("payload", "fault"),
    [
        (None, "body must be an object"),
        ({}, "choices must be a list"),
        ({"choices": []}, "no choices"),
        ({"choices": [None]}, r"choices\[0\] must be"),
        ({"choices": [{}]}, "message must be an object"),
        (reply({}), "without any text"),
        (reply({"content": None}), "without any text"),
        (reply({"content": 7}), "must be text"),
        (reply({"content": [7]}), "content part"),
        (reply({"content": None, "reasoning_content": "hmm"}), "LLM_MAX_TOKENS"),
        (reply({"content": ""}, "length"), "LLM_MAX_TOKENS"),
        (reply({"refusal": ["no"]}), "refusal must be text"),
        (reply({"content": "hi"}, usage=[1]), "usage must be an object"),
        (reply({"content": "hi"}, usage={"prompt_tokens": "9"}), "prompt_tokens"),
    ],
)
def test_a_reply_of_another_shape_is_a_bad_reply(payload: Any, fault: str) -> None:
    with pytest.raises(BadReply, match=fault):
        read(payload)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["message", "content", "finish_reason", "refusal", "type", "text"]), inner
        )
    ),
    max_leaves=10,
)


@settings(deadline=None)
@given(JSON, JSON)
def test_whatever_a_server_says_is_an_answer_or_a_bad_reply(choices: Any, usage: Any) -> None:
    for payload in ({"choices": choices, "usage": usage}, {"choices": [{"message": choices}]}, choices):
        with suppress(BadReply):  # and nothing else
            read(payload)


@pytest.mark.parametrize(
    ("model", "think", "effort"),
    [
        ("gpt-4o", "high", None),
        ("o3", False, "low"),
        ("o3", True, "medium"),
        ("gpt-5-mini", False, "minimal"),
        ("gpt-5.1", False, "none"),
        ("gpt-5.1", "high", "high"),
        ("o1-mini", True, None),
        ("new-model", False, None),
        ("new-model", "low", "low"),
    ],
)
def test_how_hard_a_model_thinks_is_said_in_words_that_it_knows(
    model: str, think: Any, effort: str | None
) -> None:
    body = chat_body(replace(REQUEST, model=model, think=think), takes(model, vendor=True))
    assert body.get("reasoning_effort") == effort
    assert "chat_template_kwargs" not in body


@pytest.mark.parametrize(
    ("accepted", "dropped"),
    [
        (Takes(), []),
        (Takes(temperature=False, top_p=False, seed=False, stop=False, effort=False), list(EVERY)),
        (Takes(both=False), ["top_p"]),
        (Takes(effort=False, switch=True), []),
        (Takes(effort=False, thinking="budget"), []),
    ],
)
def test_what_is_asked_for_and_cannot_be_sent_is_known(accepted: Takes, dropped: list[str]) -> None:
    request = replace(REQUEST, temperature=0.5, top_p=0.5, seed=7, stop=("END",), think="low")
    assert list(accepted.without(request)) == dropped


def test_what_nobody_asked_for_is_not_dropped() -> None:
    nothing = replace(REQUEST, temperature=None, top_p=None, seed=None)
    assert (
        list(Takes(temperature=False, top_p=False, seed=False, stop=False, effort=False).without(nothing))
        == []
    )


@pytest.mark.parametrize(
    ("complaint", "left_out"),
    [
        ("Unsupported parameter: 'reasoning_effort'", {"effort": False, "least": ""}),
        ("output_config.effort: Extra inputs are not permitted", {"effort": False, "least": ""}),
        ('"m:1b" does not support thinking', {"effort": False, "least": ""}),
        ("thinking: Extra inputs are not permitted", {"thinking": ""}),
        ("Unsupported parameter: 'stop' is not supported with this model.", {"stop": False}),
        ("Unrecognized request argument supplied: chat_template_kwargs", {"switch": False}),
        ("`chat_template` is not supported for Mistral tokenizers.", {"switch": False}),
        ("extra field stream_options is not allowed", {"usage": False}),
        ("Unknown field random_seed", {"seed": False}),
        ("output_config: Extra inputs are not permitted", {"schema": False}),
        ("The server stopped unexpectedly", None),
    ],
)
def test_a_complaint_narrows_what_is_sent(complaint: str, left_out: dict[str, Any] | None) -> None:
    before = Takes(least="low", switch=True, thinking="adaptive")
    assert before.after(complaint) == (None if left_out is None else replace(before, **left_out))


def test_mistral_has_another_name_for_the_seed() -> None:
    accepted = gateway_of("api.mistral.ai", private=False).takes
    body = chat_body(replace(REQUEST, seed=7), accepted)
    assert body["random_seed"] == 7
    assert "seed" not in body
    assert "stream_options" not in chat_body(
        REQUEST, gateway_of("mistral.ai", private=False).takes, stream=True
    )
