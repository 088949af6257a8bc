"""Triggers: what makes an agent due besides the clock: another agent's run, a file, a calendar's event."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

from agents.context import utc_now
from agents.proposal import ProposalStatus
from agents.schedule import Schedule
from daemon.events import Event, ProposalChanged, RunBegun, RunFinished, RunOutcome, RunResult
from daemon.triggers.calendar import Calendars
from daemon.triggers.files import FileWatch

_log = logging.getLogger(__name__)

Fire = Callable[[str, str, datetime | None], object]
"""Told which agent is due, why, and since when, if there is a moment of the calendar for it."""

_CHANGING = frozenset({ProposalStatus.APPLYING, ProposalStatus.UNDOING})


class Triggers:
    """Tells which agents are due because something happened, from `start` until `aclose`.

    Nothing runs and nothing wakes up for agents that are due by the clock only.

    Args:
        schedules: every agent's schedule by its name.
        base_dir: where relative paths start.
        fire: called on the event loop with the agent's name, why it is due ("after NAME", "file", "calendar")
            and its due time, None for now. It must be quick. After a restart it is called again for moments
            of a calendar that passed before, so it has to know what it ran already.
        since: by agent, from when on what happened while the program did not run counts: its last due time
            or run. Without an agent's name nothing of before the start counts for it; None instead of a
            mapping looks a week back for every calendar.
        now: the clock, UTC.
    """

    def __init__(
        self,
        schedules: Mapping[str, Schedule],
        base_dir: Path,
        fire: Fire,
        *,
        since: Mapping[str, datetime] | None = None,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._schedules = dict(schedules)
        self._fire = fire
        self._now = now
        self._running: dict[str, str] = {}
        watched = {name: each.watch for name, each in schedules.items() if each.watch}
        self._files = FileWatch(watched, base_dir, self._file_changed, since=since)
        self._calendars = Calendars(schedules, base_dir, self._before_event, since=since, now=now)

    async def start(self) -> None:
        """Begin; what changes after this returns is noticed."""
        await self._files.start()
        await self._calendars.start()

    async def aclose(self) -> None:
        """End; nothing is fired after this returns."""
        await self._calendars.aclose()
        await self._files.aclose()

    async def hand_over(self) -> datetime:
        """As `aclose`, and fire what has changed by now; returns since when another one has to look."""
        await self._calendars.aclose()
        moment = self._now()
        self._calendars.fire_due(moment)
        await self._files.catch_up()
        await self.aclose()
        return moment

    def note(self, result: RunResult) -> None:
        """A run has ended: the agents that come after it are due if it succeeded."""
        if result.outcome is not RunOutcome.SUCCEEDED:
            return
        for name, schedule in self._schedules.items():
            if result.agent in schedule.after:
                self._tell(name, f"after {result.agent}", None)

    def observe(self, event: Event) -> None:
        """An `EventBus` subscriber: what an agent changes while it runs, applies or undoes is its own."""
        if isinstance(event, RunBegun):
            if event.agent not in self._running:
                self.suppress(event.agent)
            self._running[event.agent] = event.run_id
        elif isinstance(event, RunFinished):
            if self._running.get(event.result.agent) == event.result.run_id:
                del self._running[event.result.agent]
                self.resume(event.result.agent)
        elif isinstance(event, ProposalChanged):
            self._mind_its_changes(event)

    def suppress(self, agent: str) -> None:
        """Changes of the files that `agent` watches are its own until `resume`; calls may be nested."""
        self._files.suppress(agent)

    def resume(self, agent: str) -> None:
        """End what `suppress` began."""
        self._files.resume(agent)

    def clock_changed(self) -> None:
        """The clock was set, or the machine slept: look anew at what is due."""
        self._calendars.clock_changed()

    def _mind_its_changes(self, event: ProposalChanged) -> None:
        """An applied or undone proposal changes files by the agent's own hand."""
        before, after = event.before in _CHANGING, event.proposal.status in _CHANGING
        if after and not before:
            self.suppress(event.proposal.agent)
        elif before and not after:
            self.resume(event.proposal.agent)

    def _file_changed(self, agent: str) -> None:
        self._tell(agent, "file", None)

    def _before_event(self, agent: str, due: datetime) -> None:
        self._tell(agent, "calendar", due)

    def _tell(self, agent: str, why: str, due: datetime | None) -> None:
        try:
            self._fire(agent, why, due)
        except Exception:  # noqa: BLE001 - a run that cannot be begun must not end the watching
            _log.exception("an agent that is due could not be run", extra={"agent": agent, "trigger": why})
