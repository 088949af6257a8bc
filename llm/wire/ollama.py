"""Ollama's own /api: our types to its JSON and back.

Source of the facts: Ollama 0.32.15, recorded, and its `api/types.go`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llm.errors import BadReply
from llm.types import (
    Capabilities,
    Chunk,
    EmbedRequest,
    FinishReason,
    LLMMessage,
    LLMRequest,
    LLMResponse,
    TextChunk,
    ThinkingChunk,
    ToolCall,
)
from llm.wire.calls import function_spec, tool_call
from llm.wire.common import as_list, as_object, as_text, count, model_name, no_answer
from llm.wire.vectors import Vectors, unit_vectors

_FINISH: Mapping[str, FinishReason] = {"stop": "stop", "length": "length"}
_NO_ANSWER = frozenset({"load", "unload"})
_ALWAYS_THINKS = "gpt-oss"
"""The family that ignores `think: false` and only knows levels."""

_VERSION = re.compile(r"0*[0-9]{1,6}(\.[0-9]{1,6}){1,3}")

_CLOUD = re.compile(r"[-:]cloud$")
"""Models that Ollama's cloud runs are held to no schema."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OllamaModel:
    """One model that the server has.

    Attributes:
        name: with its tag, as "qwen2.5:1.5b".
        size: bytes on disk.
        capabilities: such as "completion", "tools", "thinking", "embedding"; None when an older server
            does not say.
        digest: of its weights and settings, empty where the server does not say.
    """

    name: str
    size: int
    capabilities: tuple[str, ...] | None
    digest: str = field(default="", compare=False)


def chat_body(
    request: LLMRequest,
    *,
    num_ctx: int,
    stream: bool = False,
    thinks: bool | None = None,
    keep_alive: str | None = None,
) -> dict[str, Any]:
    """The body of POST /api/chat.

    Args:
        request: the call.
        num_ctx: tokens of context; the same in every call, because a change reloads the model.
        stream: whether the answer shall come in pieces; said in any case, because Ollama's default is yes.
        thinks: whether the model can think, None if that is not known.
        keep_alive: how long the model stays loaded, as the configuration says it.
    """
    options = {
        "temperature": request.temperature,
        "top_p": request.top_p,
        "seed": request.seed,
        "num_predict": request.max_tokens,
        "num_ctx": num_ctx,
        "stop": list(request.stop) or None,
    }
    body: dict[str, Any] = {
        "model": request.model,
        "messages": _turns(request.messages),
        "stream": stream,
        "think": _think(request, thinks=thinks),
        "truncate": False,  # else a prompt over num_ctx is cut to half of it without a word
        "options": {name: value for name, value in options.items() if value is not None},
    }
    if request.schema is not None:
        body["format"] = dict(request.schema)
    if request.tools:
        body["tools"] = [function_spec(tool) for tool in request.tools]
    if keep_alive is not None:
        body["keep_alive"] = duration(keep_alive)
    return body


def is_older(payload: Any, version: tuple[int, ...]) -> bool:
    """Whether a reply of /api/version names one before `version`; one that names none counts as new."""
    text = payload.get("version") if isinstance(payload, dict) else None
    found = _VERSION.match(text) if isinstance(text, str) else None
    return found is not None and tuple(int(part) for part in found[0].split(".")) < version


def always_thinks(model: str) -> bool:
    """Whether the model ignores `think: false` and only knows levels."""
    return model.rpartition("/")[2].startswith(_ALWAYS_THINKS)


def _think(request: LLMRequest, *, thinks: bool | None) -> bool | str:
    """Unset means on for a model that can think; false is accepted for all, so nobody has to be asked."""
    if always_thinks(request.model):
        return request.think if isinstance(request.think, str) else ("medium" if request.think else "low")
    return bool(request.think) and thinks is not False


def duration(text: str) -> int | float | str:
    """A `keep_alive` as Ollama reads it: a number is seconds, but as a text without unit it is an error."""
    try:
        number = float(text)
    except ValueError:
        return text.strip()
    return int(number) if number == int(number) else number


def _turns(messages: Sequence[LLMMessage]) -> list[dict[str, Any]]:
    if not any(message.tool_calls or message.tool_call_id for message in messages):
        return [{"role": message.role, "content": message.content} for message in messages]
    names = {call.id: call.name for message in messages for call in message.tool_calls}
    return [_turn(message, names) for message in messages]


def _turn(message: LLMMessage, names: Mapping[str, str]) -> dict[str, Any]:
    """The arguments of calls are an object here; a result is known by its tool's name and by its call."""
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        turn["tool_calls"] = [
            {"id": call.id, "function": {"name": call.name, "arguments": dict(call.arguments)}}
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
        turn["tool_name"] = names.get(message.tool_call_id, "")
    return turn


def embed_body(request: EmbedRequest, *, truncate: bool, keep_alive: str | None = None) -> dict[str, Any]:
    """The body of POST /api/embed.

    Args:
        request: the texts.
        truncate: whether a text longer than the context is cut; it is refused otherwise.
        keep_alive: as in `chat_body`.
    """
    body: dict[str, Any] = {"model": request.model, "input": list(request.texts), "truncate": truncate}
    return body if keep_alive is None else body | {"keep_alive": duration(keep_alive)}


def read_embed(payload: Any, request: EmbedRequest) -> tuple[Vectors, int]:
    """The vectors of a reply of /api/embed, and the tokens of their texts.

    Raises:
        BadReply: the reply has another shape, or not one vector for each text.
    """
    reply = as_object(payload, "body")
    rows = as_list(reply.get("embeddings"), "embeddings")
    return unit_vectors(rows, len(request.texts)), count(reply, "prompt_eval_count")


def read_capabilities(payload: Any, model: str) -> Capabilities:
    """What a model can do, from a reply of /api/show; cautious where an older server does not say.

    Raises:
        BadReply: the reply has another shape.
    """
    reply = as_object(payload, "body")
    words = reply.get("capabilities")
    said = isinstance(words, list)
    able = frozenset(str(word) for word in words) if isinstance(words, list) else frozenset({"completion"})
    info = as_object(reply.get("model_info") or {}, "model_info")
    length = info.get(f"{info.get('general.architecture')}.context_length")
    return Capabilities(
        model=model,
        schema="completion" in able and not _CLOUD.search(model),
        tools="tools" in able,
        thinking="thinking" in able,
        always_thinks=always_thinks(model),
        vision="vision" in able,
        embedding="embedding" in able,
        chat="completion" in able or not said,
        context_length=length if type(length) is int and length > 0 else None,
    )


def read_chat(payload: Any, request: LLMRequest, *, backend: str) -> LLMResponse:
    """The answer in a reply of /api/chat.

    Raises:
        BadReply: the reply has another shape, is not finished, or says nothing.
    """
    answer = ChatStream(request, backend=backend)
    answer.feed(payload)
    return answer.finish()


class ChatStream:
    """Puts one answer together from the lines of a stream; a whole reply is a stream of one line.

    Args:
        request: the call.
        backend: name of the backend for the response.
    """

    def __init__(self, request: LLMRequest, *, backend: str) -> None:
        self._request, self._backend = request, backend
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._calls: list[ToolCall] = []
        self._end: Mapping[str, Any] | None = None

    def feed(self, payload: Any) -> Sequence[Chunk]:
        """What one line of the stream says.

        Raises:
            BadReply: it has another shape.
        """
        reply = as_object(payload, "body")
        if reply.get("done") is True:
            self._end = reply
        message = as_object(reply.get("message"), "message")
        text = as_text(message.get("content"), "message.content")
        if "thinking" in message or "tool_calls" in message:
            return self._take_all(message, text)
        if not text:
            return ()
        self._texts.append(text)
        return (TextChunk(text),)

    def _take_all(self, message: Mapping[str, Any], text: str) -> Sequence[Chunk]:
        chunks: list[Chunk] = []
        if message.get("thinking"):
            self._thoughts.append(as_text(message["thinking"], "message.thinking"))
            chunks.append(ThinkingChunk(self._thoughts[-1]))
        if text:
            self._texts.append(text)
            chunks.append(TextChunk(text))
        for entry in as_list(message.get("tool_calls") or [], "message.tool_calls"):
            self._calls.append(_call(as_object(entry, "tool_calls[]"), len(self._calls)))
        return chunks

    def finish(self) -> LLMResponse:
        """The whole answer, once the stream has ended.

        Raises:
            BadReply: its last line did not come, or nothing was said in it.
        """
        end = self._end
        if end is None:
            msg = "the reply is not finished (done is not true)"
            raise BadReply(msg)
        word = as_text(end.get("done_reason") or "stop", "done_reason")  # left out by servers before 0.5
        if word in _NO_ANSWER:
            msg = f"the server did not answer but {word}ed the model"
            raise BadReply(msg)
        reason = _FINISH.get(word, "other")
        content, thinking = "".join(self._texts), "".join(self._thoughts)
        if self._calls and reason != "length":
            reason = "tool_calls"  # Ollama says "stop"
        if not content and not self._calls and (thinking or reason == "length"):
            raise no_answer(self._request, thinking=True)
        return LLMResponse(
            content=content,
            model=model_name(end, self._request.model),
            backend=self._backend,
            finish_reason=reason,
            prompt_tokens=count(end, "prompt_eval_count"),
            completion_tokens=count(end, "eval_count"),
            thinking=thinking,
            tool_calls=tuple(self._calls),
        )


def _call(entry: Mapping[str, Any], position: int) -> ToolCall:
    """Servers before 0.12 give calls no id; their arguments are an object and no JSON text."""
    function = as_object(entry.get("function"), "tool_calls[].function")
    named = as_text(entry.get("id") or f"call_{position}", "tool_calls[].id")
    name = as_text(function.get("name") or "", "tool_calls[].function.name")
    return tool_call(named, name, function.get("arguments") or {})


def read_models(payload: Any) -> list[OllamaModel]:
    """The models in a reply of /api/tags.

    Raises:
        BadReply: the reply has another shape.
    """
    models = as_object(payload, "body").get("models")
    return [_model(as_object(entry, "models[]")) for entry in as_list(models or [], "models")]


def _model(entry: Mapping[str, Any]) -> OllamaModel:
    size, able, digest = entry.get("size"), entry.get("capabilities"), entry.get("digest")
    return OllamaModel(
        name=as_text(entry.get("name"), "models[].name"),
        size=size if isinstance(size, int) and size > 0 else 0,
        capabilities=tuple(str(word) for word in able) if isinstance(able, list) else None,
        digest=digest if isinstance(digest, str) else "",
    )


def same_model(wanted: str, name: str) -> bool:
    """Whether the server's `name` is the model `wanted`: no tag means ":latest", case does not count."""
    tagged = wanted if ":" in wanted.rpartition("/")[2] else f"{wanted}:latest"
    return tagged.casefold() == name.casefold()
