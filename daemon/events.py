"""What happened in the daemon, as frozen events, and the bus that hands them to logs and metrics."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from agents.proposal import Proposal, ProposalStatus


class RunOutcome(StrEnum):
    """How a run ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """One run of one agent, as it ended.

    Attributes:
        run_id: the run's name.
        agent: the agent's name.
        trigger: why it ran: "once", "schedule" or "manual".
        outcome: how it ended.
        started_at: when it began, UTC.
        finished_at: when it ended, UTC.
        proposals: the new proposals, as they were kept.
        duplicates: proposals that were already open.
        suppressed: proposals that a person turned down before and whose evidence has not changed.
        over_cap: proposals beyond the agent's limits, counted and not kept.
        withdrawn: open proposals that no longer made sense.
        calls: model calls, cached ones included.
        cached_calls: model calls that the response cache answered.
        prompt_tokens: tokens in, cached calls left out.
        completion_tokens: tokens out, cached calls left out.
        backend: the backend that answered, None when no model was asked.
        model: the model that answered, None when no model was asked.
        error: what went wrong, None when nothing did.
        notes: short facts that the agent wants seen.
        not_before: asking the model again is of no use until then, so that the agent is not run on schedule;
            None when nobody asked to wait. Not recorded: after a restart the model is simply asked.
    """

    run_id: str
    agent: str
    trigger: str
    outcome: RunOutcome
    started_at: datetime
    finished_at: datetime
    proposals: tuple[Proposal, ...] = ()
    duplicates: int = 0
    suppressed: int = 0
    over_cap: int = 0
    withdrawn: int = 0
    calls: int = 0
    cached_calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    backend: str | None = None
    model: str | None = None
    error: str | None = None
    notes: tuple[str, ...] = ()
    not_before: datetime | None = field(default=None, compare=False)

    @property
    def seconds(self) -> float:
        """How long the run took."""
        return (self.finished_at - self.started_at).total_seconds()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFinished:
    """A run ended and was recorded."""

    result: RunResult


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposalChanged:
    """A proposal was kept for the first time (`before` is None) or changed its status."""

    proposal: Proposal
    before: ProposalStatus | None


Event = RunFinished | ProposalChanged
Subscriber = Callable[[Event], None]

_log = logging.getLogger(__name__)


class EventBus:
    """Hands each event to every subscriber; one that fails is logged and does not stop the others."""

    def __init__(self) -> None:
        self._subscribers: list[Subscriber] = []

    def subscribe(self, subscriber: Subscriber) -> None:
        """Call `subscriber` with every event from now on. It must be quick: it runs on the event loop."""
        self._subscribers.append(subscriber)

    def publish(self, event: Event) -> None:
        """Tell everybody."""
        for subscriber in self._subscribers:
            try:
                subscriber(event)
            except Exception:  # noqa: BLE001 - a broken adapter must not undo what has happened
                _log.exception("an event subscriber failed on %s", type(event).__name__)
