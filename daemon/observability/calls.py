"""CallLog: model calls as log lines, and what the calls of a run amount to, for the run's own line.

No line holds what was asked or answered: that is in the database (`askfirst runs show`), with the same ids.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import asdict, dataclass
from typing import Any

from llm.events import (
    BreakerClosed,
    BreakerOpened,
    BudgetRefused,
    CacheHit,
    CallEvent,
    CallFailed,
    CallFinished,
    CallPriced,
    Coalesced,
    Escalated,
    FellBack,
    ParameterDropped,
    Retried,
    ToolFinished,
)

_log = logging.getLogger("llm.events")  # so that `llm` alone makes them appear

_MOST_RUNS = 256  # under way at a time; what is known of others is forgotten


@dataclass(slots=True)
class RunCalls:
    """What the model calls of one run amount to.

    Attributes:
        model_seconds: how long backends took to answer, those that failed included.
        cached_tokens: tokens in that a backend had in a prefix cache of its own.
        failed_calls: attempts that failed.
        retries: attempts that were made again.
        fallbacks: how often another backend was asked instead.
        refused_calls: calls for which a budget had nothing left.
        usd: what they cost, as far as that is known by the end of the run.
    """

    model_seconds: float = 0.0
    cached_tokens: int = 0
    failed_calls: int = 0
    retries: int = 0
    fallbacks: int = 0
    refused_calls: int = 0
    usd: float = 0.0

    def add(self, event: CallEvent) -> None:
        """Count one event."""
        match event:
            case CallFinished():
                self.model_seconds += event.latency
                self.cached_tokens += event.cached_tokens
            case CallFailed():
                self.model_seconds += event.latency
                self.failed_calls += 1
            case Retried():
                self.retries += 1
            case FellBack():
                self.fallbacks += 1
            case BudgetRefused():
                self.refused_calls += 1
            case CallPriced():
                self.usd += event.cost

    def as_values(self) -> dict[str, Any]:
        """Those that are not zero, by name."""
        digits = {"model_seconds": 3, "usd": 6}
        return {name: round(value, digits.get(name, 0)) for name, value in asdict(self).items() if value}


class CallLog:
    """Logs model calls at DEBUG; what changes for all calls, a backend that is left alone, always."""

    def __init__(self) -> None:
        self._runs: OrderedDict[str, RunCalls] = OrderedDict()

    def observe(self, event: CallEvent) -> None:
        """Count one event and perhaps write a line: an observer of `LLMClient`."""
        if event.caller.run_id:
            self._of(event.caller.run_id).add(event)
        match event:
            case BreakerOpened():
                failures = {**_place(event), "failures": event.failures, "seconds": event.seconds}
                _log.warning("a backend failed again and again and is left alone", extra=failures)
            case BreakerClosed():
                _log.info("a backend answers again", extra=_place(event))
            case _ if _log.isEnabledFor(logging.DEBUG):
                text, values = _told(event)
                if text:
                    said = {name: value for name, value in values.items() if value not in (None, "", 0)}
                    _log.debug(text, extra={**_place(event), **said})

    def taken(self, run_id: str) -> dict[str, Any]:
        """What the calls of a run amount to; they are forgotten with that."""
        found = self._runs.pop(run_id, None)
        return {} if found is None else found.as_values()

    def _of(self, run_id: str) -> RunCalls:
        if run_id not in self._runs:
            self._runs[run_id] = RunCalls()
            while len(self._runs) > _MOST_RUNS:
                self._runs.popitem(last=False)
        return self._runs[run_id]


def _place(event: CallEvent) -> dict[str, Any]:
    caller = event.caller
    asked_by = {"agent": caller.agent, "run_id": caller.run_id, "task": caller.task}
    found = {"backend": event.backend, "model": event.model, **asked_by}
    return {name: value for name, value in found.items() if value}


def _told(event: CallEvent) -> tuple[str, dict[str, Any]]:
    """The line about an event, empty for one that has none, and its values: never what was said."""
    match event:
        case CallFinished():
            return "model call finished", {
                "call_id": event.call_id,
                "operation": event.operation,
                "seconds": round(event.latency, 3),
                "first_token_seconds": None if event.first_token is None else round(event.first_token, 3),
                "prompt_tokens": event.prompt_tokens,
                "completion_tokens": event.completion_tokens,
                "cached_tokens": event.cached_tokens,
                "thinking_tokens": event.thinking_tokens,
                "template": event.template,
            }
        case CallFailed():
            known = {"operation": event.operation, "seconds": round(event.latency, 3)}
            return "model call failed", {
                "call_id": event.call_id, "code": event.code, **known, "template": event.template
            }  # fmt: skip
        case CacheHit():
            return "model call answered from the cache", {"call_id": event.call_id, "cached": True}
        case CallPriced() if event.cost:
            return "model call priced", {"call_id": event.call_id, "usd": round(event.cost, 6)}
        case _:
            return _told_between(event)


def _told_between(event: CallEvent) -> tuple[str, dict[str, Any]]:
    """What happens between a caller and the backends."""
    match event:
        case Retried():
            return "model call is made again", {
                "call_id": event.call_id,
                "code": event.code,
                "attempt": event.attempt,
                "delay": round(event.delay, 3),
            }
        case FellBack():
            return "another backend is asked instead", {
                "call_id": event.call_id, "code": event.code, "to": event.to
            }  # fmt: skip
        case Escalated():
            return "a larger model is asked as well", {"to": event.to, "why": event.why}
        case BudgetRefused():
            return "model call refused: a budget is used up", {"budget": event.budget}
        case _:
            return _told_beside(event)


def _told_beside(event: CallEvent) -> tuple[str, dict[str, Any]]:
    """What happens beside the calls to backends."""
    match event:
        case Coalesced():
            return "model call shares the answer of one that is under way", {}
        case ParameterDropped():
            return "a parameter is left out", {"parameter": event.parameter}
        case ToolFinished():
            made_up = event.error == "unknown_tool"  # then its name is whatever the model wrote
            return "tool call finished", {
                "tool": None if made_up else event.tool,
                "seconds": round(event.latency, 3),
                "error": event.error,
            }
        case _:
            return "", {}
