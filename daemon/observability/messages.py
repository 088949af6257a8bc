"""What was said to a model and by it, as the JSON that the GenAI conventions want: without secrets, bounded.

The forms are those of gen-ai-input-messages.json and gen-ai-output-messages.json of
github.com/open-telemetry/semantic-conventions-genai, v0.1.0.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from daemon.observability.redact import Cleaner
from llm.types import LLMMessage, LLMResponse

MAX_TEXT = 8_000
"""Characters of one text."""

MAX_TURNS = 20
"""Turns of a conversation, the last ones."""

MAX_ATTRIBUTE = 64_000
"""Characters of one attribute; what is longer is told by its length alone."""

_REASONS = {"tool_calls": "tool_call"}


def as_text(value: Any, cleaner: Cleaner) -> str:
    """A conversation, an answer, a tool's arguments or a plain text as the text of an attribute.

    Args:
        value: turns, an `LLMResponse`, a mapping or a text.
        cleaner: knows what must not be told.
    """
    if isinstance(value, str):
        return cleaner.text(value, MAX_TEXT)
    if isinstance(value, LLMResponse):
        plain: Any = [_answer(value, cleaner)]
    elif isinstance(value, Mapping):
        plain = cleaner.value(value)
    else:
        plain = _turns(value, cleaner)
    text = json.dumps(plain, ensure_ascii=False)
    if len(text) <= MAX_ATTRIBUTE:
        return text
    return json.dumps({"left_out": f"{len(text)} characters"})


def _turns(turns: Sequence[LLMMessage], cleaner: Cleaner) -> list[dict[str, Any]]:
    return [_turn(turn, cleaner) for turn in turns[-MAX_TURNS:]]


def _turn(turn: LLMMessage, cleaner: Cleaner) -> dict[str, Any]:
    text = cleaner.text(turn.content, MAX_TEXT)
    if turn.role == "tool":
        part = {"type": "tool_call_response", "id": turn.tool_call_id, "response": text}
        return {"role": "tool", "parts": [part]}
    return {"role": turn.role, "parts": [*_text_parts(text), *_tool_parts(turn, cleaner)]}


def _answer(response: LLMResponse, cleaner: Cleaner) -> dict[str, Any]:
    parts: list[dict[str, Any]] = []
    if response.thinking:
        parts.append({"type": "reasoning", "content": cleaner.text(response.thinking, MAX_TEXT)})
    parts += _text_parts(cleaner.text(response.content, MAX_TEXT))
    parts += _tool_parts(response, cleaner)
    reason = _REASONS.get(response.finish_reason, response.finish_reason)
    return {"role": "assistant", "parts": parts, "finish_reason": reason}


def _text_parts(text: str) -> list[dict[str, Any]]:
    return [{"type": "text", "content": text}] if text else []


def _tool_parts(turn: LLMMessage | LLMResponse, cleaner: Cleaner) -> list[dict[str, Any]]:
    return [
        {
            "type": "tool_call",
            "id": call.id,
            "name": cleaner.text(call.name),
            "arguments": cleaner.value(call.arguments),
        }
        for call in turn.tool_calls
    ]
