"""Prompts longer than the context: recognised in each server's words, and made shorter with care."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.overflow import (
    TooLong,
    characters,
    is_surely_too_long,
    may_be_too_long,
    shortened,
    too_long,
)
from llm.types import LLMMessage, LLMRequest, ToolCall
from tests.support.replay_server import recording

SYSTEM = LLMMessage("system", "You are kind. " * 10)


def request(*turns: LLMMessage, max_tokens: int = 64) -> LLMRequest:
    return LLMRequest(messages=turns, model="m", temperature=None, max_tokens=max_tokens, top_p=None)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "request (6407 tokens) exceeds the available context size (256 tokens), try increasing it",
            TooLong(prompt=6407, context=256),
        ),
        (
            "This model's maximum context length is 8192 tokens. Your messages resulted in 9001 tokens.",
            TooLong(prompt=9001, context=8192),
        ),
        (
            "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens (49...)",
            TooLong(prompt=5000, context=4096),
        ),
        ("prompt is too long: 210000 tokens > 200000 maximum", TooLong(prompt=210000, context=200000)),
        ("Please reduce the prompt: context_length_exceeded", TooLong()),
        ("the model is not there", None),
        ("temperature is not supported", None),
    ],
)
def test_what_a_server_says_of_a_long_prompt_is_understood(said: str, told: TooLong | None) -> None:
    assert too_long(said) == told


def test_ollamas_recorded_refusal_is_understood() -> None:
    body = json.loads(recording("chat_prompt_over_num_ctx_truncate_false")["response"]["body"])
    assert too_long(body["error"]) == TooLong(prompt=6407, context=256)


def test_the_recorded_prompt_that_an_old_server_cuts_silently_is_recognised_before_it_is_sent() -> None:
    exchange = recording("chat_prompt_over_num_ctx")
    turns = [LLMMessage(m["role"], m["content"]) for m in exchange["request"]["body"]["messages"]]
    reply = json.loads(exchange["response"]["body"])
    assert reply["prompt_eval_count"] < 256  # of 6407: nothing in the reply says that it was cut
    assert may_be_too_long(turns, 256)
    assert is_surely_too_long(turns, 256)
    assert not may_be_too_long(turns, 8192)


def test_the_oldest_questions_go_first_with_all_that_followed_them() -> None:
    call = ToolCall("a", "add", {})
    turns = (
        SYSTEM,
        LLMMessage("user", "old " * 100),
        LLMMessage("assistant", "", tool_calls=(call,)),
        LLMMessage("tool", "result " * 50, tool_call_id="a"),
        LLMMessage("assistant", "so " * 50),
        LLMMessage("user", "newer " * 20),
        LLMMessage("assistant", "yes"),
        LLMMessage("user", "newest"),
    )
    shorter = shortened(request(*turns), TooLong(prompt=400, context=300))
    assert shorter is not None
    assert shorter.messages == (SYSTEM, *turns[5:])


def test_the_last_question_stays_and_its_middle_is_cut_with_a_mark() -> None:
    turns = (SYSTEM, LLMMessage("user", "begin " + "x" * 5000 + " end?"))
    shorter = shortened(request(*turns), TooLong(prompt=2000, context=1000))
    assert shorter is not None
    system, question = shorter.messages
    assert system == SYSTEM
    assert question.content.startswith("begin x")
    assert question.content.endswith("x end?")
    assert "characters left out" in question.content
    assert characters(shorter.messages) < 5165 * 0.5


def test_the_calls_and_results_of_the_question_under_way_stay() -> None:
    call = ToolCall("a", "add", {})
    turns = (
        LLMMessage("user", "Sum it up"),
        LLMMessage("assistant", "", tool_calls=(call,)),
        LLMMessage("tool", "data " * 1000, tool_call_id="a"),
    )
    shorter = shortened(request(*turns), TooLong(prompt=1000, context=500))
    assert shorter is not None
    assert [m.role for m in shorter.messages] == ["user", "assistant", "tool"]
    assert shorter.messages[1].tool_calls == (call,)
    assert shorter.messages[2].tool_call_id == "a"


def test_a_system_text_is_cut_last() -> None:
    turns = (LLMMessage("system", "s" * 4000), LLMMessage("user", "u" * 1000))
    shorter = shortened(request(*turns), TooLong(prompt=1250, context=900))
    assert shorter is not None
    assert len(shorter.messages[1].content) < 250
    assert "left out" in shorter.messages[0].content


def test_room_is_kept_for_the_answer() -> None:
    turns = (LLMMessage("user", "x" * 8000),)
    small = shortened(request(*turns, max_tokens=10), TooLong(prompt=2000, context=1000))
    large = shortened(request(*turns, max_tokens=900), TooLong(prompt=2000, context=1000))
    assert small is not None
    assert large is not None
    assert characters(small.messages) > characters(large.messages) > 2000


@pytest.mark.parametrize("told", [TooLong(), TooLong(context=300), TooLong(prompt=9000, context=300)])
def test_without_numbers_it_is_shortened_step_by_step(told: TooLong) -> None:
    attempt = request(LLMMessage("user", "x" * 4000))
    sizes = [characters(attempt.messages)]
    for _ in range(4):
        shorter = shortened(attempt, told)
        if shorter is None:
            break
        attempt = shorter
        sizes.append(characters(attempt.messages))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 1200


def test_what_cannot_be_shorter_is_left_as_it_is() -> None:
    assert shortened(request(LLMMessage("user", "short")), TooLong(prompt=900, context=256)) is None


@settings(deadline=None, max_examples=60)
@given(
    roles=st.lists(st.sampled_from(["system", "user", "assistant"]), min_size=1, max_size=8),
    lengths=st.lists(st.integers(0, 3000), min_size=8, max_size=8),
    prompt=st.integers(1, 5000),
)
def test_it_never_grows_never_loses_the_system_and_always_keeps_the_last_question(
    roles: list[str], lengths: list[int], prompt: int
) -> None:
    turns = tuple(LLMMessage(role, "x" * size) for role, size in zip(roles, lengths, strict=False))  # type: ignore[arg-type]
    shorter = shortened(request(*turns), TooLong(prompt=prompt, context=512))
    if shorter is None:
        return
    assert characters(shorter.messages) < characters(turns)
    assert sum(m.role == "system" for m in shorter.messages) == roles.count("system")
    if "user" in roles:
        tail = roles[len(roles) - 1 - roles[::-1].index("user") :]
        assert [m.role for m in shorter.messages][-len(tail) :] == tail
