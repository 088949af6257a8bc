"""What keeps due times from being run, why they are late, and a run that is to begin: frozen values."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from daemon.events import DueTime

TICK = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Cause:
    """Why due times are late.

    Attributes:
        reason: why.
        missed: whether the program could do nothing about it.
    """

    reason: str
    missed: bool = False


OFF = Cause("the program was not running", missed=True)
ASLEEP = Cause("the machine was asleep", missed=True)
STOOD_STILL = Cause("the program stood still", missed=True)
CLOCK_SET = Cause("the clock was set forward over it", missed=True)
QUIET = Cause("it was quiet time")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """What keeps an agent from running on schedule.

    Attributes:
        reason: why, as it stands beside the due times that it holds.
        until: when it ends by itself, None when somebody has to end it.
        drops: whether what comes due meanwhile is skipped when it ends, and not caught up.
    """

    reason: str
    until: datetime | None = None
    drops: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A run that is to begin now.

    Attributes:
        agent: the agent.
        trigger: why it runs: "schedule", or what `Agenda.trigger` was told.
        due: the due time that it is for.
        settled: earlier due times that are to be recorded with it; the coalesced ones led to this run.
        doubtful: that due time, or a later one, was settled before (a clock was set back): whether it has a
            fate already must be looked up.
        movable: if it has one, it is another due time that only looks the same, since it is not one of the
            calendar: the run is for `moved`.
    """

    agent: str
    trigger: str
    due: datetime
    settled: tuple[DueTime, ...] = ()
    doubtful: bool = False
    movable: bool = False

    def moved(self) -> Turn:
        """The same, for a due time that is a trifle later."""
        return replace(self, due=self.due + TICK)
