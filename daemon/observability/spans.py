"""Spans: what happens in the program as a tree, by OpenTelemetry's conventions; knows no OpenTelemetry.

    invoke_agent matchmaker        a run
      chat qwen2.5:1.5b            a request to a backend; one that is made again is a span of its own
      execute_tool weather
      embeddings all-minilm
    apply matchmaker               a decision that is carried out, perhaps days later: a trace of its own,
    undo matchmaker                with a link to the run that made the proposal

Names are those of the GenAI conventions (github.com/open-telemetry/semantic-conventions-genai, v0.1.0:
client-inference.md, client-embeddings.md, execute-tool.md, gen-ai-agent-spans.md), and askfirst.* where they
have none. A run's ids are made from its name, so that what comes later can point to it, after a restart too.

What was said (prompts, replies, arguments, errors' texts) is kept only on request, and by reference: it is
made into text where spans are sent, which is not on the event loop.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from typing import Any
from weakref import WeakKeyDictionary

from agents.proposal import Proposal, ProposalStatus
from daemon.events import Event, ProposalChanged, RunBegun, RunFinished, RunOutcome, RunResult
from llm import Caller
from llm.deadline import deadline
from llm.events import (
    BudgetRefused,
    CacheHit,
    CallEvent,
    CallFailed,
    CallFinished,
    CallStarted,
    Coalesced,
    Escalated,
    FellBack,
    Retried,
    ToolFinished,
    ToolStarted,
)
from llm.types import EmbedRequest, LLMRequest

Value = str | bool | int | float | Sequence[str] | Sequence[int]

INPUT, OUTPUT = "gen_ai.input.messages", "gen_ai.output.messages"
ARGUMENTS, RESULT = "gen_ai.tool.call.arguments", "gen_ai.tool.call.result"
ERROR_TEXT = "error.message"
"""Names of what was said."""

MOST_EVENTS = 128
"""Events of one span, as in OpenTelemetry's own default; what comes after them is left out."""

MOST_OPEN = 1_000
"""Spans that may be under way; beyond this the oldest is given up."""

_MOST_IDS = 50
_OPERATIONS = {"chat": "chat", "embed": "embeddings"}
_S = ProposalStatus
_FAILED = {
    _S.WITHDRAWN: "precondition_failed",
    _S.APPLY_FAILED: "apply_failed",
    _S.NEEDS_ATTENTION: "apply_failed",
}


@dataclass(slots=True, kw_only=True)
class Happening:
    """Something at one moment of a span; `time` is in nanoseconds since 1970."""

    name: str
    time: int
    attributes: dict[str, Value]


@dataclass(slots=True, kw_only=True)
class Span:
    """A piece of work, from its beginning to its end.

    Attributes:
        name: what it is, from a small set of names.
        trace_id: 128 bits that name its tree.
        span_id: 64 bits that name it.
        parent_id: the span that it is a part of, None at the top.
        start: when it began, in nanoseconds since 1970.
        end: when it ended; its length is that of a clock that nobody sets.
        client: whether it is a request to another program.
        attributes: what is known of it.
        events: what happened meanwhile.
        links: trace and span ids of what it came from.
        error: the kind of error that it ended with, empty for none.
        texts: what was said, by the name of its attribute; empty unless that is asked for.
        began: the other clock at its beginning.
    """

    name: str
    trace_id: int
    span_id: int
    parent_id: int | None = None
    start: int
    end: int = 0
    client: bool = False
    attributes: dict[str, Value] = field(default_factory=dict)
    events: list[Happening] = field(default_factory=list)
    links: tuple[tuple[int, int], ...] = ()
    error: str = ""
    texts: dict[str, Any] = field(default_factory=dict)
    began: int = 0


class Spans:
    """Makes spans of events: an observer of model calls and a subscriber of the event bus.

    Args:
        take: called with each span that has ended.
        begun: called when one begins.
        content: whether what was said goes with them.
        sample: which share of the runs, with all that belongs to them, from 0 to 1.
        now: the clock, nanoseconds since 1970; within a run it counts once, at the beginning.
    """

    def __init__(
        self,
        take: Callable[[Span], None],
        begun: Callable[[], None] = lambda: None,
        *,
        content: bool = False,
        sample: float = 1.0,
        now: Callable[[], int] = time.time_ns,
    ) -> None:
        self._take = take
        self._now = now
        self._begun = begun
        self._content = content
        self._below = round(sample * 2**64)
        self._runs: OrderedDict[str, Span] = OrderedDict()
        self._decisions: OrderedDict[int, Span] = OrderedDict()
        self._calls: OrderedDict[str, Span] = OrderedDict()
        self._by_agent: dict[str, Span] = {}
        self._attempts: WeakKeyDictionary[asyncio.Task[Any], tuple[int, object]] = WeakKeyDictionary()

    def finish(self) -> None:
        """The program ends: so does what is under way, as far as is known."""
        for open_ones in (self._calls, self._runs, self._decisions):
            for span in tuple(open_ones.values()):
                span.error = "cancelled"
                self._end(span)
            open_ones.clear()
        self._by_agent.clear()

    # Model calls and tools.

    def observe_call(self, event: CallEvent, /) -> None:
        """Take note of a model call or a tool: an `llm.events.Observer`."""
        match event:
            case CallStarted():
                self._call_started(event)
            case CallFinished():
                self._call_finished(event)
            case CallFailed():
                span = self._calls.pop(event.call_id, None)
                if span is not None:
                    span.error = event.code
                    self._end_call(span, event.latency, event.first_token)
            case CacheHit():
                self._cache_hit(event)
            case ToolStarted():
                self._tool_started(event)
            case ToolFinished():
                self._tool_finished(event)
            case _:
                self._happened(event)

    def _begin(self, name: str, caller: Caller, attributes: dict[str, Value], *, client: bool) -> Span | None:
        """A span that begins now as a part of the caller's run or decision; None if it is not to be told."""
        trace_id, parent_id = self._parent(caller)
        if not self._kept(trace_id):
            return None
        known = {"gen_ai.agent.name": caller.agent, "askfirst.run.id": caller.run_id}
        attributes |= {key: value for key, value in known.items() if value}
        if caller.task:
            attributes["askfirst.task"] = caller.task
        span = self._new(name, trace_id, parent_id=parent_id, attributes=attributes, client=client)
        owner = self._owner(caller)
        if owner is not None:  # whatever was done to the clock since then, a part lies within the whole
            span.start = owner.start + span.began - owner.began
        return span

    def _owner(self, caller: Caller) -> Span | None:
        """The run or decision under way that the caller belongs to."""
        return self._runs.get(caller.run_id) or self._by_agent.get(caller.agent)

    def _parent(self, caller: Caller) -> tuple[int, int | None]:
        if caller.run_id:
            return run_ids(caller.run_id)
        decision = self._by_agent.get(caller.agent)
        return (random.getrandbits(128), None) if decision is None else (decision.trace_id, decision.span_id)

    def _kept(self, trace_id: int) -> bool:
        return (trace_id & (2**64 - 1)) < self._below

    def _call_started(self, event: CallStarted) -> None:
        operation = _OPERATIONS[event.operation]
        attributes: dict[str, Value] = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": event.provider or event.backend,
            "gen_ai.request.model": event.model,
            "askfirst.backend": event.backend,
            "askfirst.call.id": event.call_id,
            **_server(event.server),
            **_asked(event.request),
        }
        if (attempt := self._attempt()) > 1:
            attributes["askfirst.call.attempt"] = attempt
        span = self._begin(f"{operation} {event.model}", event.caller, attributes, client=True)
        if span is not None:
            if self._content and isinstance(event.request, LLMRequest):
                span.texts[INPUT] = event.request.messages
            _remember(self._calls, event.call_id, span)

    def _attempt(self) -> int:
        """Which attempt begins now: as was told in this task about the call that is still under way."""
        task = _task()
        attempt, scope = (1, None) if task is None else self._attempts.pop(task, (1, None))
        return attempt if scope is not None and scope is deadline.get() else 1

    def _call_finished(self, event: CallFinished) -> None:
        span = self._calls.pop(event.call_id, None)
        if span is None:
            return
        attributes, response = span.attributes, event.response
        attributes["gen_ai.usage.input_tokens"] = event.prompt_tokens
        if event.operation == "chat":
            attributes["gen_ai.usage.output_tokens"] = event.completion_tokens
        if event.cached_tokens:
            attributes["gen_ai.usage.cache_read.input_tokens"] = event.cached_tokens
        if event.thinking_tokens:
            attributes["gen_ai.usage.reasoning.output_tokens"] = event.thinking_tokens
        if response is not None:
            attributes["gen_ai.response.model"] = response.model
            attributes["gen_ai.response.finish_reasons"] = (response.finish_reason,)
            if self._content:
                span.texts[OUTPUT] = response
        self._end_call(span, event.latency, event.first_token)

    def _end_call(self, span: Span, seconds: float, first_token: float | None) -> None:
        if first_token is not None:
            span.attributes["gen_ai.request.stream"] = True
            span.attributes["gen_ai.response.time_to_first_chunk"] = first_token
        self._end(span, seconds)

    def _cache_hit(self, event: CacheHit) -> None:
        """A span without length and tokens: nothing was sent, and nothing is to be paid."""
        attributes: dict[str, Value] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": event.backend,
            "gen_ai.request.model": event.model,
            "askfirst.backend": event.backend,
            "askfirst.call.id": event.call_id,
            "askfirst.cache.hit": True,
            **_asked(event.request),
        }
        span = self._begin(f"chat {event.model}", event.caller, attributes, client=False)
        if span is None:
            return
        if event.response is not None:
            span.attributes["gen_ai.response.finish_reasons"] = (event.response.finish_reason,)
        if self._content and event.request is not None:
            span.texts |= {INPUT: event.request.messages, OUTPUT: event.response}
        self._end(span, 0.0)

    def _tool_started(self, event: ToolStarted) -> None:
        attributes: dict[str, Value] = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": event.tool,
            "gen_ai.tool.type": "function",
        }
        if event.call is not None and event.call.id:
            attributes["gen_ai.tool.call.id"] = event.call.id
        span = self._begin(f"execute_tool {event.tool}", event.caller, attributes, client=False)
        if span is not None:
            if self._content and event.call is not None:
                span.texts[ARGUMENTS] = event.call.arguments
            _remember(self._calls, event.execution_id, span)

    def _tool_finished(self, event: ToolFinished) -> None:
        span = self._calls.pop(event.execution_id, None)
        if span is None:
            return
        span.error = event.error
        if event.error == "unknown_tool" and not self._content:  # its name is what the model made up
            span.name = "execute_tool"
            span.attributes.pop("gen_ai.tool.name", None)
        if self._content and event.result is not None:
            span.texts[RESULT] = event.result
        self._end(span)

    def _happened(self, event: CallEvent) -> None:
        """What befell a call between its caller and the backend: an event of the run or the decision."""
        found = _between(event)
        if found is None:
            return
        if isinstance(event, Retried) and (task := _task()) is not None:
            self._attempts[task] = (event.attempt, deadline.get())
        owner = self._owner(event.caller)
        if owner is not None and len(owner.events) < MOST_EVENTS:
            name, attributes = found
            now = owner.start + time.perf_counter_ns() - owner.began
            owner.events.append(
                Happening(name=name, time=now, attributes={"askfirst.backend": event.backend, **attributes})
            )

    # Runs and decisions.

    def note(self, event: Event) -> None:
        """Take note of a run or a decision: a subscriber of the event bus."""
        match event:
            case RunBegun():
                self._run_begun(event)
            case RunFinished(result=result):
                self._run_finished(result)
            case ProposalChanged(proposal=proposal, before=before):
                self._proposal_changed(proposal, before)
            case _:
                pass

    def _run_begun(self, event: RunBegun) -> None:
        trace_id, span_id = run_ids(event.run_id)
        if self._kept(trace_id):
            attributes: dict[str, Value] = {
                **_agent_attributes(event.agent, event.run_id),
                "gen_ai.operation.name": "invoke_agent",
                "askfirst.run.trigger": event.trigger,
            }
            span = self._new(f"invoke_agent {event.agent}", trace_id, span_id=span_id, attributes=attributes)
            _remember(self._runs, event.run_id, span)

    def _run_finished(self, result: RunResult) -> None:
        trace_id, span_id = run_ids(result.run_id)
        if not self._kept(trace_id):
            return
        begun = self._runs.pop(result.run_id, None)
        span = begun or self._new(f"invoke_agent {result.agent}", trace_id, span_id=span_id)
        span.attributes |= _of_run(result)
        if result.outcome not in {RunOutcome.SUCCEEDED, RunOutcome.CANCELLED}:
            span.error = result.outcome.value
        if self._content and result.error:
            span.texts[ERROR_TEXT] = result.error
        if begun is None:  # it failed before it began, or an earlier program did not live to tell
            span.start = _nanoseconds(result.started_at)
            self._end(span, max(0.0, result.seconds))
        else:
            self._end(span)

    def _proposal_changed(self, proposal: Proposal, before: ProposalStatus | None) -> None:
        if proposal.status in {_S.APPLYING, _S.UNDOING}:
            self._decision_begun(proposal)
        elif before in {_S.APPLYING, _S.UNDOING}:
            self._decision_finished(proposal, before)

    def _decision_begun(self, proposal: Proposal) -> None:
        span = self._new_decision(proposal, undo=proposal.status is _S.UNDOING)
        if span is not None:
            _remember(self._decisions, int(proposal.id or 0), span)
            self._by_agent[proposal.agent] = span

    def _decision_finished(self, proposal: Proposal, before: ProposalStatus) -> None:
        undo = before is _S.UNDOING
        span = self._decisions.pop(int(proposal.id or 0), None)
        if span is None:  # a crash interrupted it, and this start finished it
            span = self._new_decision(proposal, undo=undo)
            if span is None:
                return
            span.attributes["askfirst.recovered"] = True
        if self._by_agent.get(proposal.agent) is span:
            del self._by_agent[proposal.agent]
        span.attributes["askfirst.proposal.status"] = proposal.status.value
        undo_failed = undo and proposal.status is _S.APPLIED
        span.error = "undo_failed" if undo_failed else _FAILED.get(proposal.status, "")
        if self._content and span.error and proposal.error:
            span.texts[ERROR_TEXT] = proposal.error
        self._end(span)

    def _new_decision(self, proposal: Proposal, *, undo: bool) -> Span | None:
        """Told if the run that made the proposal is."""
        made_by = run_ids(proposal.run_id) if proposal.run_id else None
        trace_id = random.getrandbits(128)
        if not self._kept(trace_id if made_by is None else made_by[0]):
            return None
        attributes = _agent_attributes(proposal.agent, proposal.run_id or "")
        attributes |= {"askfirst.proposal.id": int(proposal.id or 0), "askfirst.proposal.kind": proposal.kind}
        span = self._new(f"{'undo' if undo else 'apply'} {proposal.agent}", trace_id, attributes=attributes)
        span.links = () if made_by is None else (made_by,)
        return span

    def _new(
        self,
        name: str,
        trace_id: int,
        *,
        span_id: int | None = None,
        parent_id: int | None = None,
        attributes: dict[str, Value] | None = None,
        client: bool = False,
    ) -> Span:
        self._begun()
        return Span(
            name=name,
            trace_id=trace_id,
            span_id=span_id or random.getrandbits(64) or 1,
            parent_id=parent_id,
            start=self._now(),
            began=time.perf_counter_ns(),
            client=client,
            attributes=attributes or {},
        )

    def _end(self, span: Span, seconds: float | None = None) -> None:
        """It ends after so many seconds, or now."""
        length = time.perf_counter_ns() - span.began if seconds is None else round(seconds * 1e9)
        span.end = span.start + max(0, length)
        if span.error:
            span.attributes["error.type"] = span.error
        self._take(span)


def run_ids(run_id: str) -> tuple[int, int]:
    """The ids of the trace and the span of a run, made from its name."""
    digest = sha256(f"askfirst run {run_id}".encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:16], "big"), int.from_bytes(digest[16:24], "big")


def _remember(spans: OrderedDict[Any, Span], key: str | int, span: Span) -> None:
    spans[key] = span
    if len(spans) > MOST_OPEN:
        spans.popitem(last=False)


def _task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no event loop runs here
        return None


def _nanoseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1e6) * 1_000


def _server(address: str) -> dict[str, Value]:
    host, _, port = address.rpartition(":")
    return {"server.address": host, "server.port": int(port)} if host and port.isdecimal() else {}


def _asked(request: LLMRequest | EmbedRequest | None) -> dict[str, Value]:
    """How a request shall be answered, what was chosen and not what was said."""
    if isinstance(request, EmbedRequest):
        return {"askfirst.embeddings.texts": len(request.texts)}
    if request is None:
        return {}
    name, _, version = request.template.partition("@")
    known: dict[str, Value | None] = {
        "gen_ai.request.temperature": request.temperature,
        "gen_ai.request.max_tokens": request.max_tokens,
        "gen_ai.request.top_p": request.top_p,
        "gen_ai.request.seed": request.seed,
        "gen_ai.request.stop_sequences": request.stop or None,
        "gen_ai.request.reasoning.level": request.think if isinstance(request.think, str) else None,
        "gen_ai.output.type": "text" if request.schema is None else "json",
        "gen_ai.prompt.name": name or None,
        "gen_ai.prompt.version": version or None,
    }
    return {key: value for key, value in known.items() if value is not None}


def _between(event: CallEvent) -> tuple[str, dict[str, Value]] | None:
    """The name and the attributes of what is told as a span's event, None for what is not."""
    match event:
        case Retried():
            values: dict[str, Value] = {
                "askfirst.call.attempt": event.attempt,
                "askfirst.retry.delay": event.delay,
                "error.type": event.code,
            }
            return "retry", values
        case FellBack():
            return "fallback", {"askfirst.fallback.to": event.to, "error.type": event.code}
        case Escalated():
            return "escalation", {"askfirst.escalation.to": event.to, "askfirst.escalation.why": event.why}
        case Coalesced():
            return "coalesced", {"gen_ai.request.model": event.model}
        case BudgetRefused():
            return "budget refused", {"askfirst.budget": event.budget}
    return None


def _agent_attributes(agent: str, run_id: str) -> dict[str, Value]:
    known: dict[str, Value] = {"gen_ai.agent.name": agent}
    return known | ({"askfirst.run.id": run_id} if run_id else {})


def _of_run(result: RunResult) -> dict[str, Value]:
    attributes: dict[str, Value] = {
        **_agent_attributes(result.agent, result.run_id),
        "gen_ai.operation.name": "invoke_agent",
        "askfirst.run.trigger": result.trigger,
        "askfirst.run.outcome": result.outcome.value,
        "askfirst.run.attempt": result.attempt,
        "askfirst.run.proposals": len(result.proposals),
        "askfirst.run.duplicates": result.duplicates,
        "askfirst.run.withdrawn": result.withdrawn,
        "askfirst.run.calls": result.calls,
        "askfirst.run.cached_calls": result.cached_calls,
    }
    if result.due is not None:
        attributes["askfirst.run.due"] = result.due.isoformat()
    if result.model_failed:
        attributes["askfirst.run.model_failed"] = True
    numbers = tuple(proposal.id for proposal in result.proposals[:_MOST_IDS] if proposal.id is not None)
    if numbers:
        attributes["askfirst.proposal.ids"] = numbers
    return attributes
