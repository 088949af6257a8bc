"""Anthropic's Messages API: our types to its JSON and back.

Source of the facts: the API reference and the pages on models, versions, thinking and structured outputs at
platform.claude.com/docs. Version 2026-10-21 takes no sampling parameters at all, which is why the older
one is asked for unless the configuration names another.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from llm.errors import BadReply
from llm.types import (
    Capabilities,
    Chunk,
    FinishReason,
    LLMMessage,
    LLMRequest,
    LLMResponse,
    TextChunk,
    Think,
    ThinkingChunk,
    ToolCall,
)
from llm.wire.calls import parsed_arguments, tool_call
from llm.wire.common import as_list, as_object, as_text, count, model_name, no_answer, unfenced
from llm.wire.schemas import strict_schema, told
from llm.wire.takes import Takes, sampling_of

VERSION = "2023-06-01"
WITHOUT_SAMPLING = "2026-10-21"
"""From this version on any sampling parameter, even with its default value, is refused."""

_OTHERS = Takes(seed=False, schema=False, effort=False, thinking="budget")
_OLDEST = Takes(both=False, seed=False, schema=False, effort=False)
_NEWEST = Takes(temperature=False, top_p=False, both=False, seed=False, limits=False, least="low")

# First match wins. Others' models behind a server that speaks as Anthropic does take sampling parameters and
# know no schemas (so does Ollama's). An unknown, newer Claude takes no sampling parameters, as all since 4.7,
# holds its reply to a schema, as all since 4.5, and is only told how hard to think: since 5.5 thinking
# cannot be switched off, and a budget is refused.
_MODELS: tuple[tuple[str, Takes], ...] = (
    ("(?!claude)", _OTHERS),
    (r"claude-3-7|claude-3\.7", replace(_OLDEST, thinking="budget")),
    ("claude-(2|instant|3)", _OLDEST),
    (r"claude-(opus|sonnet)-4(-[01]|-20\d{6})?(-20\d{6})?$", replace(_OLDEST, thinking="budget")),
    (
        r"claude-(opus|sonnet|haiku)-4-5",
        Takes(both=False, seed=False, limits=False, effort=False, thinking="budget"),
    ),
    (r"claude-\w+-(4-\d|5(-20|$))", replace(_NEWEST, thinking="adaptive", least="")),
    ("", _NEWEST),
)

_BUDGETS: Mapping[str, int] = {"low": 1024, "medium": 4096, "high": 16384}
"""Tokens of thinking; they come on top of `max_tokens`, which the API counts together. 1024 is its least."""

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

_OURS = "anthropic"
_SIGNED = frozenset({"thinking", "redacted_thinking"})

_STOP: Mapping[str, FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "content_filter",
    "tool_use": "tool_calls",
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


def takes(model: str, version: str = VERSION) -> Takes:
    """What may be sent for `model`; to a Claude never temperature and top_p together."""
    found = next(found for pattern, found in _MODELS if re.match(pattern, model))
    return found if version < WITHOUT_SAMPLING else replace(found, temperature=False, top_p=False)


def capabilities(model: str, accepted: Takes) -> Capabilities:
    """What `model` can do; cautious about models that are not Anthropic's own."""
    claude = model.startswith("claude")
    return Capabilities(
        model=model,
        sampling=sampling_of(accepted),
        schema=claude and accepted.schema,
        tools=claude and not model.startswith(("claude-2", "claude-instant")),
        thinking=claude and accepted.can_think,
        always_thinks=claude and accepted.least == "low",
        context_length=200_000 if claude and not model.startswith("claude-instant") else None,
    )


def messages_body(request: LLMRequest, accepted: Takes, *, stream: bool = False) -> dict[str, Any]:
    """The body of POST {base}/messages."""
    turns: Sequence[LLMMessage] = request.messages
    body: dict[str, Any] = {"model": request.model, "max_tokens": request.max_tokens}
    output: dict[str, Any] = {}
    if request.schema is not None and accepted.schema:
        output["format"] = {"type": "json_schema", "schema": _schema(request, accepted)}
    elif request.schema is not None:
        turns = told(turns, request.schema)
    effort = _effort(request.think, accepted)
    if effort:
        output["effort"] = effort
    if output:
        body["output_config"] = output
    if stream:
        body["stream"] = True
    if request.stop and accepted.stop:
        body["stop_sequences"] = list(request.stop)
    if request.tools:
        body["tools"] = [
            {"name": tool.name, "description": tool.description, "input_schema": tool.parameters}
            for tool in request.tools
        ]
    return body | _conversation(turns) | _thinking_or_sampling(request, accepted)


def _schema(request: LLMRequest, accepted: Takes) -> Any:
    schema = request.schema or {}
    return strict_schema(schema, limits=accepted.limits) or schema


def _effort(think: Think, accepted: Takes) -> str:
    """Empty where nothing is said: the model's own depth, or no thinking at all."""
    if not accepted.effort:
        return ""
    if isinstance(think, str):
        return think
    return "" if think else accepted.least


def _thinking_or_sampling(request: LLMRequest, accepted: Takes) -> dict[str, Any]:
    """Whoever thinks on a budget is not sampled otherwise: the API refuses the two together."""
    if request.think and accepted.thinking == "budget":
        tokens = _BUDGETS[request.think if isinstance(request.think, str) else "medium"]
        thinking = {"type": "enabled", "budget_tokens": tokens}
        return {"thinking": thinking, "max_tokens": request.max_tokens + tokens}
    if request.think and accepted.thinking == "adaptive":
        return {"thinking": {"type": "adaptive"}}
    return _sampling(request, accepted)


def _sampling(request: LLMRequest, accepted: Takes) -> dict[str, Any]:
    """The API's temperature ends at 1.0, so a hotter one is sent as that."""
    sent: dict[str, Any] = {}
    if accepted.temperature and request.temperature is not None:
        sent["temperature"] = min(request.temperature, 1.0)
    if accepted.top_p and request.top_p is not None and (accepted.both or not sent):
        sent["top_p"] = request.top_p
    return sent


def _conversation(turns: Sequence[LLMMessage]) -> dict[str, Any]:
    """System text at the top level, the rest in turns that alternate."""
    system = "\n\n".join(turn.content for turn in turns if turn.role == "system")
    merged: list[dict[str, Any]] = []
    for turn in turns:
        if turn.role == "system":
            continue
        role = "user" if turn.role == "tool" else turn.role
        content = _content(turn)
        if merged and merged[-1]["role"] == role:
            merged[-1]["content"] = _together(merged[-1]["content"], content)
        else:
            merged.append({"role": role, "content": content})
    if not merged:  # the API wants at least one turn of the user
        return {"messages": [{"role": "user", "content": system}]}
    return {"messages": merged} | ({"system": system} if system else {})


def _content(turn: LLMMessage) -> str | list[Any]:
    """A turn's text, or its blocks: what came from here goes back as it was, signed thinking and all."""
    if turn.role == "tool":
        return [{"type": "tool_result", "tool_use_id": turn.tool_call_id, "content": turn.content}]
    if not turn.tool_calls:
        return turn.content
    kept = _kept_blocks(turn)
    if kept is not None:
        return kept
    calls = [
        {"type": "tool_use", "id": call.id, "name": call.name, "input": dict(call.arguments)}
        for call in turn.tool_calls
    ]
    return [*_blocks(turn.content), *calls]


def _kept_blocks(turn: LLMMessage) -> list[Any] | None:
    """The blocks that `opaque` holds, None if it is another service's or none."""
    try:
        found = json.loads(turn.opaque) if turn.opaque else None
    except ValueError:
        return None
    blocks = found.get(_OURS) if isinstance(found, dict) else None
    return blocks if isinstance(blocks, list) else None


def _together(first: str | list[Any], second: str | list[Any]) -> str | list[Any]:
    if isinstance(first, str) and isinstance(second, str):
        return f"{first}\n\n{second}"
    return [*_blocks(first), *_blocks(second)]


def _blocks(content: str | list[Any]) -> list[Any]:
    """The API refuses empty text blocks."""
    if isinstance(content, list):
        return content
    return [{"type": "text", "text": content}] if content.strip() else []


def read_message(payload: Any, request: LLMRequest, *, backend: str) -> LLMResponse:
    """The answer in a message: its text blocks joined, its thinking apart.

    Raises:
        BadReply: the reply has another shape, or says nothing.
    """
    answer = MessageStream(request, backend=backend)
    answer.take_whole(as_object(payload, "body"))
    return answer.finish()


class MessageStream:
    """Puts one answer together from the events of a stream.

    Args:
        request: the call.
        backend: name of the backend for the response.
    """

    def __init__(self, request: LLMRequest, *, backend: str) -> None:
        self._request, self._backend = request, backend
        self._blocks: dict[Any, _Block] = {}
        self._texts: list[str] = []  # as they came, so that the pieces told are the answer told
        self._thoughts: list[str] = []
        self._message: Mapping[str, Any] = {}
        self._usage: dict[str, Any] = {}
        self._stop: Any = None
        self._ended = False

    def feed(self, payload: Any) -> Sequence[Chunk]:
        """What one event says; kinds that are not known say nothing.

        Raises:
            BadReply: it has another shape.
        """
        event = as_object(payload, "event")
        kind = event.get("type")
        if kind == "content_block_delta":
            return self._delta(event)
        if kind == "content_block_start":
            block = _Block(as_object(event.get("content_block"), "content block"))
            self._blocks[_index(event)] = block
            return self._told(block.begin())
        if kind == "message_start":
            self._message = as_object(event.get("message"), "message")
            self._count(self._message)
        elif kind == "message_delta":
            self._count(event)
            self._stop = as_object(event.get("delta") or {}, "delta").get("stop_reason") or self._stop
        elif kind == "message_stop":
            self._ended = True
        elif kind == "message":  # a server that does not stream
            return self.take_whole(event)
        return ()

    def take_whole(self, message: Mapping[str, Any]) -> Sequence[Chunk]:
        """A message in one piece."""
        blocks = as_list(message.get("content"), "content")
        self._blocks = {n: _Block(as_object(block, "content block")) for n, block in enumerate(blocks)}
        self._message, self._stop, self._ended = message, message.get("stop_reason"), True
        self._count(message)
        return [chunk for block in self._blocks.values() for chunk in self._told(block.chunks())]

    def _told(self, chunks: Sequence[Chunk]) -> Sequence[Chunk]:
        for chunk in chunks:
            if isinstance(chunk, TextChunk):
                self._texts.append(chunk.text)
            elif isinstance(chunk, ThinkingChunk):
                self._thoughts.append(chunk.text)
        return chunks

    def _delta(self, event: Mapping[str, Any]) -> Sequence[Chunk]:
        block = self._blocks.get(_index(event))
        if block is None:
            msg = "the stream goes on with a content block that was not begun"
            raise BadReply(msg)
        delta = as_object(event.get("delta"), "delta")
        if delta.get("type") == "text_delta":
            text = block.more("text", delta)
            self._texts.append(text)
            return (TextChunk(text),) if text else ()
        if delta.get("type") == "thinking_delta":
            text = block.more("thinking", delta)
            self._thoughts.append(text)
            return (ThinkingChunk(text),) if text else ()
        if delta.get("type") == "input_json_delta":
            block.more("partial_json", delta)
        elif delta.get("type") == "signature_delta":
            block.more("signature", delta)
        return ()

    def _count(self, holder: Mapping[str, Any]) -> None:
        """Counts are cumulative: a later one replaces an earlier one."""
        usage = as_object(holder.get("usage") or {}, "usage")
        self._usage |= {name: value for name, value in usage.items() if value is not None}

    def finish(self) -> LLMResponse:
        """The whole answer, once the stream has ended.

        Raises:
            BadReply: the stream broke off before its end, or nothing was said in it.
        """
        if not self._ended:
            msg = "the stream broke off before its end (no message_stop); the model's engine may have died"
            raise BadReply(msg)
        request, blocks = self._request, [block.whole() for _, block in sorted(self._blocks.items())]
        text, thinking = "".join(self._texts), "".join(self._thoughts)
        calls = tuple(_call(block) for block in blocks if block.get("type") == "tool_use")
        word = self._stop
        reason = _STOP.get(word, "other") if isinstance(word, str) else "other"
        if not text and not calls and reason != "content_filter":
            _check_silence(blocks, reason, request)
        details = as_object(self._usage.get("output_tokens_details") or {}, "usage.output_tokens_details")
        return LLMResponse(
            content=text if request.schema is None else unfenced(text),
            model=model_name(self._message, request.model),
            backend=self._backend,
            finish_reason=reason,
            prompt_tokens=_prompt_tokens(self._usage),
            completion_tokens=count(self._usage, "output_tokens"),
            cached_tokens=count(self._usage, "cache_read_input_tokens"),
            thinking_tokens=count(details, "thinking_tokens"),
            thinking=thinking,
            tool_calls=calls,
            opaque=_kept(blocks) if calls else "",
        )


class _Block:
    """One content block; what comes in pieces is joined at the end."""

    def __init__(self, begun: Mapping[str, Any]) -> None:
        self._begun = begun
        self._pieces: dict[str, list[str]] = {}

    def more(self, key: str, delta: Mapping[str, Any]) -> str:
        text = as_text(delta.get(key), f"delta.{key}")
        self._pieces.setdefault(key, []).append(text)
        return text

    def begin(self) -> Sequence[Chunk]:
        """What is said where a block begins: nothing as a rule, but it may have words already."""
        return self.chunks() if self._begun.get("text") or self._begun.get("thinking") else ()

    def chunks(self) -> Sequence[Chunk]:
        """What a block says that is there as a whole."""
        kind = self._begun.get("type")
        if kind == "text":
            text = as_text(self._begun.get("text"), "content block")
            return (TextChunk(text),) if text else ()
        if kind == "thinking":
            text = as_text(self._begun.get("thinking"), "content block")
            return (ThinkingChunk(text),) if text else ()
        return ()

    def whole(self) -> dict[str, Any]:
        """The block as a message that came in one piece would hold it."""
        made = dict(self._begun)
        for key, pieces in self._pieces.items():
            if key == "partial_json":
                made["input"] = parsed_arguments(str(made.get("name", "")), "".join(pieces))
            else:
                made[key] = as_text(made.get(key) or "", "content block") + "".join(pieces)
        return made


def _index(event: Mapping[str, Any]) -> int:
    index = event.get("index")
    if type(index) is not int:
        msg = "a content block of the stream has no index"
        raise BadReply(msg)
    return index


def _kept(blocks: Sequence[Mapping[str, Any]]) -> str:
    """The blocks as they are, where signed thinking is among them, which a tool's result must follow."""
    if not any(block.get("type") in _SIGNED for block in blocks):
        return ""
    return json.dumps({_OURS: blocks}, separators=(",", ":"))


def _call(block: Mapping[str, Any]) -> ToolCall:
    named = as_text(block.get("id") or "", "tool_use.id")
    return tool_call(named, as_text(block.get("name") or "", "tool_use.name"), block.get("input") or {})


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
