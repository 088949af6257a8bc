"""Chat completions, the wire that OpenAI and most other servers speak: our types to its JSON and back.

Source of the facts: openai/openai-openapi and Ollama's /v1 (recorded from Ollama 0.32.15).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from llm.errors import BadReply
from llm.types import Chunk, FinishReason, LLMRequest, LLMResponse, TextChunk, ThinkingChunk
from llm.wire.calls import PartialCall
from llm.wire.common import as_list, as_object, as_text, count, is_clean, model_name, no_answer, unfenced
from llm.wire.lines import DONE
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
    if not vendor:
        return Takes()
    name = model.removeprefix("ft:")
    return next(found for pattern, found in _OPENAI if pattern.match(name))


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
        self._refusals: list[str] = []
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
            self._refusals.append(as_text(message["refusal"], "message.refusal"))
            chunks.append(TextChunk(self._refusals[-1]))
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
        if self._refusals:
            return "".join(self._refusals), "content_filter"
        text = "".join(self._texts)
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
