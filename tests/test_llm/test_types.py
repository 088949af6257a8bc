"""The values that travel through a call."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from llm import LLMMessage, LLMRequest, LLMResponse
from llm.events import CacheHit, CacheMiss, CallStarted
from llm.types import ROLES, Role


def request(*messages: LLMMessage) -> LLMRequest:
    return LLMRequest(messages=messages, model="m", temperature=0.0, max_tokens=5, top_p=None)


def test_a_message_has_one_of_four_roles() -> None:
    roles: tuple[Role, ...] = ("system", "user", "assistant", "tool")
    assert tuple(LLMMessage(role, "x").role for role in roles) == roles == ROLES
    with pytest.raises(ValueError, match=r"system, user, assistant, tool, not 'robot'"):
        LLMMessage("robot", "x")  # type: ignore[arg-type]


@pytest.mark.parametrize("content", [None, 3, b"x", ["x"]])
def test_the_content_of_a_message_is_text(content: Any) -> None:
    with pytest.raises(ValueError, match="content is text"):
        LLMMessage("user", content)


def test_the_prompt_is_the_last_turn_and_the_system_prompt_the_first() -> None:
    whole = request(
        LLMMessage("system", "Be brief"),
        LLMMessage("user", "Hi"),
        LLMMessage("assistant", "Hello"),
        LLMMessage("user", "And now?"),
    )
    assert (whole.system_prompt, whole.prompt) == ("Be brief", "And now?")
    assert request(LLMMessage("user", "Hi")).system_prompt is None
    assert request(LLMMessage("system", "Be brief")).prompt == ""


def test_the_text_of_a_response_is_its_content_and_its_tokens_add_up() -> None:
    response = LLMResponse(content="leeks", model="m", backend="b", prompt_tokens=3, completion_tokens=4)
    assert str(response) == f"{response}" == "leeks"
    assert response.tokens_used == 7
    assert (response.cached, response.finish_reason, response.latency) == (False, "stop", 0.0)


def test_the_json_of_a_response_is_a_fresh_object_each_time() -> None:
    response = LLMResponse(content='{"a": [1]}', model="m", backend="b")
    first = response.json()
    first["a"].append(2)
    assert response.json() == {"a": [1]}
    with pytest.raises(json.JSONDecodeError):
        LLMResponse(content="leeks", model="m", backend="b").json()


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (LLMMessage("user", "x"), "content"),
        (request(LLMMessage("user", "x")), "model"),
        (LLMResponse(content="x", model="m", backend="b"), "cached"),
    ],
)
def test_values_are_frozen(value: Any, field: str) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, field, "changed")


def test_an_event_with_fields_of_its_own_is_made_quickly_and_frozen_all_the_same() -> None:
    hit = CacheHit(backend="b", model="m", call_id="c")
    assert (hit.backend, hit.caller.agent, hit.call_id, hit.request) == ("b", "", "c", None)
    for event, field in ((hit, "call_id"), (hit, "backend"), (CacheMiss(backend="b", model="m"), "model")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(event, field, "other")


def test_an_event_refers_to_what_was_asked_and_does_not_show_it() -> None:
    asked = request(LLMMessage("user", "Where does Ana live?"))
    event = CallStarted(backend="b", model="m", request=asked)
    assert event.request is asked
    assert "Ana" not in repr(event)
    assert event == CallStarted(backend="b", model="m")
