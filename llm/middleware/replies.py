"""Which replies the cache keeps, and how one is written down and read again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import fields, replace
from typing import Any

from llm.errors import LLMError
from llm.structured import validate
from llm.types import LLMRequest, LLMResponse, ToolCall

_OWN = frozenset({"cached", "first_token", "latency", "call_id"})
"""What belongs to one call and not to its answer; all other fields are kept."""

_KEPT = {f.name: f.default for f in fields(LLMResponse) if f.name not in _OWN}

_WHOLE = frozenset({"stop", "length", "tool_calls"})
_decode = json.JSONDecoder().raw_decode


def is_whole(response: LLMResponse, request: LLMRequest) -> bool:
    """Whether a reply is worth keeping: ended or cut as asked, not empty, and fitting the schema if any.

    A wish for tools is kept like any answer. It is the model's reply to exactly this conversation and these
    tools, and says what to call, not what came of it: the caller runs the tools each time. One that names a
    tool that was not offered is not kept, because the model may do better when it is asked again.
    """
    if response.finish_reason not in _WHOLE:
        return False
    if response.tool_calls:
        offered = {tool.name for tool in request.tools}
        return all(call.name in offered for call in response.tool_calls)
    if response.finish_reason == "tool_calls" or not response.content or response.content.isspace():
        return False
    return request.schema is None or _fits(request, response.content)


def _fits(request: LLMRequest, content: str) -> bool:
    try:
        validate(request.schema or {}, content)
    except LLMError:
        return False
    return True


def apart(response: LLMResponse) -> LLMResponse:
    """The reply with arguments of its own: whoever changes them does not change the kept ones."""
    calls = tuple(replace(call, arguments=deepcopy(dict(call.arguments))) for call in response.tool_calls)
    return replace(response, tool_calls=calls)


def written_reply(response: LLMResponse) -> str | None:
    """A reply as JSON, without what belongs to its call; None when it has a part that JSON cannot hold.

    What has its default is left out.
    """
    kept = {name: value for name, default in _KEPT.items() if (value := getattr(response, name)) != default}
    if response.tool_calls:
        kept["tool_calls"] = [[call.id, call.name, dict(call.arguments)] for call in response.tool_calls]
    try:
        return json.dumps(kept, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError):
        return None


def read_reply(text: str) -> LLMResponse | None:
    """A kept reply, None if it is none."""
    try:
        kept, end = _decode(text)
        if end != len(text):
            return None
        if "tool_calls" in kept:
            kept["tool_calls"] = tuple(_tool_call(*each) for each in kept["tool_calls"])
        response = LLMResponse(**kept)
    except (TypeError, ValueError, RecursionError):
        return None
    return response if _is_sound(response) and _OWN.isdisjoint(kept) else None


def _is_sound(reply: Any) -> bool:
    return (
        type(reply.content) is type(reply.model) is type(reply.backend) is str
        and type(reply.thinking) is type(reply.finish_reason) is type(reply.opaque) is str
        and type(reply.prompt_tokens) is type(reply.completion_tokens) is int
        and type(reply.cached_tokens) is type(reply.thinking_tokens) is int
    )


def _tool_call(name: Any, tool: Any, arguments: Any) -> ToolCall:
    if not (isinstance(name, str) and isinstance(tool, str) and isinstance(arguments, Mapping)):
        msg = "no tool call"
        raise TypeError(msg)
    return ToolCall(name, tool, arguments)
