"""Anthropic's Messages API, version 2023-06-01: our types to its JSON and back.

Source of the facts: the API reference and the pages on models, versions and structured outputs at
platform.claude.com/docs. Version 2026-10-21 takes no sampling parameters at all, which is why the older
one is named in every request.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from llm.types import FinishReason, LLMMessage, LLMRequest, LLMResponse
from llm.wire.common import as_list, as_object, as_text, count, model_name, no_answer, unfenced
from llm.wire.schemas import strict_schema, told
from llm.wire.takes import Takes

VERSION = "2023-06-01"

# First match wins. Others' models behind a server that speaks as Anthropic does take sampling parameters and
# know no schemas (so does Ollama's). An unknown, newer Claude takes no sampling parameters, as all since 4.7,
# and holds its reply to a schema, as all since 4.5.
_MODELS: tuple[tuple[re.Pattern[str], Takes], ...] = tuple(
    (re.compile(pattern), takes)
    for pattern, takes in (
        ("(?!claude)", Takes(seed=False, schema=False)),
        (
            r"claude-(2|instant|3|(opus|sonnet)-4(-[01]|-20\d{6})?(-20\d{6})?$)",
            Takes(both=False, seed=False, schema=False),
        ),
        (r"claude-(opus|sonnet|haiku)-4-5", Takes(both=False, seed=False, limits=False)),
        ("", Takes(temperature=False, top_p=False, both=False, seed=False, limits=False)),
    )
)

_FULL_NAMES = {
    "claude-3-opus": "claude-3-opus-20240229",
    "claude-3-sonnet": "claude-3-sonnet-20240229",
    "claude-3-haiku": "claude-3-haiku-20240307",
    "claude-3-5-sonnet": "claude-3-5-sonnet-20241022",
    "claude-3-5-haiku": "claude-3-5-haiku-20241022",
    "claude-3-7-sonnet": "claude-3-7-sonnet-20250219",
    "claude-opus-4": "claude-opus-4-20250514",
    "claude-sonnet-4": "claude-sonnet-4-20250514",
}

_STOP: Mapping[str, FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "content_filter",
}


def full_name(model: str) -> str:
    """The name that Anthropic's own API knows a short name by.

    The dated name and not "-latest": there is one snapshot of each, its name is the one in Anthropic's
    list of models, and the answer then comes from the model that was asked for. Names since
    claude-opus-4-1 are complete without a date. A retired model stays what it is, and is refused by the
    server as not found: no other model answers in its place unasked.
    """
    name = model.removeprefix("anthropic/")
    return _FULL_NAMES.get(name.removesuffix("-latest"), name)


def takes(model: str) -> Takes:
    """What may be sent for `model`; to a Claude never temperature and top_p together."""
    return next(found for pattern, found in _MODELS if pattern.match(model))


def messages_body(request: LLMRequest, accepted: Takes) -> dict[str, Any]:
    """The body of POST {base}/messages."""
    turns: Sequence[LLMMessage] = request.messages
    body: dict[str, Any] = {"model": request.model, "max_tokens": request.max_tokens}
    if request.schema is not None and accepted.schema:
        body["output_config"] = {"format": {"type": "json_schema", "schema": _schema(request, accepted)}}
    elif request.schema is not None:
        turns = told(turns, request.schema)
    return body | _conversation(turns) | _sampling(request, accepted)


def _schema(request: LLMRequest, accepted: Takes) -> Any:
    schema = request.schema or {}
    return strict_schema(schema, limits=accepted.limits) or schema


def _sampling(request: LLMRequest, accepted: Takes) -> dict[str, float]:
    """The API's temperature ends at 1.0, so a hotter one is sent as that."""
    sent: dict[str, float] = {}
    if accepted.temperature and request.temperature is not None:
        sent["temperature"] = min(request.temperature, 1.0)
    if accepted.top_p and request.top_p is not None and (accepted.both or not sent):
        sent["top_p"] = request.top_p
    return sent


def _conversation(turns: Sequence[LLMMessage]) -> dict[str, Any]:
    """System text at the top level, the rest in turns that alternate."""
    system = "\n\n".join(turn.content for turn in turns if turn.role == "system")
    merged: list[dict[str, str]] = []
    for turn in turns:
        if turn.role == "system":
            continue
        if merged and merged[-1]["role"] == turn.role:
            merged[-1]["content"] += f"\n\n{turn.content}"
        else:
            merged.append({"role": turn.role, "content": turn.content})
    if not merged:  # the API wants at least one turn of the user
        return {"messages": [{"role": "user", "content": system}]}
    return {"messages": merged} | ({"system": system} if system else {})


def read_message(payload: Any, request: LLMRequest, *, backend: str) -> LLMResponse:
    """The answer in a message: its text blocks joined, thinking skipped.

    Raises:
        BadReply: the reply has another shape, or no text.
    """
    reply = as_object(payload, "body")
    blocks = [as_object(block, "content block") for block in as_list(reply.get("content"), "content")]
    usage = as_object(reply.get("usage") or {}, "usage")
    text = "".join(as_text(b.get("text"), "content block") for b in blocks if b.get("type") == "text")
    word = reply.get("stop_reason")
    reason = _STOP.get(word, "other") if isinstance(word, str) else "other"
    if not text and reason != "content_filter":
        _check_silence(blocks, reason, request)
    return LLMResponse(
        content=text if request.schema is None else unfenced(text),
        model=model_name(reply, request),
        backend=backend,
        finish_reason=reason,
        prompt_tokens=_prompt_tokens(usage),
        completion_tokens=count(usage, "output_tokens"),
    )


def _check_silence(blocks: Sequence[Mapping[str, Any]], reason: FinishReason, request: LLMRequest) -> None:
    """An empty text is an answer only when the model ended its turn by itself, without thinking or tools."""
    if reason == "length":
        raise no_answer(request, thinking=True)
    if reason != "stop" or any(block.get("type") != "text" for block in blocks):
        raise no_answer(request, thinking=False)


def _prompt_tokens(usage: Mapping[str, Any]) -> int:
    """`input_tokens` leaves out what was written to or read from the prompt cache."""
    parts = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    return sum(count(usage, part) for part in parts)
