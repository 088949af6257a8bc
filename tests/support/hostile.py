"""Replies gone wrong: real ones, changed by a short program of random steps that hypothesis can shrink.

A step is (what, where, how), three numbers. Steps on bytes know nothing of the format; steps on JSON change
one value of one of the texts that a reply is made of; steps on frames change lines and events as a whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

from tests.support.canary import CANARY

Step = tuple[int, int, int]

_STEP_BYTES = 5
_MOST_STEPS = 4

programs: st.SearchStrategy[bytes] = st.binary(max_size=_STEP_BYTES * _MOST_STEPS)
"""At most four steps, written as bytes: that is one draw for hypothesis, and it shrinks well."""


def steps_of(program: bytes) -> list[Step]:
    """The steps of a program, each written in five bytes; a last one that is cut short is none."""
    starts = range(0, len(program) - _STEP_BYTES + 1, _STEP_BYTES)
    return [
        (program[i], int.from_bytes(program[i + 1 : i + 3]), int.from_bytes(program[i + 3 : i + 5]))
        for i in starts
    ]


VALUES = (
    *("null", "true", "-1", "0", "1e999", "NaN", "-Infinity", "1.5", '""', "[]", "{}", "[[]]", '[{"a": 1}]'),
    *("9" * 25, "9" * 5000, "-" + "9" * 5000, "1e-9999", "12345678901", "0.1e1", "01", "--1", "'x'"),
    *(r'"\ud800"', r'"\u0000"', r'"\ud83d\ude00"', '"\x07"', '"🍅"', r'"\u"', '"unterminated'),
    *("[" * 200 + "]" * 200, "[" * 20_000, '{"a":' * 20_000, "[" * 20_000 + "]" * 20_000),
    *('"stop"', '"length"', '"tool_calls"', '"load"', '"error"', '"text"', '"text_delta"', '"thinking"'),
    f'"{CANARY}"',
    json.dumps({"message": f"bad key {CANARY}", "code": 401}),
    json.dumps({"error": {"message": f"Authorization: Bearer {CANARY}", "type": "api_error"}}),
)
"""JSON texts, good and bad, that are put where something else stood."""

NAMES = (
    *("error", "message", "content", "choices", "delta", "usage", "done", "done_reason", "type", "index"),
    *("tool_calls", "function", "arguments", "thinking", "reasoning", "finish_reason", "stop_reason"),
    *("prompt_tokens", "eval_count", "input_tokens", "id", "text", "tokens", CANARY, "", "\ud800", "é"),
)
"""Names of members that are put in the place of others."""

BYTES = (
    *(
        b"\x00",
        b"\xff",
        b"\xc3",
        b"\xed\xa0\x80",
        b"\xef\xbb\xbf",
        b"\n",
        b"\r",
        b"\n\n",
        b"\r\n",
        b'"',
        b"\\",
    ),
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b" ",
        b"data:",
        b"data: [DONE]\n\n",
        b"event: error\n",
        b": ping\n\n",
    ),
    *(b"NaN", b"9" * 400, b"\\ud800", CANARY.encode(), b"id: 1\nretry: x\n", b"<html>", b"\x1b[31m"),
)
"""Bytes that are put anywhere."""


def changed(texts: Sequence[str], program: bytes, frame: Callable[[Sequence[str]], bytes]) -> bytes:
    """The bytes of a reply after `program`.

    Args:
        texts: the JSON texts that the reply is made of: one, or one for each line or event.
        program: the steps; none leaves the reply as it is.
        frame: puts the texts together.
    """
    made = list(texts)
    on_bytes: list[Step] = []
    for step in steps_of(program):
        kind = step[0] % 8
        if kind < 4:
            _change_value(made, step)
        elif kind < 6:
            _change_frames(made, step)
        else:
            on_bytes.append(step)
    raw = frame(made)
    for step in on_bytes:
        raw = _change_bytes(raw, step)
    return raw


def _pick(items: Sequence[Any], number: int) -> Any:
    return items[number % len(items)]


# One value of one JSON text.

_HOLE = "@hole@"


def _change_value(texts: list[str], step: Step) -> None:
    if not texts:
        return
    what, where, how = step
    number = where % len(texts)
    try:
        tree = json.loads(texts[number])
    except (ValueError, RecursionError):
        return  # an earlier step has spoilt it
    places = _places(tree)
    if not places:
        return
    parent, key = _pick(places, where // len(texts))
    change = (what // 8) % 6
    if change < 3:
        parent[key] = _HOLE
    elif change == 3:
        del parent[key]
    elif isinstance(parent, dict):  # renamed, or there twice
        parent[_pick(NAMES, how)] = parent.pop(key) if change == 4 else _HOLE
    else:
        parent.append(parent[key])
    texts[number] = json.dumps(tree).replace(f'"{_HOLE}"', _pick(VALUES, how))


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Every value of a JSON tree as its container and its key there."""
    found: list[tuple[Any, Any]] = []
    waiting = [tree] if isinstance(tree, dict | list) else []
    while waiting:
        node = waiting.pop()
        keys: list[Any] = list(node) if isinstance(node, dict) else list(range(len(node)))
        found += [(node, key) for key in keys]
        waiting += [node[key] for key in keys if isinstance(node[key], dict | list)]
    return found


# The lines and events as a whole.


def _change_frames(texts: list[str], step: Step) -> None:
    what, where, how = step
    if not texts:
        texts.append(_pick(VALUES, how))
        return
    number, other = where % len(texts), how % len(texts)
    match (what // 8) % 6:
        case 0:
            del texts[number]
        case 1:
            texts.insert(other, texts[number])
        case 2:
            texts[number], texts[other] = texts[other], texts[number]
        case 3:
            del texts[number:]
        case 4:
            texts[number] = _pick(VALUES, how)
        case _:
            texts.insert(number, _pick(VALUES, how))


# Bytes, whatever they mean.


def _change_bytes(raw: bytes, step: Step) -> bytes:
    what, where, how = step
    at = where % (len(raw) + 1)
    end = at + 1 + how % 7
    match (what // 8) % 6:
        case 0:
            return raw[:at]
        case 1:
            return raw[:at] + raw[end:]
        case 2:
            return raw[:at] + bytes([how % 256]) + raw[at + 1 :]
        case 3:
            return raw[:at] + raw[at:end] * 3 + raw[end:]
        case _:
            return raw[:at] + bytes(_pick(BYTES, how)) + raw[at:]
