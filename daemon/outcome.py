"""RunUnderWay: what is known of a run while it goes on, and the result it amounts to. Pure."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from agents.config import AgentConfig
from agents.context import ModelCall
from agents.proposal import Proposal
from daemon.events import ID_LETTERS, DueTime, Fate, RunOutcome, RunResult, first_run_id
from daemon.intake import MAX_KEY, fit_notes, one_line
from llm import CallCancelled, ConnectionFailed, DeadlineExceeded, LLMError, TemplateError

SHORTEST_HOLD = timedelta(minutes=1)
"""A model that can be asked again this soon keeps no agent from its schedule."""

LONGEST_HOLD = timedelta(days=7)
"""No server's word keeps an agent from its schedule for longer."""

BY_HAND = frozenset({"once", "manual"})
"""Triggers of runs that a person asked for; all others come by themselves."""

_MODEL_STUCK = frozenset({CallCancelled.code, DeadlineExceeded.code, ConnectionFailed.code})


def new_run_id(now: datetime) -> str:
    """A name of 13 characters that sorts by time: 9 of milliseconds since 1970 in base 32, 4 by chance."""
    return first_run_id(now) + "".join(secrets.choice(ID_LETTERS) for _ in range(4))


@dataclass(slots=True, kw_only=True)
class RunUnderWay:
    """A run that has begun.

    Attributes:
        run_id: its name.
        agent: the agent's name.
        trigger: why it runs.
        started_at: when it began, UTC.
        due: the due time that it is for, None of a run by hand.
        settled: earlier due times whose fate is sealed with this run.
        attempt: which attempt it is for its due time.
        outcome: how it ended, as far as is known.
        error: what went wrong, None when nothing did.
        calls: the model calls, filled by the agent through its context.
        notes: what the agent wants seen, filled in the same way.
        withdrawn: open proposals that make no sense any more, and why.
        returned: what `analyze` returned, whatever that is.
        not_before: when the model may be asked again, None when nobody asked to wait.
        model_failed: whether it failed because its model did.
        blameless: whether it failed for a reason that says nothing about the agent.
    """

    run_id: str
    agent: str
    trigger: str
    started_at: datetime
    due: datetime | None = None
    settled: tuple[DueTime, ...] = ()
    attempt: int = 1
    outcome: RunOutcome = RunOutcome.SUCCEEDED
    error: str | None = None
    calls: list[ModelCall] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    withdrawn: dict[int, str] = field(default_factory=dict)
    returned: Any = ()
    not_before: datetime | None = None
    model_failed: bool = False
    blameless: bool = False

    @classmethod
    def of(
        cls,
        agent: str,
        trigger: str,
        now: datetime,
        due: datetime | None = None,
        settled: Iterable[DueTime] = (),
    ) -> Self:
        """A run that begins now."""
        return cls(
            run_id=new_run_id(now),
            agent=one_line(agent, MAX_KEY),
            trigger=one_line(trigger, MAX_KEY),
            started_at=now,
            due=due,
            settled=tuple(settled),
        )

    @property
    def by_hand(self) -> bool:
        """Whether a person asked for it."""
        return self.trigger in BY_HAND and self.due is None

    def end(self, outcome: RunOutcome, error: str) -> None:
        """It ended like that."""
        self.outcome, self.error = outcome, error

    def hold(self, seconds: float | None, now: datetime) -> None:
        """Asking the model again is of no use for so long; less than a minute keeps nobody from running."""
        if seconds is None or seconds <= SHORTEST_HOLD.total_seconds():
            return
        self.not_before = now + timedelta(seconds=min(seconds, LONGEST_HOLD.total_seconds()))
        when = self.not_before.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
        self.notes.append(f"not run on schedule before {when}: the model cannot be asked until then")

    def blame(self, failure: BaseException) -> None:
        """Note whether its model is to blame for `failure`, which its code raised, or the agent itself."""
        cause: BaseException | None = failure
        while cause is not None and not isinstance(cause, LLMError):
            cause = cause.__cause__
        # A template that is missing or broken is the agent's own, although it is found on the way to a model.
        self.model_failed = cause is not None and not isinstance(cause, TemplateError)

    def blame_the_time(self) -> None:
        """It took too long: the model is to blame if it was being waited for, or had kept it waiting."""
        self.model_failed = any(call.error in _MODEL_STUCK for call in self.calls)

    def due_times(self) -> tuple[DueTime, ...]:
        """What became of due times with this run.

        Those of a cancelled run stay open: it was stopped with the program, and is made up for later.
        """
        if self.outcome is RunOutcome.CANCELLED:
            return ()
        others = (
            replace(each, run_id=self.run_id) if each.fate is Fate.COALESCED else each
            for each in self.settled
        )
        if self.due is None:
            return tuple(others)
        own = DueTime(agent=self.agent, due=self.due, last=self.due, fate=Fate.RUN, run_id=self.run_id)
        return (*others, own)

    def result(
        self,
        config: AgentConfig,
        verdicts: Sequence[tuple[str, Proposal]],
        *,
        now: datetime,
        left_out: int,
        withdrawn: int,
    ) -> RunResult:
        """What it amounts to.

        Args:
            config: the agent's limits, for the note about what was not kept.
            verdicts: what became of each proposal: "kept", "duplicate", "suppressed" or "over_cap".
            now: when it ended.
            left_out: proposals that were not even looked at.
            withdrawn: how many were withdrawn.
        """
        over_cap = left_out + _count(verdicts, "over_cap")
        answered = [call for call in self.calls if call.error is None]
        asked = [call for call in answered if not call.cached]
        return RunResult(
            run_id=self.run_id,
            agent=self.agent,
            trigger=self.trigger,
            outcome=self.outcome,
            started_at=self.started_at,
            finished_at=now,
            proposals=tuple(proposal for verdict, proposal in verdicts if verdict == "kept"),
            duplicates=_count(verdicts, "duplicate"),
            suppressed=_count(verdicts, "suppressed"),
            over_cap=over_cap,
            withdrawn=withdrawn,
            calls=len(self.calls),
            cached_calls=sum(call.cached for call in self.calls),
            prompt_tokens=sum(call.prompt_tokens for call in asked),
            completion_tokens=sum(call.completion_tokens for call in asked),
            backend=answered[-1].backend if answered else None,
            model=answered[-1].model if answered else None,
            error=self.error,
            notes=fit_notes([*_cap_note(over_cap, config), *self.notes]),
            due=self.due,
            attempt=self.attempt,
            not_before=self.not_before,
            model_failed=self.model_failed,
        )


def _count(verdicts: Iterable[tuple[str, Proposal]], wanted: str) -> int:
    return sum(verdict == wanted for verdict, _ in verdicts)


def _cap_note(over_cap: int, config: AgentConfig) -> list[str]:
    if not over_cap:
        return []
    limits = f"at most {config.max_proposals} of one run and {config.max_open} open ones"
    way_out = "decide about some, or raise max_proposals and max_open"
    return [f"{over_cap} more proposals were not kept: {limits}; {way_out}"]
