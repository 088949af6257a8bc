"""Anthropic's Messages API: what is sent to which model, and what replies become."""

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
from llm.wire.anthropic import full_name, messages_body, read_message, takes
from tests.support.replay_server import recording

REQUEST = LLMRequest(
    messages=(LLMMessage("user", "Name three fruits."),),
    model="claude-3-opus-20240229",
    temperature=1.5,
    max_tokens=24,
    top_p=0.9,
    seed=1,
)
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1}}, "required": ["n"]}


def body(model: str = REQUEST.model, *turns: tuple[Any, str], **changes: Any) -> dict[str, Any]:
    messages = tuple(LLMMessage(role, text) for role, text in turns) or REQUEST.messages
    return messages_body(replace(REQUEST, model=model, messages=messages, **changes), takes(model))


def read(payload: Any, request: LLMRequest = REQUEST) -> LLMResponse:
    return read_message(payload, request, backend="remote")


def reply(*blocks: dict[str, Any], reason: str | None = "end_turn", **rest: Any) -> dict[str, Any]:
    return {"model": "claude", "content": list(blocks), "stop_reason": reason, **rest}


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("claude-3-opus", "claude-3-opus-20240229"),
        ("claude-3-opus-latest", "claude-3-opus-20240229"),
        ("anthropic/claude-3-haiku", "claude-3-haiku-20240307"),
        ("claude-sonnet-4", "claude-sonnet-4-20250514"),
        ("claude-opus-4-1", "claude-opus-4-1"),
        ("claude-opus-5-5", "claude-opus-5-5"),
        ("claude-3-5-haiku-20241022", "claude-3-5-haiku-20241022"),
    ],
)
def test_a_short_name_is_sent_as_the_one_that_the_api_knows(short: str, full: str) -> None:
    assert full_name(short) == full


@pytest.mark.parametrize(
    ("model", "sampling", "enforced"),
    [
        ("claude-3-opus-20240229", {"temperature": 1.0}, False),
        ("claude-3-7-sonnet-20250219", {"temperature": 1.0}, False),
        ("claude-opus-4-20250514", {"temperature": 1.0}, False),
        ("claude-opus-4-1", {"temperature": 1.0}, False),
        ("claude-opus-4-1-20250805", {"temperature": 1.0}, False),
        ("claude-sonnet-4-5", {"temperature": 1.0}, True),
        ("claude-haiku-4-5-20251001", {"temperature": 1.0}, True),
        ("claude-opus-4-7", {}, True),
        ("claude-sonnet-5", {}, True),
        ("claude-opus-5-5", {}, True),
        ("smollm2:135m", {"temperature": 1.0, "top_p": 0.9}, False),
    ],
)
def test_each_model_is_sent_what_it_takes(model: str, sampling: dict[str, float], *, enforced: bool) -> None:
    sent = body(model, schema=SCHEMA)
    assert {k: v for k, v in sent.items() if k in {"temperature", "top_p"}} == sampling
    assert ("output_config" in sent) is enforced
    assert ("JSON schema" in sent.get("system", "")) is not enforced
    assert "seed" not in sent


def test_top_p_is_sent_where_no_temperature_is_chosen() -> None:
    assert body(temperature=None)["top_p"] == 0.9


def test_a_schema_is_sent_closed_and_without_limits() -> None:
    sent = body("claude-opus-5-5", schema=SCHEMA)["output_config"]["format"]
    assert sent == {
        "type": "json_schema",
        "schema": {
            "type": "object",
            "properties": {"n": {"type": "integer"}},
            "required": ["n"],
            "additionalProperties": False,
        },
    }


def test_system_text_goes_to_the_top_and_turns_alternate() -> None:
    sent = body(
        REQUEST.model,
        ("system", "Be brief."),
        ("user", "One."),
        ("user", "Two."),
        ("assistant", "Three."),
        ("system", "And kind."),
        ("user", "Four."),
    )
    assert sent["system"] == "Be brief.\n\nAnd kind."
    assert sent["messages"] == [
        {"role": "user", "content": "One.\n\nTwo."},
        {"role": "assistant", "content": "Three."},
        {"role": "user", "content": "Four."},
    ]


def test_a_conversation_of_system_text_alone_is_said_by_the_user() -> None:
    sent = body(REQUEST.model, ("system", "Name three fruits."))
    assert sent["messages"] == [{"role": "user", "content": "Name three fruits."}]
    assert "system" not in sent


def test_a_request_without_system_text_sends_none() -> None:
    assert "system" not in body()
    assert body()["max_tokens"] == 24


@pytest.mark.parametrize(
    ("name", "content", "reason", "prompt", "completion"),
    [
        ("anthropic_messages", "1. Bananas\n2. Oranges\n3. Grapes", "stop", 13, 15),
        ("anthropic_thinking_unsupported", "1. Bananas\n2. Gra", "length", 13, 8),
    ],
)
def test_recorded_answers_are_read(
    name: str, content: str, reason: str, prompt: int, completion: int
) -> None:
    response = read(json.loads(recording(name)["response"]["body"]))
    assert (response.content, response.finish_reason) == (content, reason)
    assert (response.prompt_tokens, response.completion_tokens) == (prompt, completion)


TEXT = {"type": "text", "text": "hi"}
THINKING = {"type": "thinking", "thinking": "", "signature": "x"}


@pytest.mark.parametrize(
    ("payload", "content", "reason"),
    [
        (reply(TEXT), "hi", "stop"),
        (reply(THINKING, TEXT, {"type": "text", "text": " there"}), "hi there", "stop"),
        (reply(TEXT, reason="stop_sequence"), "hi", "stop"),
        (reply(TEXT, reason="max_tokens"), "hi", "length"),
        (reply(TEXT, reason="model_context_window_exceeded"), "hi", "length"),
        (reply(TEXT, reason="refusal"), "hi", "content_filter"),
        (reply(reason="refusal"), "", "content_filter"),
        (reply(TEXT, reason="pause_turn"), "hi", "other"),
        (reply(TEXT, reason=None), "hi", "other"),
        (reply(), "", "stop"),
    ],
)
def test_answers_in_all_their_shapes_are_read(payload: Any, content: str, reason: str) -> None:
    response = read(payload)
    assert (response.content, response.finish_reason) == (content, reason)


def test_prompt_tokens_include_what_the_prompt_cache_wrote_and_read() -> None:
    usage = {
        "input_tokens": 5,
        "cache_creation_input_tokens": 20,
        "cache_read_input_tokens": 100,
        "output_tokens": 7,
    }
    response = read(reply(TEXT, usage=usage))
    assert (response.prompt_tokens, response.completion_tokens) == (125, 7)


def test_a_fence_is_taken_off_where_json_was_asked_for() -> None:
    fenced = reply({"type": "text", "text": '```json\n{"n": 1}\n```'})
    assert read(fenced, replace(REQUEST, schema=SCHEMA)).json() == {"n": 1}


@pytest.mark.parametrize(
    ("payload", "fault"),
    [
        ([], "body must be an object"),
        ({}, "content must be a list"),
        ({"content": ["hi"]}, "content block must be an object"),
        (reply({"type": "text"}), "content block must be text"),
        (reply(THINKING, reason="max_tokens"), "LLM_MAX_TOKENS"),
        (reply(THINKING), "without any text"),
        (reply({"type": "tool_use"}, reason="tool_use"), "without naming it"),
        (reply({"type": "new_kind"}, reason="tool_use"), "without any text"),
        (reply(TEXT, usage="none"), "usage must be an object"),
        (reply(TEXT, usage={"output_tokens": -1}), "output_tokens"),
    ],
)
def test_a_reply_of_another_shape_is_a_bad_reply(payload: Any, fault: str) -> None:
    with pytest.raises(BadReply, match=fault):
        read(payload)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["type", "text", "content", "stop_reason", "usage"]), inner)
    ),
    max_leaves=10,
)


@settings(deadline=None)
@given(JSON, JSON)
def test_whatever_a_server_says_is_an_answer_or_a_bad_reply(content: Any, other: Any) -> None:
    for payload in (
        {"content": content, "stop_reason": other},
        {"content": [content], "usage": other},
        content,
    ):
        with suppress(BadReply):  # and nothing else
            read(payload)
