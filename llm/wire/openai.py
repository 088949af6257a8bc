"""Chat completions, the wire that OpenAI and most other servers speak: our types to its JSON and back.

Source of the facts: openai/openai-openapi and Ollama's /v1 (recorded from Ollama 0.32.15).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from llm.errors import BadReply
from llm.types import FinishReason, LLMRequest, LLMResponse
from llm.wire.common import as_list, as_object, as_text, count, model_name, no_answer, unfenced
from llm.wire.schemas import strict_schema, told
from llm.wire.takes import Takes

# First match wins. Reasoning models refuse sampling parameters and the older name of the token limit;
# json_schema came with gpt-4o-2024-08-06, what is older only takes words.
_OPENAI: tuple[tuple[re.Pattern[str], Takes], ...] = tuple(
    (re.compile(pattern), takes)
    for pattern, takes in (
        (r"gpt-5[\w.]*-chat", Takes(cap="max_completion_tokens", limits=False)),
        (
            r"o1-(mini|preview)",
            Takes(
                temperature=False,
                top_p=False,
                seed=False,
                schema=False,
                limits=False,
                cap="max_completion_tokens",
            ),
        ),
        (
            r"o\d|gpt-5",
            Takes(temperature=False, top_p=False, seed=False, limits=False, cap="max_completion_tokens"),
        ),
        (
            r"gpt-3\.5|gpt-4(-\d{4}|-32k|-turbo|-vision|$)|gpt-4o-2024-05-13",
            Takes(schema=False, limits=False),
        ),
        ("", Takes(limits=False)),
    )
)

_FINISH: Mapping[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "content_filter": "content_filter",
}


def takes(model: str, *, vendor: bool) -> Takes:
    """What may be sent for `model`.

    Args:
        model: its name, perhaps fine-tuned ("ft:gpt-4o-mini:...").
        vendor: whether OpenAI itself is asked. Others give old names to other models, and Ollama's /v1
            silently drops `max_completion_tokens`, so nothing is concluded from a name there.
    """
    if not vendor:
        return Takes()
    name = model.removeprefix("ft:")
    return next(found for pattern, found in _OPENAI if pattern.match(name))


def chat_body(request: LLMRequest, accepted: Takes) -> dict[str, Any]:
    """The body of POST {base}/chat/completions."""
    messages = request.messages
    body: dict[str, Any] = {"model": request.model, "stream": False, accepted.cap: request.max_tokens}
    if request.schema is not None and accepted.schema:
        body["response_format"] = _response_format(request.schema, accepted)
    elif request.schema is not None:
        messages = told(messages, request.schema)
    body["messages"] = [{"role": m.role, "content": m.content} for m in messages]
    optional = {
        "temperature": request.temperature if accepted.temperature else None,
        "top_p": request.top_p if accepted.top_p else None,
        "seed": request.seed if accepted.seed else None,
    }
    if not accepted.both and optional["temperature"] is not None:
        optional["top_p"] = None
    return body | {name: value for name, value in optional.items() if value is not None}


def _response_format(schema: Mapping[str, Any], accepted: Takes) -> dict[str, Any]:
    """`strict` is false unless asked for, and then the schema must close every object."""
    strict = strict_schema(schema, limits=accepted.limits)
    described = {"name": "reply", "strict": strict is not None, "schema": strict or schema}
    return {"type": "json_schema", "json_schema": described}


def read_chat(payload: Any, request: LLMRequest, *, backend: str) -> LLMResponse:
    """The answer in a chat completion.

    A refusal is an answer too: its words are the content, and `finish_reason` is "content_filter".

    Raises:
        BadReply: the reply has another shape, or no text (only thinking, only tool calls).
    """
    reply = as_object(payload, "body")
    choices = as_list(reply.get("choices"), "choices")
    if not choices:
        msg = "the reply has no choices"
        raise BadReply(msg)
    choice = as_object(choices[0], "choices[0]")
    message = as_object(choice.get("message"), "choices[0].message")
    usage = as_object(reply.get("usage") or {}, "usage")
    content, reason = _content(message, choice, request)
    return LLMResponse(
        content=content if request.schema is None else unfenced(content),
        model=model_name(reply, request),
        backend=backend,
        finish_reason=reason,
        prompt_tokens=count(usage, "prompt_tokens"),
        completion_tokens=count(usage, "completion_tokens"),
    )


def _content(
    message: Mapping[str, Any], choice: Mapping[str, Any], request: LLMRequest
) -> tuple[str, FinishReason]:
    word = choice.get("finish_reason")
    reason = _FINISH.get(word, "other") if isinstance(word, str) else "other"
    if message.get("refusal"):
        return as_text(message["refusal"], "choices[0].message.refusal"), "content_filter"
    content = _joined(message.get("content"))
    if not content and reason != "content_filter":
        thought = any(message.get(key) for key in ("reasoning", "reasoning_content"))
        if thought or reason == "length":
            raise no_answer(request, thinking=True)
        if reason != "stop" or message.get("content") is None:
            raise no_answer(request, thinking=False)
    return content, reason


def _joined(content: Any) -> str:
    """The text; some gateways send a list of parts instead of one string."""
    if content is None:
        return ""
    if not isinstance(content, list):
        return as_text(content, "choices[0].message.content")
    parts = [as_object(part, "content part") for part in content]
    return "".join(as_text(part.get("text"), "content part") for part in parts if part.get("type") == "text")
