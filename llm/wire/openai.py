"""Chat completions, the wire that OpenAI and most other servers speak: our types to its JSON and back.

Source of the facts: openai/openai-openapi and Ollama's /v1 (recorded from Ollama 0.32.15).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
)
from llm.wire.calls import PartialCall, function_spec
from llm.wire.common import (
    as_list,
    as_object,
    as_text,
    count,
    encode,
    is_clean,
    model_name,
    no_answer,
    unfenced,
)
from llm.wire.gateways import Gateway
from llm.wire.lines import DONE
from llm.wire.schemas import strict_schema, told
from llm.wire.takes import EVERYTHING, Takes, sampling_of

_CHAT = Takes(limits=False, effort=False)
_REASONS = Takes(
    temperature=False,
    top_p=False,
    seed=False,
    stop=False,
    limits=False,
    cap="max_completion_tokens",
    least="low",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    """Models of OpenAI by the beginning of their names; a pattern is compiled when it is first looked at."""

    pattern: str
    takes: Takes
    context: int | None
    tools: bool = True


def _family(pattern: str, takes: Takes, context: int | None, *, tools: bool = True) -> _Family:
    return _Family(pattern=pattern, takes=takes, context=context, tools=tools)


# First match wins. Reasoning models refuse sampling parameters and the older name of the token limit;
# json_schema came with gpt-4o-2024-08-06, what is older only takes words. Only since gpt-5.1 can thinking
# be switched off; before, the least effort is the next best.
_OPENAI: tuple[_Family, ...] = (
    _family(r"gpt-5[\w.]*-chat", replace(_CHAT, cap="max_completion_tokens"), 128_000),
    _family(
        "o1-(mini|preview)", replace(_REASONS, schema=False, effort=False, least=""), 128_000, tools=False
    ),
    _family(r"o\d", _REASONS, 200_000),
    _family(r"gpt-5(-|$)", replace(_REASONS, least="minimal"), 400_000),
    _family(r"gpt-5\.", replace(_REASONS, least="none"), 400_000),
    _family(r"gpt-3\.5", replace(_CHAT, schema=False), 16_385),
    _family(r"gpt-4-(turbo|vision|1106|0125)", replace(_CHAT, schema=False), 128_000),
    _family("gpt-4-32k", replace(_CHAT, schema=False), 32_768),
    _family(r"gpt-4(-\d{4}|$)", replace(_CHAT, schema=False), 8_192),
    _family("gpt-4o-2024-05-13", replace(_CHAT, schema=False), 128_000),
    _family("gpt-4o", _CHAT, 128_000),
    _family(r"gpt-4\.1", _CHAT, 1_047_576),
    _family("text-embedding-", _CHAT, 8_192, tools=False),
    _family("", replace(_CHAT, effort=True), None),
)

_FINISH: Mapping[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "content_filter": "content_filter",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
}

_THOUGHTS = ("reasoning_content", "reasoning")
"""Where thinking is told: by vLLM, llama.cpp and DeepSeek; by Ollama, OpenRouter and MLX."""


def takes(model: str, *, vendor: bool) -> Takes:
    """What may be sent for `model`.

    Args:
        model: its name, perhaps fine-tuned ("ft:gpt-4o-mini:...").
        vendor: whether OpenAI itself is asked. Others give old names to other models, and Ollama's /v1
            silently drops `max_completion_tokens`, so nothing is concluded from a name there.
    """
    return _family_of(model).takes if vendor else EVERYTHING


def _family_of(model: str) -> _Family:
    name = model.removeprefix("ft:")
    return next(family for family in _OPENAI if re.match(family.pattern, name))


def capabilities(model: str, gateway: Gateway, accepted: Takes) -> Capabilities:
    """What `model` can do behind `gateway`, as far as names tell; cautious where they do not."""
    family = _family_of(model) if gateway.names_say else None
    embedding = "embed" in model.rpartition("/")[2].lower()
    known = family is not None and family.context is not None
    return Capabilities(
        model=model,
        sampling=sampling_of(accepted),
        schema=known and accepted.schema and not embedding,
        tools=(gateway.tools if family is None else family.tools) and not embedding,
        thinking=bool(accepted.least),
        always_thinks=accepted.least not in {"", "none"},
        embedding=embedding,
        chat=not embedding,
        context_length=None if family is None else family.context,
    )


def chat_body(request: LLMRequest, accepted: Takes, *, stream: bool = False) -> dict[str, Any]:
    """The body of POST {base}/chat/completions."""
    messages = request.messages
    body: dict[str, Any] = {"model": request.model, "stream": stream, accepted.cap: request.max_tokens}
    if stream and accepted.usage:
        body["stream_options"] = {"include_usage": True}  # else a stream ends without its counts
    if request.schema is not None and accepted.schema:
        body["response_format"] = _response_format(request.schema, accepted)
    elif request.schema is not None:
        messages = told(messages, request.schema)
    body["messages"] = [_turn(message) for message in messages]
    if request.temperature is not None and accepted.temperature:
        body["temperature"] = request.temperature
    if request.top_p is not None and accepted.top_p and (accepted.both or "temperature" not in body):
        body["top_p"] = request.top_p
    if request.seed is not None and accepted.seed:
        body[accepted.seed_name] = request.seed
    if request.stop and accepted.stop:
        body["stop"] = list(request.stop)
    if request.tools:
        body["tools"] = [function_spec(tool) for tool in request.tools]
    return _with_thinking(body, request.think, accepted)


def _turn(message: LLMMessage) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        turn["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": encode(call.arguments).decode()},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    return turn


def _with_thinking(body: dict[str, Any], think: Think, accepted: Takes) -> dict[str, Any]:
    """An effort that the service knows; and the template's switch, because open models think unless told."""
    if accepted.switch:
        body["chat_template_kwargs"] = {"enable_thinking": bool(think)}
    if accepted.effort and isinstance(think, str):
        body["reasoning_effort"] = think
    elif accepted.effort and think:
        if not accepted.switch:
            body["reasoning_effort"] = "medium"
    elif accepted.effort and accepted.least:
        body["reasoning_effort"] = accepted.least
    return body


def _response_format(schema: Mapping[str, Any], accepted: Takes) -> dict[str, Any]:
    """`strict` is false unless asked for, and then the schema must close every object."""
    strict = strict_schema(schema, limits=accepted.limits)
    described = {"name": "reply", "strict": strict is not None, "schema": strict or schema}
    return {"type": "json_schema", "json_schema": described}


def read_chat(payload: Any, request: LLMRequest, *, backend: str) -> LLMResponse:
    """The answer in a chat completion.

    A refusal is an answer too: its words are the content, and `finish_reason` is "content_filter".

    Raises:
        BadReply: the reply has another shape, or says nothing (only thinking).
    """
    reply = as_object(payload, "body")
    choices = as_list(reply.get("choices"), "choices")
    if not choices:
        msg = "the reply has no choices"
        raise BadReply(msg)
    choice = as_object(choices[0], "choices[0]")
    as_object(choice.get("message"), "choices[0].message")
    answer = ChatStream(request, backend=backend)
    answer.feed(reply)
    return answer.response()


class ChatStream:
    """Puts one answer together from the chunks of a stream; a whole completion is a stream of one chunk.

    Args:
        request: the call.
        backend: name of the backend for the response.
    """

    def __init__(self, request: LLMRequest, *, backend: str) -> None:
        self._request, self._backend = request, backend
        self._texts: list[str] = []
        self._refused = False
        self._thoughts: list[str] = []
        self._calls: list[PartialCall] = []
        self._model = ""
        self._finish: str | None = None
        self._usage: Mapping[str, Any] = {}
        self._said = False  # the content was there, if only as an empty text
        self._ended = False

    def feed(self, payload: Any) -> Sequence[Chunk]:
        """What one value of the stream says.

        Raises:
            BadReply: it has another shape.
        """
        if payload is DONE:
            self._ended = True
            return ()
        reply = as_object(payload, "body")
        self._model = self._model or model_name(reply, "")
        if reply.get("usage"):  # null in all chunks but the last, and that has no choices
            self._usage = as_object(reply["usage"], "usage")
        choices = as_list(reply.get("choices") or [], "choices")
        if not choices:
            return ()
        choice = as_object(choices[0], "choices[0]")
        word = choice.get("finish_reason")
        if isinstance(word, str) and word:
            self._finish, self._ended = word, True
        if "message" in choice:  # a whole completion
            self._ended = True
            return self._take(as_object(choice["message"], "choices[0].message"))
        return self._take(as_object(choice.get("delta") or {}, "choices[0].delta"))

    def _take(self, message: Mapping[str, Any]) -> Sequence[Chunk]:
        content = message.get("content")
        text = content if type(content) is str else None
        if text is not None and len(message) == 1 and is_clean(text):  # all but a few chunks of any stream
            self._said = True
            if not text:
                return ()
            self._texts.append(text)
            return (TextChunk(text),)
        return self._take_all(message)

    def _take_all(self, message: Mapping[str, Any]) -> Sequence[Chunk]:
        chunks: list[Chunk] = []
        thought = next((message[key] for key in _THOUGHTS if message.get(key)), "")
        if thought:
            self._thoughts.append(as_text(thought, "message.reasoning"))
            chunks.append(ThinkingChunk(self._thoughts[-1]))
        content = message.get("content")
        self._said = self._said or content is not None
        text = _joined(content)
        if text:
            self._texts.append(text)
            chunks.append(TextChunk(text))
        if message.get("refusal"):
            self._texts.append(as_text(message["refusal"], "message.refusal"))
            chunks.append(TextChunk(self._texts[-1]))
            self._refused = True
        for call in as_list(message.get("tool_calls") or [], "tool_calls"):
            self._take_call(as_object(call, "tool_calls[]"))
        return chunks

    def _take_call(self, call: Mapping[str, Any]) -> None:
        """One piece of one call; `index` says of which, where a gateway leaves it out its id does."""
        named, index = call.get("id"), call.get("index")
        found = next(
            (
                known
                for known in self._calls
                if (known.index == index if index is not None else named in {None, known.id})
            ),
            None,
        )
        if found is None:
            found = PartialCall(index=index)
            self._calls.append(found)
        function = as_object(call.get("function") or {}, "tool_calls[].function")
        found.add(named, function.get("name"), function.get("arguments"))

    def finish(self) -> LLMResponse:
        """The whole answer, once the stream has ended.

        Raises:
            BadReply: the stream broke off before its end, or nothing was said in it.
        """
        if not self._ended:
            msg = (
                "the stream broke off before its end (no finish_reason, no [DONE]); the model's engine may "
                "have died"
            )
            raise BadReply(msg)
        return self.response()

    def response(self) -> LLMResponse:
        """The answer as far as it has come.

        Raises:
            BadReply: nothing was said in it.
        """
        content, reason = self._content()
        request, usage = self._request, self._usage
        prompt = as_object(usage.get("prompt_tokens_details") or {}, "usage.prompt_tokens_details")
        completion = as_object(
            usage.get("completion_tokens_details") or {}, "usage.completion_tokens_details"
        )
        return LLMResponse(
            content=content if request.schema is None else unfenced(content),
            model=self._model or request.model,
            backend=self._backend,
            finish_reason=reason,
            prompt_tokens=count(usage, "prompt_tokens"),
            completion_tokens=count(usage, "completion_tokens"),
            cached_tokens=count(prompt, "cached_tokens") or count(usage, "prompt_cache_hit_tokens"),
            thinking_tokens=count(completion, "reasoning_tokens"),
            thinking="".join(self._thoughts),
            tool_calls=tuple(call.whole() for call in self._calls),
        )

    def _content(self) -> tuple[str, FinishReason]:
        """The text and why it ended; silence is an answer only of a model that ended by itself."""
        reason: FinishReason = "other" if self._finish is None else _FINISH.get(self._finish, "other")
        text = "".join(self._texts)
        if self._refused:
            return text, "content_filter"
        if self._calls:  # some gateways say "stop" although a call is wanted
            return text, "length" if reason == "length" else "tool_calls"
        if not text and reason != "content_filter":
            if self._thoughts or reason == "length":
                raise no_answer(self._request, thinking=True)
            if reason != "stop" or not self._said:
                raise no_answer(self._request, thinking=False)
        return text, reason


def _joined(content: Any) -> str:
    """The text; some gateways send a list of parts instead of one string."""
    if content is None:
        return ""
    if not isinstance(content, list):
        return as_text(content, "choices[0].message.content")
    parts = [as_object(part, "content part") for part in content]
    return "".join(as_text(part.get("text"), "content part") for part in parts if part.get("type") == "text")
