"""Roster: the agents on schedule: since when they count, what holds them, what else makes them due."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from agents.errors import AgentError
from agents.schedule import Schedule
from daemon.clock import LONGEST_SPREAD, spread_of
from daemon.events import (
    AgentState,
    AgentStateChanged,
    AgentStatus,
    Event,
    RunFinished,
    RunOutcome,
    RunResult,
)
from daemon.timeline import Hold
from daemon.timing import Timing
from daemon.totals import iso

if TYPE_CHECKING:
    from daemon.runtime import Runtime
    from llm import Selection

_log = logging.getLogger(__name__)

STATE = "state"
WAIT = "wait"
"""Kinds of holds: a person or the program took the agent off its schedule; it is left alone for a while."""


class Roster:
    """Knows the agents on schedule and tells the timing about them.

    Args:
        timing: calls them when they are due.

    Attributes:
        schedules: when each agent is due.
        problems: why an agent cannot be scheduled.
    """

    def __init__(self, timing: Timing) -> None:
        self.schedules: dict[str, Schedule] = {}
        self.problems: dict[str, str] = {}
        self._timing = timing
        self._since: dict[str, datetime] = {}
        self._triggers: Any = None

    async def enter(self, runtime: Runtime, runs: Mapping[str, RunResult]) -> None:
        """Schedule the runtime's agents; one that cannot be scheduled does not stop the others."""
        # In a thread: agents are imported, and the time zone of the machine is read.
        self.schedules, self.problems = await asyncio.to_thread(_schedules_of, runtime)
        for name, problem in self.problems.items():
            _log.error("an agent cannot be scheduled: %s", problem, extra={"agent": name})
        await self._add(runtime, runs, self.schedules)

    async def change(
        self, runtime: Runtime, runs: Mapping[str, RunResult], schedules: Mapping[str, Schedule]
    ) -> None:
        """Go on with other agents and schedules; those that stay keep their last due times."""
        await self.stop_triggers()
        before, self.schedules = self.schedules, dict(schedules)
        self.problems.clear()
        for name in before.keys() - schedules.keys():
            self._timing.remove(name)
            self._timing.crew.backends.pop(name, None)
            self._since.pop(name, None)
        for name in before.keys() & schedules.keys():
            self._timing.crew.backends[name] = backends_of(runtime.selection, name)
            self._timing.change(name, schedules[name], _spread(name, schedules[name], len(schedules)))
        await self._add(runtime, runs, schedules.keys() - before.keys())
        await self.start_triggers(runtime)

    async def _add(self, runtime: Runtime, runs: Mapping[str, RunResult], names: Iterable[str]) -> None:
        """Count due times from where they were when the program ran before."""
        now = datetime.now(UTC)
        due_times = await runtime.due_times.newest(now)
        states = await runtime.states.all()
        for name in self.schedules:
            if name not in names:
                continue
            await asyncio.sleep(0)  # a thousand agents must not keep the loop from its other work
            last, newest = due_times.get(name, (None, None))
            if newest is None and name in runs:
                newest = runs[name].started_at
                last = newest if newest <= now else None
            if last is not None:
                self._since[name] = last
            schedule = self.schedules[name]
            spread = _spread(name, schedule, len(self.schedules))
            self._timing.crew.backends[name] = backends_of(runtime.selection, name)
            self._timing.add(name, schedule, last=last, newest=newest, spread=spread)
            if name in states:
                self._mind_status(states[name])

    # what holds them

    def take_note(self, event: Event) -> None:
        """What happened to an agent may hold it, release it, or make others due."""
        if isinstance(event, AgentStateChanged):
            self._mind_status(event.status)
        elif isinstance(event, RunFinished):
            self._mind_run(event)
        if self._triggers is not None:
            self._triggers.observe(event)
            if isinstance(event, RunFinished):
                self._triggers.note(event.result)

    def _mind_run(self, event: RunFinished) -> None:
        result = event.result
        if event.status is not None:
            self._mind_status(event.status)
        elif result.not_before is not None:
            hold = Hold(reason="its model asks to wait", until=result.not_before)
            self._timing.hold(result.agent, WAIT, hold)
        elif result.outcome is RunOutcome.SUCCEEDED:
            self._timing.release(result.agent, WAIT)
        if result.not_before is not None:
            held = {"agent": result.agent, "until": iso(result.not_before)}
            _log.warning("an agent is not run on schedule for a while: its model asks to wait", extra=held)

    def _mind_status(self, status: AgentStatus) -> None:
        if status.state is AgentState.ACTIVE:
            self._timing.release(status.agent, STATE)
        else:
            self._timing.hold(status.agent, STATE, Hold(reason=_why(status), drops=True))
        if status.held_until is not None and status.held_until > datetime.now(UTC):
            because = status.held_because or "it failed"
            hold = Hold(reason=f"left alone for a while: {because}", until=status.held_until)
            self._timing.hold(status.agent, WAIT, hold)
        else:
            self._timing.release(status.agent, WAIT)

    def held_until(self, name: str) -> datetime | None:
        """Until when the agent is left alone, None when it is not."""
        hold = self._timing.agenda.holds_of(name).get(WAIT)
        return None if hold is None else hold.until

    def holds(self, name: str) -> tuple[str, ...]:
        """What keeps the agent from running now, one sentence each, with the way out."""
        if name in self.problems:
            return (f"it cannot be scheduled: {self.problems[name]}",)
        if name not in self.schedules:
            return (f"it is not enabled: add a table [agents.{name}] to the configuration",)
        now = datetime.now(UTC)
        found = []
        for kind, hold in self._timing.agenda.holds_of(name).items():
            until = "" if hold.until is None else f" until {_shown(hold.until)}"
            end = f"`askfirst agents resume {name}` ends that"
            also = ", a successful run by hand too" if kind == WAIT else ""
            found.append(f"{hold.reason}{until}; {end}{also}")
        quiet = self.schedules[name].quiet_until(now)
        if quiet is not None:
            found.append(
                f"it is quiet time until {_shown(quiet)} (quiet); `askfirst agents run {name}` runs it now"
            )
        waits = self._timing.crew.waits_because(name)
        return (*found, *([waits] if waits is not None else []))

    # what else makes them due

    async def start_triggers(self, runtime: Runtime) -> None:
        """Watch the files, calendars and runs that make agents due."""
        watched = {
            name: schedule
            for name, schedule in self.schedules.items()
            if schedule.after or schedule.watch or schedule.before is not None
        }
        if not watched or (module := await asyncio.to_thread(_triggers_module)) is None:
            return
        base_dir = runtime.settings.base_dir
        self._triggers = module.Triggers(watched, base_dir, self._timing.trigger, since=dict(self._since))
        await self._triggers.start()

    async def stop_triggers(self) -> None:
        """Watch them no more."""
        triggers, self._triggers = self._triggers, None
        if triggers is not None:
            await triggers.aclose()

    def clock_changed(self) -> None:
        """The clock was set, or the machine slept."""
        if self._triggers is not None:
            self._triggers.clock_changed()


def _schedules_of(runtime: Runtime) -> tuple[dict[str, Schedule], dict[str, str]]:
    """When each agent is due, and why those that cannot be scheduled cannot."""
    schedules: dict[str, Schedule] = {}
    problems: dict[str, str] = {}
    for name in runtime.agent_names:
        try:
            schedules[name] = runtime.settings.agent_config(name, runtime.registry.get(name)).schedule
        except AgentError as error:
            problems[name] = str(error)
    return schedules, problems


def _triggers_module() -> Any:
    return import_module("daemon.triggers") if find_spec("daemon.triggers") is not None else None


def _why(status: AgentStatus) -> str:
    if status.state is AgentState.QUARANTINED:
        return f"quarantined: {status.reason}" if status.reason else "quarantined"
    by = f"paused by {status.by}" if status.by else "paused"
    return f"{by}: {status.reason}" if status.reason else by


def _shown(moment: datetime) -> str:
    return moment.astimezone().isoformat(" ", "seconds")


def _spread(name: str, schedule: Schedule, agents: int) -> timedelta:
    return spread_of(name, schedule.interval or LONGEST_SPREAD, agents)


def backends_of(selection: Selection, name: str) -> tuple[str, ...]:
    """The backends that an agent asks, by their names."""
    if selection.routes is not None:
        return tuple(selection.routes.agents.get(name, selection.routes.default))
    return () if selection.config is None else (selection.config.backend,)
