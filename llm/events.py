"""What happened during a call, as frozen events.

Adapters turn them into logs and metrics; this package knows neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class CallEvent:
    """Common to all events: which backend and model it is about."""

    backend: str
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CallStarted(CallEvent):
    """A request goes to a backend."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFinished(CallEvent):
    """A backend answered. `latency` is in seconds."""

    latency: float
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFailed(CallEvent):
    """A backend call failed with the error class `code` after `latency` seconds."""

    latency: float
    code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheHit(CallEvent):
    """The response cache answered; no backend was called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheMiss(CallEvent):
    """The response cache had no answer."""


class Observer(Protocol):
    """Anything that can be called with an event. It must be quick and must not raise."""

    def __call__(self, event: CallEvent, /) -> None:
        """Take note of `event`."""
