"""The values that travel through a model call: frozen, without I/O."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from llm.frozen import quickly_made

Role = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "other"]
CacheMode = Literal["on", "off", "read", "write"]
Think = bool | Literal["low", "medium", "high"]
JSONSchema = Mapping[str, Any]

ROLES: tuple[str, ...] = get_args(Role)
CACHE_MODES: tuple[str, ...] = get_args(CacheMode)


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that a model may ask to be called; `llm.tools` makes one from a typed Python function.

    Attributes:
        name: 1 to 64 of a-z, A-Z, 0-9, _ and -.
        description: what it does, for the model.
        parameters: JSON schema of its arguments, an object.
    """

    name: str
    description: str
    parameters: JSONSchema = field(hash=False)  # compared, but no mapping has a hash


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A model's wish to have a tool called.

    Attributes:
        id: names this call in the turn that answers it.
        name: the tool.
        arguments: its arguments, not yet checked against the tool's schema.
    """

    id: str
    name: str
    arguments: Mapping[str, Any] = field(hash=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks, for the ledger, budgets and routes; shapes no answer.

    Attributes:
        agent: name of the agent, empty outside one.
        run_id: the agent's run.
        task: what the call is for, such as "title"; a route may be named for it.
    """

    agent: str = ""
    run_id: str = ""
    task: str = ""


NOBODY = Caller()
"""The caller of a program that does not say who it is."""


@quickly_made
@dataclass(frozen=True, slots=True)
class LLMMessage:
    """One turn of a conversation.

    Args:
        role: who speaks: "system", "user", "assistant" or "tool".
        content: what is said; a tool's result.
        tool_calls: what the assistant asked to have called in this turn.
        tool_call_id: which call a tool's turn answers.
        opaque: what the service that made this turn wants back unchanged (`LLMResponse.opaque`).

    Raises:
        ValueError: the role is not one of the four, or the content is no text.
    """

    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    opaque: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            msg = f"a message's role is one of {', '.join(ROLES)}, not {self.role!r}"
            raise ValueError(msg)
        content: object = self.content
        if not isinstance(content, str):
            msg = f"a message's content is text, not {type(content).__name__}"
            raise ValueError(msg)  # noqa: TRY004 - one kind of error for one kind of mistake


@quickly_made
@dataclass(frozen=True, slots=True, kw_only=True)
class LLMRequest:
    """One call as a backend gets it, every default already filled in.

    Attributes:
        messages: the conversation, at least one turn.
        model: the backend's name of the model.
        temperature: 0 is greedy; None leaves it to the model.
        max_tokens: most tokens to generate, at least 1.
        top_p: nucleus threshold in (0, 1]; None leaves it to the model.
        seed: seed of the sampler; None leaves it to the backend.
        schema: JSON schema that the reply must fit, None for free text.
        stop: texts at which the model stops; they are not part of the answer.
        think: whether the model may think before it answers, and how hard.
        tools: functions that the model may ask to have called.
        cache: how the response cache is used. This and what follows shapes no answer.
        max_age: seconds; an older kept reply does not count. None takes any.
        caller: who asks.
        template: name and version of the prompt template, empty without one.
        key: identifies the call among identical ones; filled in by the response cache.
    """

    messages: tuple[LLMMessage, ...]
    model: str
    temperature: float | None
    max_tokens: int
    top_p: float | None
    seed: int | None = None
    schema: JSONSchema | None = None
    stop: tuple[str, ...] = ()
    think: Think = False
    tools: tuple[Tool, ...] = ()
    cache: CacheMode = "on"
    max_age: float | None = None
    caller: Caller = NOBODY
    template: str = ""
    key: bytes | None = field(default=None, repr=False)

    @property
    def system_prompt(self) -> str | None:
        """The text of the leading system turn, None without one."""
        first = self.messages[0]
        return first.content if first.role == "system" else None

    @property
    def prompt(self) -> str:
        """The text of the last turn that is not the system's, empty without one."""
        return next((m.content for m in reversed(self.messages) if m.role != "system"), "")


@quickly_made
@dataclass(frozen=True, slots=True, kw_only=True)
class LLMResponse:
    """What a model answered.

    Attributes:
        content: the text.
        model: the model that answered, as the backend names it.
        backend: the backend's name.
        finish_reason: "stop" when the model ended by itself, "length" when `max_tokens` cut it,
            "tool_calls" when it waits for the results of those.
        prompt_tokens: tokens of the whole prompt, those that the engine had cached included.
        completion_tokens: tokens generated, those of its thinking included.
        cached_tokens: tokens of the prompt that the engine or service had in its own prefix cache.
        thinking_tokens: tokens of the thinking where the backend counts them, else 0.
        thinking: what the model thought before it answered, empty unless it was asked to.
        tool_calls: what it asks to have called.
        opaque: what the service wants back unchanged when this answer is sent to it as a turn, as JSON text;
            with Anthropic its signed thinking. `as_turn` takes it along.
        cached: True when the response cache answered.
        first_token: seconds from the call to the first chunk of a stream, None without a stream.
        latency: seconds from the call to the answer, 0 when unknown.
        call_id: names this call in logs and stores; a new one at each call, cached or not.
    """

    content: str
    model: str
    backend: str
    finish_reason: FinishReason = "stop"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    thinking_tokens: int = 0
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    opaque: str = field(default="", repr=False)
    cached: bool = False
    first_token: float | None = None
    latency: float = 0.0
    call_id: str = ""

    @property
    def tokens_used(self) -> int:
        """Prompt and completion tokens together."""
        return self.prompt_tokens + self.completion_tokens

    def stamped(
        self,
        *,
        call_id: str,
        latency: float,
        first_token: float | None = None,
        cached: bool = False,
    ) -> LLMResponse:
        """The same answer to another call: what a hit, a follower or the end of a call hands out.

        Written out because it stands in every call: `dataclasses.replace` takes five times as long.
        """
        return LLMResponse(
            content=self.content,
            model=self.model,
            backend=self.backend,
            finish_reason=self.finish_reason,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            cached_tokens=self.cached_tokens,
            thinking_tokens=self.thinking_tokens,
            thinking=self.thinking,
            tool_calls=self.tool_calls,
            opaque=self.opaque,
            cached=cached,
            first_token=first_token,
            latency=latency,
            call_id=call_id,
        )

    def as_turn(self) -> LLMMessage:
        """The answer as a turn of the conversation that goes on."""
        return LLMMessage("assistant", self.content, tool_calls=self.tool_calls, opaque=self.opaque)

    def json(self) -> Any:
        """Parse the content as JSON; a fresh object at each call.

        Raises:
            json.JSONDecodeError: the content is not JSON; ask with `schema` to be sure of it.
        """
        return json.loads(self.content)

    def __str__(self) -> str:
        return self.content


@dataclass(frozen=True, slots=True)
class TextChunk:
    """The next piece of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class ThinkingChunk:
    """The next piece of what the model thinks before it answers."""

    text: str


@dataclass(frozen=True, slots=True)
class StreamEnd:
    """The end of a stream: the whole answer, with its usage and why it ended."""

    response: LLMResponse


Chunk = TextChunk | ThinkingChunk | StreamEnd


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedRequest:
    """Texts to turn into vectors, as a backend gets them.

    Attributes:
        texts: at least one, none of them empty.
        model: the backend's name of the embedding model.
        caller: who asks.
    """

    texts: tuple[str, ...]
    model: str
    caller: Caller = NOBODY


@dataclass(frozen=True, slots=True, kw_only=True)
class Embeddings:
    """Texts as vectors.

    Attributes:
        vectors: one for each text, in its order, each of length 1 (L2).
        model: the model that made them.
        backend: the backend's name.
        prompt_tokens: tokens of all texts, 0 where the backend does not count them.
        latency: seconds from the call to the answer.
        call_id: names this call in logs and stores.
    """

    vectors: tuple[tuple[float, ...], ...]
    model: str
    backend: str
    prompt_tokens: int = 0
    latency: float = 0.0
    call_id: str = ""

    @property
    def dimensions(self) -> int:
        """Numbers in each vector."""
        return len(self.vectors[0]) if self.vectors else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a model can do, as far as its backend knows; the cautious answer where it does not.

    Attributes:
        model: the backend's name of the model.
        sampling: which of "temperature", "top_p" and "seed" it takes.
        schema: whether the backend holds it to a JSON schema.
        tools: whether it can ask for tools.
        thinking: whether it can think before it answers.
        always_thinks: whether that cannot be switched off.
        vision: whether it takes images (this layer sends none).
        embedding: whether it turns texts into vectors.
        chat: whether it answers prompts.
        context_length: tokens of context that it was made for, None when unknown.
    """

    model: str
    sampling: frozenset[str] = frozenset({"temperature", "top_p", "seed"})
    schema: bool = False
    tools: bool = False
    thinking: bool = False
    always_thinks: bool = False
    vision: bool = False
    embedding: bool = False
    chat: bool = True
    context_length: int | None = None
