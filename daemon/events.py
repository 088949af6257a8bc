"""What happened in the daemon, as frozen events, and the bus that hands them to logs and metrics."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from agents.proposal import Proposal, ProposalStatus

ID_LETTERS = "0123456789abcdefghjkmnpqrstvwxyz"
"""What names of runs are made of, in the order in which they sort."""


def first_run_id(moment: datetime) -> str:
    """The 9 characters with which the names of runs of that moment begin: milliseconds since 1970 in base 32.

    Names of runs sort by time, so the runs since a moment are those whose names are not below this.
    """
    number = max(0, int(moment.timestamp() * 1000))
    return "".join(ID_LETTERS[(number >> shift) & 31] for shift in range(40, -1, -5))


class RunOutcome(StrEnum):
    """How a run ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"
    """The whole program ended meanwhile, by a crash or a power cut; found out at the next start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """One run of one agent, as it ended.

    Attributes:
        run_id: the run's name.
        agent: the agent's name.
        trigger: why it ran: "once", "schedule", "manual", or "after NAME", "file", "webhook", "calendar".
        outcome: how it ended.
        started_at: when it began, UTC.
        finished_at: when it ended, UTC.
        due: the due time that it was for, None of a run by hand.
        attempt: 1, or more when the program crashed in earlier runs for the same due time.
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
            None when nobody asked to wait. Kept with the agent's state, not with the run.
        model_failed: whether it failed because a model did, which is not the agent's fault. Not recorded.
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
    due: datetime | None = None
    attempt: int = 1
    not_before: datetime | None = field(default=None, compare=False)
    model_failed: bool = field(default=False, compare=False)

    @property
    def seconds(self) -> float:
        """How long the run took."""
        return (self.finished_at - self.started_at).total_seconds()


class Fate(StrEnum):
    """What became of a due time."""

    RUN = "run"
    COALESCED = "coalesced"
    """A later due time's run stood for it too."""
    SKIPPED = "skipped"
    """The program did not want to run it: the reason says why."""
    MISSED = "missed"
    """The program could not run it: it was not running, or the machine slept, and it was not caught up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DueTime:
    """What became of a due time, or of consecutive ones that shared their fate.

    Attributes:
        agent: the agent.
        due: the due time, or the oldest of them, UTC.
        last: the newest of them, UTC.
        count: how many they are; of a cron expression 1,000 may stand for more.
        fate: what became of them.
        reason: why, empty for a run.
        run_id: the run that they led to, None when they led to none.
    """

    agent: str
    due: datetime
    last: datetime
    count: int = 1
    fate: Fate
    reason: str = ""
    run_id: str | None = None


class AgentState(StrEnum):
    """Whether an agent is run on schedule."""

    ACTIVE = "active"
    PAUSED = "paused"
    """A person said so."""
    QUARANTINED = "quarantined"
    """It failed too often, or took the program down with it: a person or a new configuration resumes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentStatus:
    """What is kept about an agent between its runs.

    Attributes:
        agent: the agent.
        state: whether it is run on schedule.
        reason: why it is paused or quarantined, empty while it is active.
        by: who paused or resumed it; "askfirst" when the program did it by itself.
        since: since when, None if it was never paused or quarantined.
        failures: failed runs in a row, those of its model included.
        model_failures: how many of them failed because its model did; only the others lead to quarantine.
        held_until: it is not run on schedule before then, although it is active; None when nothing holds it.
        held_because: what holds it.
        config_digest: SHA-256 of its configuration when it was quarantined; another one resumes it.
    """

    agent: str
    state: AgentState = AgentState.ACTIVE
    reason: str = ""
    by: str = ""
    since: datetime | None = None
    failures: int = 0
    model_failures: int = 0
    held_until: datetime | None = None
    held_because: str = ""
    config_digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunBegun:
    """An agent is about to look and think; how it ends is told by `RunFinished`.

    Attributes:
        agent: the agent.
        run_id: the run.
        trigger: why it runs.
    """

    agent: str
    run_id: str
    trigger: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFinished:
    """A run ended and was recorded.

    Attributes:
        result: the run.
        status: what is kept about its agent now, None when that was not looked at.
    """

    result: RunResult
    status: AgentStatus | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposalChanged:
    """A proposal was kept for the first time (`before` is None), or something was done with it.

    Attributes:
        proposal: as it stands now.
        before: where it stood before.
        action: what was done, as it is recorded: "keep", "approve", "edit", "reject", "snooze", "apply",
            "applied", "apply_failed", "undo", ...
    """

    proposal: Proposal
    before: ProposalStatus | None
    action: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DueTimesSettled:
    """It was recorded what became of due times."""

    due_times: tuple[DueTime, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentStateChanged:
    """An agent was paused, quarantined or resumed."""

    status: AgentStatus
    before: AgentState


Event = RunBegun | RunFinished | ProposalChanged | DueTimesSettled | AgentStateChanged
Subscriber = Callable[[Event], None]

_log = logging.getLogger(__name__)


class EventBus:
    """Hands each event to every subscriber; one that fails is logged and does not stop the others."""

    def __init__(self) -> None:
        self._subscribers: list[Subscriber] = []

    def subscribe(self, subscriber: Subscriber) -> None:
        """Call `subscriber` with every event from now on. It must be quick: it runs on the event loop."""
        self._subscribers.append(subscriber)

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """Call `subscriber` no more."""
        self._subscribers = [each for each in self._subscribers if each != subscriber]

    def publish(self, event: Event) -> None:
        """Tell everybody."""
        for subscriber in self._subscribers:
            try:
                subscriber(event)
            except Exception:  # noqa: BLE001 - a broken adapter must not undo what has happened
                _log.exception("an event subscriber failed on %s", type(event).__name__)
