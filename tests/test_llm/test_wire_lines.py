"""Bytes to JSON values: NDJSON and server-sent events, cut anywhere."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.errors import BadReply
from llm.wire.lines import DONE, EventStream, JsonLines, WholeBody, framing

VALUES: list[Any] = [{"text": "Grüße 🍅"}, {"n": 1}, {"text": "東京\n\r\u2028"}, [], 0]

json_values = st.lists(
    st.dictionaries(st.text(max_size=5), st.text(max_size=20) | st.integers() | st.booleans(), max_size=3)
    # What is called an error or has no type is changed on purpose, which has tests of its own.
    .filter(lambda value: "error" not in value),
    max_size=6,
)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[start:end] for start, end in pairwise(places)]


def read(cutter: Any, parts: list[bytes]) -> list[Any]:
    values = [value for part in parts for value in cutter.feed(part)]
    return values + cutter.finish()


@settings(deadline=None)
@given(values=json_values, cuts=st.lists(st.integers(min_value=0), max_size=30), last_end=st.booleans())
def test_lines_cut_anywhere_give_their_values(values: list[Any], cuts: list[int], *, last_end: bool) -> None:
    data = b"\n".join(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace") for value in values)
    expected = [json.loads(line) for line in data.splitlines()]
    assert read(JsonLines(), pieces(data + b"\n" * last_end, cuts)) == expected


@settings(deadline=None)
@given(
    values=json_values,
    cuts=st.lists(st.integers(min_value=0), max_size=30),
    end=st.sampled_from([b"\n", b"\r\n", b"\r"]),
)
def test_events_cut_anywhere_give_their_values_whatever_ends_their_lines(
    values: list[Any], cuts: list[int], end: bytes
) -> None:
    texts = [json.dumps(value).encode() for value in values]
    data = b"".join(b": keep-alive" + end + b"data: " + text + end + end for text in texts)
    assert read(EventStream(), pieces(data, cuts)) == values


def test_a_letter_cut_in_the_middle_is_whole_again() -> None:
    data = b"".join(b"data: " + json.dumps(v, ensure_ascii=False).encode() + b"\n\n" for v in VALUES)
    assert read(EventStream(), [data[i : i + 1] for i in range(len(data))]) == VALUES


def test_comments_ids_retries_and_empty_events_are_read_over() -> None:
    data = b': keepalive 3/9\n\nid: 7\nretry: 10\n\nevent: ping\n\n\n\ndata:{"a":1}\nid: 8\n\n'
    assert read(EventStream(), [data]) == [{"a": 1}]


def test_several_data_lines_are_one_value() -> None:
    assert read(EventStream(), [b'data: {"a":\ndata: 1}\n\n']) == [{"a": 1}]


def test_done_is_told_apart_from_values() -> None:
    assert read(EventStream(), [b'data: "[DONE]"\n\ndata: [DONE]\n\n']) == ["[DONE]", DONE]


def test_a_last_event_without_its_empty_line_counts() -> None:
    assert read(EventStream(), [b'data: {"a":1}']) == [{"a": 1}]


def test_the_name_of_an_event_is_the_type_of_a_value_that_has_none() -> None:
    data = b'event: ping\ndata: {}\n\nevent: x\ndata: {"type":"y"}\n\ndata: {}\n\n'
    assert read(EventStream(), [data]) == [{"type": "ping"}, {"type": "y"}, {}]


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b'event: error\ndata: {"message":"no"}\n\n', {"message": "no"}),
        (b'event: error\ndata: {"type":"error","error":{"message":"no"}}\n\n', {"message": "no"}),
        (b"event: error\ndata: no luck\n\n", "no luck"),
        (b"event: error\ndata:\n\n", "unnamed"),
        (b'error: {"code":500}\n\n', {"code": 500}),
    ],
)
def test_an_event_named_error_is_an_error_however_it_is_written(data: bytes, error: Any) -> None:
    (value,) = read(EventStream(), [data])
    assert value["error"] == error


@pytest.mark.parametrize(
    ("cutter", "data"),
    [
        (JsonLines(), b'{"a":1}\n{"a"\n'),
        (JsonLines(), b'{"a":1}\n{"a"'),
        (EventStream(), b'data: {"a"\n\n'),
        (EventStream(), b'data: {"a"'),
        (WholeBody(), b'{"a"'),
        (WholeBody(), b""),
    ],
)
def test_what_is_no_json_is_a_bad_reply(cutter: Any, data: bytes) -> None:
    with pytest.raises(BadReply, match=r"JSON|empty"):
        read(cutter, [data])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("text/event-stream", EventStream),
        ("Text/Event-Stream; charset=utf-8", EventStream),
        ("application/x-ndjson", JsonLines),
        ("application/jsonl", JsonLines),
        ("application/json", WholeBody),
        ("", WholeBody),
    ],
)
def test_the_content_type_says_how_a_reply_is_cut(kind: str, expected: type[Any]) -> None:
    assert type(framing(kind)) is expected


def test_a_long_line_in_small_pieces_is_put_together_once() -> None:
    lines = JsonLines()
    line = json.dumps("x" * 200_000).encode()
    for start in range(0, len(line), 7):
        assert lines.feed(line[start : start + 7]) == []
    assert lines.feed(b"\n") == ["x" * 200_000]
