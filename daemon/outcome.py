"""RunUnderWay: what is known of a run while it goes on, and the result it amounts to. Pure."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from agents.config import AgentConfig
from agents.context import ModelCall
from agents.proposal import Proposal
from daemon.events import RunOutcome, RunResult
from daemon.intake import MAX_KEY, fit_notes, one_line

SHORTEST_HOLD = timedelta(minutes=1)
"""A model that can be asked again this soon keeps no agent from its schedule."""

LONGEST_HOLD = timedelta(days=7)
"""No server's word keeps an agent from its schedule for longer."""

_LETTERS = "0123456789abcdefghjkmnpqrstvwxyz"


def new_run_id(now: datetime) -> str:
    """A name of 13 characters that sorts by time: 9 of milliseconds since 1970 in base 32, 4 by chance."""
    number = int(now.timestamp() * 1000)
    digits = (_LETTERS[(number >> shift) & 31] for shift in range(40, -1, -5))
    return "".join(digits) + "".join(secrets.choice(_LETTERS) for _ in range(4))


@dataclass(slots=True, kw_only=True)
class RunUnderWay:
    """A run that has begun.

    Attributes:
        run_id: its name.
        agent: the agent's name.
        trigger: why it runs.
        started_at: when it began, UTC.
        outcome: how it ended, as far as is known.
        error: what went wrong, None when nothing did.
        calls: the model calls, filled by the agent through its context.
        notes: what the agent wants seen, filled in the same way.
        withdrawn: open proposals that make no sense any more, and why.
        returned: what `analyze` returned, whatever that is.
        not_before: when the model may be asked again, None when nobody asked to wait.
    """

    run_id: str
    agent: str
    trigger: str
    started_at: datetime
    outcome: RunOutcome = RunOutcome.SUCCEEDED
    error: str | None = None
    calls: list[ModelCall] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    withdrawn: dict[int, str] = field(default_factory=dict)
    returned: Any = ()
    not_before: datetime | None = None

    @classmethod
    def of(cls, agent: str, trigger: str, now: datetime) -> Self:
        """A run that begins now."""
        return cls(
            run_id=new_run_id(now),
            agent=one_line(agent, MAX_KEY),
            trigger=one_line(trigger, MAX_KEY),
            started_at=now,
        )

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
            not_before=self.not_before,
        )


def _count(verdicts: Iterable[tuple[str, Proposal]], wanted: str) -> int:
    return sum(verdict == wanted for verdict, _ in verdicts)


def _cap_note(over_cap: int, config: AgentConfig) -> list[str]:
    if not over_cap:
        return []
    limits = f"at most {config.max_proposals} of one run and {config.max_open} open ones"
    way_out = "decide about some, or raise max_proposals and max_open"
    return [f"{over_cap} more proposals were not kept: {limits}; {way_out}"]
