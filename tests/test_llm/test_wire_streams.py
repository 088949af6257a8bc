"""Chunks to one answer on each wire: the pieces, the counts, and an end without which there is no answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from llm.errors import BadReply
from llm.types import Chunk, LLMMessage, LLMRequest, LLMResponse, TextChunk, ThinkingChunk, ToolCall
from llm.wire import anthropic, ollama, openai
from llm.wire.lines import DONE, framing
from tests.support.replay_server import recording

REQUEST = LLMRequest(
    messages=(LLMMessage("user", "Hi"),), model="m", temperature=0.0, max_tokens=24, top_p=None
)
FRUITS = "1. Bananas\n2. Oranges\n3. Grapes"
WIRES: dict[str, Callable[..., Any]] = {
    "chat": ollama.ChatStream,
    "v1": openai.ChatStream,
    "anthropic": anthropic.MessageStream,
}


def values(name: str) -> list[Any]:
    """The JSON values of a recorded stream."""
    response = recording(name)["response"]
    cutter = framing(response["headers"]["Content-Type"])
    found = [value for chunk in response["chunks"] for value in cutter.feed(chunk["text"].encode())]
    return found + cutter.finish()


def read(wire: str, payloads: list[Any], request: LLMRequest = REQUEST) -> tuple[list[Chunk], LLMResponse]:
    fold = WIRES[wire](request, backend="b")
    chunks = [chunk for payload in payloads for chunk in fold.feed(payload)]
    return chunks, fold.finish()


def of(kind: type[TextChunk | ThinkingChunk], chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks if isinstance(chunk, kind))  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "counts"),
    [("chat_stream", (13, 15)), ("v1_chat_stream_usage", (13, 15)), ("anthropic_messages_stream", (13, 12))],
)
def test_a_recorded_stream_is_the_same_answer_in_pieces(name: str, counts: tuple[int, int]) -> None:
    chunks, response = read(name.partition("_")[0], values(name))
    assert len(chunks) > 10
    assert all(isinstance(chunk, TextChunk) and chunk.text for chunk in chunks)
    assert of(TextChunk, chunks) == response.content
    assert FRUITS.startswith(response.content)
    assert (response.prompt_tokens, response.completion_tokens) == counts
    assert (response.model, response.backend) == ("smollm2:135m", "b")
    assert response.finish_reason == ("length" if name.startswith("anthropic") else "stop")


@pytest.mark.parametrize(
    "name", ["chat_think_supported_stream", "v1_chat_think_stream", "anthropic_thinking_model_stream"]
)
def test_thinking_comes_as_its_own_chunks_and_alone_is_no_answer(name: str) -> None:
    fold = WIRES[name.partition("_")[0]](REQUEST, backend="b")
    chunks = [chunk for payload in values(name) for chunk in fold.feed(payload)]
    assert of(ThinkingChunk, chunks).startswith("1. ")
    assert of(TextChunk, chunks) == ""
    with pytest.raises(BadReply, match="LLM_MAX_TOKENS"):
        fold.finish()


@pytest.mark.parametrize("name", ["v1_chat_runner_killed_midstream", "anthropic_runner_killed_midstream"])
def test_a_stream_whose_engine_died_without_a_word_is_a_bad_reply(name: str) -> None:
    with pytest.raises(BadReply, match="broke off before its end"):
        read(name.partition("_")[0], values(name))


@pytest.mark.parametrize("name", ["chat_stream", "v1_chat_stream_usage", "anthropic_messages_stream"])
def test_a_stream_cut_at_any_place_before_its_end_is_a_bad_reply(name: str) -> None:
    wire, whole = name.partition("_")[0], values(name)
    ends = {"chat": 1, "v1": 3, "anthropic": 1}[wire]  # from then on all of the answer is there
    for length in range(len(whole) - ends + 1):
        with pytest.raises(BadReply):
            read(wire, whole[:length])


def test_a_recorded_tool_call_of_a_stream_is_whole_at_its_end() -> None:
    chunks, response = read("v1", values("v1_chat_tool_call_stream"))
    assert chunks == []
    assert response.finish_reason == "tool_calls"
    assert response.tool_calls == (ToolCall("call_4dlj2o4h", "get_weather", {"city": "Berlin"}),)
    assert response.tokens_used == 386


def delta(finish: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"model": "m", "choices": [{"index": 0, "delta": fields, "finish_reason": finish}], "usage": None}


def call_piece(arguments: str, **fields: Any) -> dict[str, Any]:
    function = {"arguments": arguments} | ({"name": fields.pop("name")} if "name" in fields else {})
    return {**fields, "function": function}


def test_tool_calls_in_pieces_and_side_by_side_are_put_together() -> None:
    _, response = read(
        "v1",
        [
            delta(role="assistant", content=None),
            delta(tool_calls=[call_piece("", index=0, id="a", name="add")]),
            delta(tool_calls=[call_piece('{"x":', index=0)]),
            delta(tool_calls=[call_piece("", index=1, id="b", name="now")]),
            delta(tool_calls=[call_piece(" 1}", index=0)]),
            delta("tool_calls"),
            DONE,
        ],
    )
    assert response.tool_calls == (ToolCall("a", "add", {"x": 1}), ToolCall("b", "now", {}))


def test_tool_calls_of_a_gateway_that_counts_none_are_told_apart_by_their_ids() -> None:
    _, response = read(
        "v1",
        [
            delta(tool_calls=[call_piece('{"x"', id="a", name="add")]),
            delta(tool_calls=[call_piece(":1}")]),
            delta("stop", tool_calls=[call_piece("{}", id="b", name="add")]),
        ],
    )
    assert response.tool_calls == (ToolCall("a", "add", {"x": 1}), ToolCall("b", "add", {}))
    assert response.finish_reason == "tool_calls"


def test_arguments_that_were_cut_are_a_bad_reply_that_names_the_tool() -> None:
    with pytest.raises(BadReply, match="'add' are broken"):
        read("v1", [delta("length", tool_calls=[call_piece('{"x"', index=0, id="a", name="add")])])


def test_usage_that_is_null_in_mid_stream_and_comes_last_without_choices_is_counted() -> None:
    usage = {
        "prompt_tokens": 9,
        "completion_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }
    _, response = read("v1", [delta(content="hi"), delta("stop"), {"choices": [], "usage": usage}, DONE])
    assert (response.prompt_tokens, response.completion_tokens) == (9, 7)
    assert (response.cached_tokens, response.thinking_tokens) == (4, 3)


def test_a_refusal_in_pieces_is_an_answer_that_says_so() -> None:
    chunks, response = read("v1", [delta(refusal="I "), delta(refusal="cannot."), delta("stop"), DONE])
    assert of(TextChunk, chunks) == response.content == "I cannot."
    assert response.finish_reason == "content_filter"


@pytest.mark.parametrize("key", ["reasoning", "reasoning_content"])
def test_reasoning_comes_before_the_text_and_is_kept_apart(key: str) -> None:
    chunks, response = read(
        "v1", [delta(content="", **{key: "Hm."}), delta(content="hi"), delta("stop"), DONE]
    )
    assert chunks == [ThinkingChunk("Hm."), TextChunk("hi")]
    assert (response.thinking, response.content) == ("Hm.", "hi")


def test_a_stream_that_ends_with_done_alone_is_an_answer() -> None:
    _, response = read("v1", [delta(content="hi"), DONE])
    assert (response.content, response.finish_reason) == ("hi", "other")


def test_half_an_emoji_in_a_chunk_is_mended() -> None:
    chunks, _ = read("v1", [delta(content="\ud83c hi\0"), delta("stop")])
    assert of(TextChunk, chunks) == "\N{REPLACEMENT CHARACTER} hi\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    "payload",
    [
        [],
        {"choices": 7},
        {"choices": [1]},
        {"choices": [{"delta": 1}]},
        delta(content=7),
        delta(tool_calls=1),
    ],
)
def test_a_chunk_of_another_shape_is_a_bad_reply(payload: Any) -> None:
    with pytest.raises(BadReply):
        read("v1", [payload, DONE])


def test_a_server_that_answers_whole_although_a_stream_was_asked_for_is_understood() -> None:
    completion = {"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]}
    message = {"type": "message", "content": [{"type": "text", "text": "hi"}], "stop_reason": "end_turn"}
    line = {"message": {"content": "hi"}, "done": True}
    for wire, payload in (("v1", completion), ("anthropic", message), ("chat", line)):
        chunks, response = read(wire, [payload])
        assert chunks == [TextChunk("hi")]
        assert (response.content, response.finish_reason) == ("hi", "stop")


def test_a_fence_round_streamed_json_is_taken_off_the_whole_answer() -> None:
    request = replace(REQUEST, schema={"type": "object"})
    _, response = read("v1", [delta(content='```json\n{"a":1}'), delta(content="\n```"), DONE], request)
    assert response.content == '{"a":1}'


def event(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": kind, **fields}


def block(index: int, begun: dict[str, Any], *deltas: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        event("content_block_start", index=index, content_block=begun),
        *(event("content_block_delta", index=index, delta=piece) for piece in deltas),
        event("content_block_stop", index=index),
    ]


def test_a_message_of_thinking_text_and_calls_is_put_together() -> None:
    stream = [
        event("message_start", message={"model": "claude", "usage": {"input_tokens": 5, "output_tokens": 1}}),
        event("ping"),
        *block(
            0,
            {"type": "thinking", "thinking": "", "signature": ""},
            {"type": "thinking_delta", "thinking": "Hm"},
            {"type": "thinking_delta", "thinking": "."},
            {"type": "signature_delta", "signature": "c2ln"},
        ),
        *block(1, {"type": "text", "text": ""}, {"type": "text_delta", "text": "Let me add."}),
        *block(
            2,
            {"type": "tool_use", "id": "toolu_1", "name": "add", "input": {}},
            {"type": "input_json_delta", "partial_json": ""},
            {"type": "input_json_delta", "partial_json": '{"x":'},
            {"type": "input_json_delta", "partial_json": "1}"},
        ),
        *block(3, {"type": "tool_use", "id": "toolu_2", "name": "now", "input": {}}),
        event("something_new", content=7),
        event(
            "message_delta",
            delta={"stop_reason": "tool_use"},
            usage={
                "input_tokens": None,
                "cache_read_input_tokens": 2,
                "output_tokens": 40,
                "output_tokens_details": {"thinking_tokens": 9},
            },
        ),
        event("message_stop"),
    ]
    chunks, response = read("anthropic", stream)
    assert chunks == [ThinkingChunk("Hm"), ThinkingChunk("."), TextChunk("Let me add.")]
    assert (response.thinking, response.content) == ("Hm.", "Let me add.")
    assert response.finish_reason == "tool_calls"
    assert response.tool_calls == (ToolCall("toolu_1", "add", {"x": 1}), ToolCall("toolu_2", "now", {}))
    assert (response.prompt_tokens, response.cached_tokens) == (7, 2)
    assert (response.completion_tokens, response.thinking_tokens) == (40, 9)


@pytest.mark.parametrize(
    ("broken", "fault"),
    [
        ([event("content_block_delta", index=4, delta={"type": "text_delta", "text": "x"})], "not begun"),
        ([event("content_block_start", content_block={"type": "text"})], "no index"),
        (block(0, {"type": "text", "text": ""}, {"type": "text_delta", "text": 7}), "must be text"),
        (["x"], "event must be an object"),
    ],
)
def test_an_event_of_another_shape_is_a_bad_reply(broken: list[Any], fault: str) -> None:
    with pytest.raises(BadReply, match=fault):
        read("anthropic", broken)


def test_ollamas_tool_calls_have_objects_for_arguments_and_get_ids_where_they_have_none() -> None:
    entry = {"function": {"name": "add", "arguments": {"x": 1}}}
    stream = [
        {"message": {"role": "assistant", "content": "", "tool_calls": [entry, {**entry, "id": "call_9"}]}},
        {"message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "stop"},
    ]
    chunks, response = read("chat", stream)
    assert chunks == []
    assert response.finish_reason == "tool_calls"
    assert response.tool_calls == (ToolCall("call_0", "add", {"x": 1}), ToolCall("call_9", "add", {"x": 1}))


@pytest.mark.parametrize(
    "entry",
    [7, {}, {"function": {"name": "", "arguments": {}}}, {"function": {"name": "a", "arguments": "{}"}}],
)
def test_a_tool_call_of_another_shape_is_a_bad_reply(entry: Any) -> None:
    reply = {"message": {"content": "", "tool_calls": [entry]}, "done": True}
    with pytest.raises(BadReply):
        ollama.read_chat(reply, REQUEST, backend="b")


def test_thoughts_of_a_whole_reply_are_kept_apart_from_its_text() -> None:
    reply = {"message": {"content": "hi", "thinking": "Hm."}, "done": True}
    response = ollama.read_chat(json.loads(json.dumps(reply)), REQUEST, backend="b")
    assert (response.content, response.thinking) == ("hi", "Hm.")
