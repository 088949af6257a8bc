"""Ollama's own /api: our types to its JSON and back.

Source of the facts: Ollama 0.32.15, recorded, and its `api/types.go`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llm.errors import BadReply
from llm.types import FinishReason, LLMRequest, LLMResponse
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
        digest: of its weights and settings, empty where the server does not say.
    """

    name: str
    size: int
    capabilities: tuple[str, ...] | None
    digest: str = field(default="", compare=False)


def chat_body(request: LLMRequest, *, num_ctx: int) -> dict[str, Any]:
    """The body of POST /api/chat.

    Args:
        request: the call.
        num_ctx: tokens of context; the same in every call, because a change reloads the model.
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
        "stream": False,  # streaming is the default
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
        BadReply: the reply has another shape, is not finished, or has no text.
    """
    reply = as_object(payload, "body")
    if reply.get("done") is not True:
        msg = "the reply is not finished (done is not true)"
        raise BadReply(msg)
    message = as_object(reply.get("message"), "message")
    word = as_text(reply.get("done_reason") or "stop", "done_reason")  # left out by servers before 0.5
    if word in _NO_ANSWER:
        msg = f"the server did not answer but {word}ed the model"
        raise BadReply(msg)
    reason = _FINISH.get(word, "other")
    content = as_text(message.get("content"), "message.content")
    if not content and (message.get("thinking") or reason == "length"):
        raise no_answer(request, thinking=True)
    return LLMResponse(
        content=content,
        model=model_name(reply, request),
        backend=backend,
        finish_reason=reason,
        prompt_tokens=count(reply, "prompt_eval_count"),
        completion_tokens=count(reply, "eval_count"),
    )


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
