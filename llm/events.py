"""What happened during a call, as frozen events.

Adapters turn them into logs, metrics and traces; this package knows none of them. What was asked and answered
is in an event by reference alone: it is not copied, not shown and not compared.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

from llm.frozen import quickly_made
from llm.types import NOBODY, Caller, EmbedRequest, LLMRequest, LLMResponse, ToolCall

Operation = Literal["chat", "embed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CallEvent:
    """Common to all events.

    Attributes:
        backend: the backend's name; that of its table in the configuration where there are several.
        model: the model that was asked for.
        caller: who asked.
    """

    backend: str
    model: str
    caller: Caller = NOBODY


@dataclass(frozen=True, slots=True, kw_only=True)
class CallStarted(CallEvent):
    """A request goes to a backend.

    Attributes:
        operation: what it is asked to do.
        call_id: names the call until its end.
        provider: whose model it is: "ollama", "openai", "anthropic", ... (`LLMClient.provider_name`).
        server: host and port of the backend's server, empty for an engine of our own.
        request: what is asked.
    """

    operation: Operation = "chat"
    call_id: str = ""
    provider: str = ""
    server: str = ""
    request: LLMRequest | EmbedRequest | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstToken(CallEvent):
    """The first chunk of a stream came, `seconds` after the request went out."""

    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFinished(CallEvent):
    """A backend answered.

    Attributes:
        operation: what it was asked to do.
        latency: seconds from the request to the whole answer.
        prompt_tokens: tokens in, those that the backend had cached included.
        completion_tokens: tokens out, those of the thinking included.
        cached_tokens: tokens in that the backend had in a prefix cache of its own.
        thinking_tokens: tokens out that were thinking.
        call_id: names the call in logs and stores.
        template: name and version of the prompt template, empty without one.
        first_token: seconds to the first chunk of a stream, None without a stream.
        response: the answer, None for vectors.
    """

    operation: Operation = "chat"
    latency: float
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    thinking_tokens: int = 0
    call_id: str = ""
    template: str = ""
    first_token: float | None = None
    response: LLMResponse | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallPriced(CallEvent):
    """What an answered call cost is known: as it ends, or some seconds later if a list had to be looked into.

    Attributes:
        call_id: the call.
        cost: in US dollars, at list prices or the owner's own; 0 on hardware of one's own.
    """

    call_id: str = ""
    cost: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFailed(CallEvent):
    """A backend call failed with the error class `code` after `latency` seconds."""

    operation: Operation = "chat"
    latency: float
    code: str
    call_id: str = ""
    template: str = ""
    first_token: float | None = None


@quickly_made
@dataclass(frozen=True, slots=True, kw_only=True)
class CacheHit(CallEvent):
    """The response cache answered; no backend was called.

    Attributes:
        call_id: names the call in logs and stores.
        request: what was asked.
        response: the kept answer.
    """

    call_id: str = ""
    request: LLMRequest | None = field(default=None, repr=False, compare=False)
    response: LLMResponse | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheMiss(CallEvent):
    """The response cache had no answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coalesced(CallEvent):
    """An identical call was under way, whose answer this one shares."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retried(CallEvent):
    """A call failed with `code` and is made again after `delay` seconds; `attempt` counts from 2.

    `call_id` names the attempt that failed; empty if nothing had reached the backend.
    """

    attempt: int
    delay: float
    code: str
    call_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FellBack(CallEvent):
    """`backend` failed with `code`, and `to` is asked instead; `call_id` as in `Retried`."""

    to: str
    code: str
    call_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Escalated(CallEvent):
    """`backend` answered, but "unsure" or not as the schema wants (`why`), and `to` is asked as well."""

    to: str
    why: Literal["unsure", "invalid"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerOpened(CallEvent):
    """The backend failed `failures` times in a row and is left alone for `seconds`."""

    failures: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerClosed(CallEvent):
    """The backend answered again after its breaker had opened."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetRefused(CallEvent):
    """A call was refused because `budget`, as it is written in the configuration, is used up."""

    budget: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetUsed(CallEvent):
    """A call ended that `budget`, as it is written in the configuration, pays for.

    Attributes:
        used: what of it is spent since its window began, in its unit; other programs' share included.
        limit: all of it.
    """

    budget: str
    used: float
    limit: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterDropped(CallEvent):
    """The model does not take `parameter`, which is left out from now on."""

    parameter: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolStarted(CallEvent):
    """A tool that the model asked for is about to run.

    Attributes:
        tool: its name, as the model wrote it, 64 characters at most.
        execution_id: names this execution until its end.
        call: what the model asked for; None when that stayed in an agent's own process.
    """

    tool: str
    execution_id: str
    call: ToolCall | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFinished(CallEvent):
    """A tool has run, or was refused.

    Attributes:
        tool: its name, as in `ToolStarted`.
        execution_id: which execution ended.
        latency: seconds that it took.
        error: "unknown_tool", "bad_arguments", "cancelled" or the name of the exception; empty for none.
        result: what the model is told; None when that stayed in an agent's own process.
    """

    tool: str
    execution_id: str
    latency: float
    error: str = ""
    result: str | None = field(default=None, repr=False, compare=False)


class Observer(Protocol):
    """Anything that can be called with an event. It must be quick and must not raise."""

    def __call__(self, event: CallEvent, /) -> None:
        """Take note of `event`."""
