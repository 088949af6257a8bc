"""Ollama's own /api: our types to its JSON and back.

Source of the facts: Ollama 0.32.15, recorded, and its `api/types.go`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm.errors import BadReply
from llm.types import Chunk, FinishReason, LLMRequest, LLMResponse, TextChunk, ThinkingChunk, ToolCall
from llm.wire.calls import tool_call
from llm.wire.common import as_list, as_object, as_text, count, model_name, no_answer

_FINISH: Mapping[str, FinishReason] = {"stop": "stop", "length": "length"}
_NO_ANSWER = frozenset({"load", "unload"})
_ALWAYS_THINKS = "gpt-oss"
"""The family that ignores `think: false` and only knows levels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OllamaModel:
    """One model that the server has.

    Attributes:
        name: with its tag, as "qwen2.5:1.5b".
        size: bytes on disk.
        capabilities: such as "completion", "tools", "thinking", "embedding"; None when an older server
            does not say.
    """

    name: str
    size: int
    capabilities: tuple[str, ...] | None


def chat_body(request: LLMRequest, *, num_ctx: int, stream: bool = False) -> dict[str, Any]:
    """The body of POST /api/chat.

    Args:
        request: the call.
        num_ctx: tokens of context; the same in every call, because a change reloads the model.
        stream: whether the answer shall come in pieces; said in any case, because Ollama's default is yes.
    """
    options = {
        "temperature": request.temperature,
        "top_p": request.top_p,
        "seed": request.seed,
        "num_predict": request.max_tokens,
        "num_ctx": num_ctx,
    }
    body: dict[str, Any] = {
        "model": request.model,
        "messages": [{"role": m.role, "content": m.content} for m in request.messages],
        "stream": stream,
        "think": _think(request.model),
        "truncate": False,  # else a prompt over num_ctx is cut to half of it without a word
        "options": {name: value for name, value in options.items() if value is not None},
    }
    if request.schema is not None:
        body["format"] = dict(request.schema)
    return body


def _think(model: str) -> bool | str:
    """Unset means on for a model that can think; false is accepted for all, so nobody has to be asked."""
    return "low" if model.rpartition("/")[2].startswith(_ALWAYS_THINKS) else False


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
    size, able = entry.get("size"), entry.get("capabilities")
    return OllamaModel(
        name=as_text(entry.get("name"), "models[].name"),
        size=size if isinstance(size, int) and size > 0 else 0,
        capabilities=tuple(str(word) for word in able) if isinstance(able, list) else None,
    )


def same_model(wanted: str, name: str) -> bool:
    """Whether the server's `name` is the model `wanted`: no tag means ":latest", case does not count."""
    tagged = wanted if ":" in wanted.rpartition("/")[2] else f"{wanted}:latest"
    return tagged.casefold() == name.casefold()
