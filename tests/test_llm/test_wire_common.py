"""JSON in and out within bounds, and keys kept out of messages."""

from __future__ import annotations

import gzip
import json
import sqlite3
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.errors import BadReply, BadRequest
from llm.types import LLMMessage, LLMRequest
from llm.wire import common
from llm.wire.body import ReplyBody
from llm.wire.redact import SHOWN, redact

REQUEST = LLMRequest(
    messages=(LLMMessage("user", "Hi"),), model="m", temperature=0.0, max_tokens=8, top_p=None
)
KEY = "sk-proj-Ab1/Cd2+Ef3=Gh4&Ij5"


@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        (b"", "empty"),
        (b"  \n", "empty"),
        (b"<html>", "not valid JSON"),
        (b'{"a":NaN}', "not valid JSON"),
        (b'{"a":-Infinity}', "not valid JSON"),
        (b'{"a":1e999}', "not valid JSON"),
        (b'{"a":' + b"9" * 10_000 + b"}", "not valid JSON"),
        (b'{"a":1}{"a":2}', "not valid JSON"),
        (b'{"a":"\xff"}', "UTF-8"),
        (b"[" * 100_000 + b"]" * 100_000, "nested"),
    ],
)
def test_what_is_not_sound_json_is_a_bad_reply_that_carries_nothing_of_it(raw: bytes, fault: str) -> None:
    with pytest.raises(BadReply, match=fault) as caught:
        common.decode(raw)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_a_byte_order_mark_is_tolerated() -> None:
    assert common.decode(b'\xef\xbb\xbf{"a": 1.5}') == {"a": 1.5}


@settings(deadline=None)  # a busy machine is no finding
@given(st.text(alphabet=st.characters(exclude_categories=())))
def test_cleaned_text_can_be_stored_and_sent(text: str) -> None:
    kept = common.clean(text)
    kept.encode()
    with sqlite3.connect(":memory:") as database:
        stored = database.execute("SELECT ?, length(?)", (kept, kept)).fetchone()
    database.close()
    assert stored == (kept, len(text))
    assert common.encode({"prompt": text})


def test_a_whole_emoji_is_left_alone_and_half_of_one_is_replaced() -> None:
    assert common.clean(json.loads(r'"\ud83c\udf45 \ud83c \u0000"')) == "🍅 � �"


def test_a_request_that_is_not_json_is_a_bad_request_that_points_at_the_schema() -> None:
    with pytest.raises(BadRequest, match="schema"):
        common.encode({"format": {"enum": {1, 2}}})
    with pytest.raises(BadRequest, match="schema"):
        common.encode({"format": {"minimum": float("nan")}})


@pytest.mark.parametrize("value", [-1, 1.5, "7", True, [7], 10**30, 1e300])
def test_a_counter_that_is_no_count_is_a_bad_reply(value: object) -> None:
    with pytest.raises(BadReply, match="tokens_in"):
        common.count({"tokens_in": value}, "tokens_in")


@pytest.mark.parametrize(
    ("counters", "expected"), [({}, 0), ({"n": None}, 0), ({"n": 7}, 7), ({"n": 7.0}, 7)]
)
def test_an_absent_counter_is_zero(counters: dict[str, object], expected: int) -> None:
    assert common.count(counters, "n") == expected


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ('```json\n{"a": 1}\n```', '{"a": 1}'),
        ('  ```\n{"a": 1}```\n', '{"a": 1}'),
        ('{"a": 1}', '{"a": 1}'),
        ('Here: ```json\n{"a": 1}\n```', 'Here: ```json\n{"a": 1}\n```'),
    ],
)
def test_only_a_reply_that_is_one_fenced_block_is_taken_out_of_its_fence(text: str, inside: str) -> None:
    assert common.unfenced(text) == inside


def test_the_model_that_answered_is_the_servers_word_or_the_one_asked_for() -> None:
    assert common.model_name({"model": "m-2026"}, "m") == "m-2026"
    assert common.model_name({"model": 7}, "m") == "m"
    assert len(common.model_name({"model": "x" * 10_000}, "m")) == 200


def test_an_answer_of_thinking_only_says_what_to_raise() -> None:
    assert "LLM_MAX_TOKENS" in str(common.no_answer(REQUEST, thinking=True))
    assert "without any text" in str(common.no_answer(REQUEST, thinking=False))


@pytest.mark.parametrize(
    "said",
    [
        f"Incorrect API key provided: {KEY}.",
        f"key={KEY.upper()}",
        "url was https://x/?key=sk-proj-Ab1%2FCd2%2BEf3%3DGh4%26Ij5",
        f"<b>{KEY.replace('&', '&amp;')}</b>",
        "Authorization: Basic c2stcHJvai1BYjEvQ2QyK0VmMz1HaDQmSWo1",
        f"{KEY[:12]}*****",
        f"*****{KEY[-9:]}",
        f"{KEY[:10]}\x00\u200b{KEY[10:]}",
        f"{KEY[:9]}\n{KEY[9:]}",
        f"{KEY}{KEY} {KEY}",
    ],
)
def test_a_key_is_redacted_whole_and_in_parts_however_it_is_written(said: str) -> None:
    shown = redact(said, [KEY])
    assert SHOWN in shown
    windows = {KEY[i : i + 8].lower() for i in range(len(KEY) - 7)}
    assert not any(window in shown.lower() for window in windows)
    assert "c2stcHJvai" not in shown


def test_the_last_four_characters_of_a_key_may_be_shown_to_tell_which_it_is() -> None:
    assert redact(f"wrong key ...{KEY[-4:]}", [KEY]) == f"wrong key ...{KEY[-4:]}"


@settings(deadline=None)  # a busy machine is no finding
@given(st.text(max_size=60), st.text(alphabet="abcABC0123-_", min_size=8, max_size=40), st.text(max_size=60))
def test_no_key_survives_anywhere_in_a_message(before: str, key: str, after: str) -> None:
    assert key.lower() not in redact(before + key + after, [key]).lower()


def test_a_message_is_one_short_printable_line() -> None:
    shown = redact("\x1b]0;owned\x07 first\r\nsecond\u202e " + "long " * 1000, [])
    assert shown.isprintable()
    assert shown.startswith("]0;owned first  second")
    assert len(shown) == 300


def test_a_body_is_cut_at_the_cap_plain_or_compressed() -> None:
    for encoding, data in [
        ("", bytes(5000)),
        ("gzip", gzip.compress(bytes(10**6))),
        ("deflate", zlib.compress(bytes(10**6))),
    ]:
        body = ReplyBody(encoding, 4096)
        with pytest.raises(BadReply, match="larger than 4096 bytes"):
            body.add(data)
        assert len(body.so_far()) <= 4097


def test_a_compressed_body_is_read_whatever_the_size_of_its_pieces() -> None:
    packed = gzip.compress(b"hello " * 100)
    body = ReplyBody("GZIP", 4096)
    for position in range(len(packed)):
        body.add(packed[position : position + 1])
    assert body.finish() == b"hello " * 100


def test_broken_or_unfinished_compression_is_a_bad_reply() -> None:
    body = ReplyBody("gzip", 4096)
    with pytest.raises(BadReply, match="broken"):
        body.add(b"no gzip at all")
    body = ReplyBody("gzip", 4096)
    body.add(gzip.compress(b"hello")[:-3])
    with pytest.raises(BadReply, match="ends too early"):
        body.finish()
    with pytest.raises(BadReply, match="not asked for"):
        ReplyBody("br", 4096)
