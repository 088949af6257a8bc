"""Roster: the agents on schedule: since when they count, what holds them, what else makes them due."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib import import_module
from typing import TYPE_CHECKING, Self

from agents.errors import AgentError
from agents.schedule import Schedule
from daemon.clock import LONGEST_SPREAD, spread_of
from daemon.discipline import held_until
from daemon.events import (
    AgentState,
    AgentStateChanged,
    AgentStatus,
    Event,
    RunFinished,
    RunOutcome,
    RunResult,
)
from daemon.timing import Timing
from daemon.totals import iso
from daemon.turns import Hold

if TYPE_CHECKING:
    from agents.base import BaseAgent
    from agents.config import AgentConfig
    from daemon.runtime import Runtime
    from daemon.settings import Settings
    from daemon.triggers import Triggers
    from llm import Selection

_log = logging.getLogger(__name__)

STATE = "state"
WAIT = "wait"
"""Kinds of holds: a person or the program took the agent off its schedule; it is left alone for a while."""


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What is known of the agents from before.

    Attributes:
        now: when it was read.
        due_times: by agent, its newest settled due time not after `now`, and its newest.
        runs: by agent, its last run.
        states: by agent, what is kept about it.
    """

    now: datetime
    due_times: Mapping[str, tuple[datetime | None, datetime]]
    runs: Mapping[str, RunResult]
    states: Mapping[str, AgentStatus]

    @classmethod
    async def read(cls, runtime: Runtime) -> Self:
        """Read it.

        Raises:
            StoreError: the database cannot be read.
        """
        now = datetime.now(UTC)
        return cls(
            now=now,
            due_times=await runtime.due_times.newest(now),
            runs=await runtime.runs.newest(),
            states=await runtime.states.all(),
        )

    def of(self, name: str) -> tuple[datetime | None, datetime | None]:
        """The agent's last due time before `now`, or else its last run's start; and its newest."""
        if name in self.due_times:
            return self.due_times[name]
        if name not in self.runs:
            return None, None
        began = self.runs[name].started_at
        return (began if began <= self.now else None), began

    def watched_until(self, name: str, schedule: Schedule) -> datetime | None:
        """Until when what may make the agent due was dealt with; None for never.

        Files that it wrote in its last run are its own; a moment of a calendar that came meanwhile is not.
        """
        last, _ = self.of(name)
        run = self.runs.get(name)
        if last is None or run is None or schedule.before is not None or run.finished_at > self.now:
            return last
        return max(last, run.finished_at)


class Roster:
    """Knows the agents on schedule and tells the timing about them.

    Args:
        timing: calls them when they are due.

    Attributes:
        entries: how each agent is run and when it is due.
        problems: why an agent cannot be scheduled.
    """

    def __init__(self, timing: Timing) -> None:
        self.entries: dict[str, Entry] = {}
        self.problems: dict[str, str] = {}
        self._timing = timing
        self._triggers: Triggers | None = None

    async def enter(self, runtime: Runtime, history: History) -> None:
        """Schedule the runtime's agents; one that cannot be scheduled does not stop the others."""
        # In a thread: agents are imported, and the time zone of the machine is read.
        self.entries, self.problems = await asyncio.to_thread(_entries_of, runtime)
        for name, problem in self.problems.items():
            _log.error("an agent cannot be scheduled: %s", problem, extra={"agent": name})
        await self._add(runtime, history, self.entries)

    async def change(self, runtime: Runtime, history: History, entries: Mapping[str, Entry]) -> None:
        """Go on with other agents and schedules; those that stay keep their last due times."""
        moment = datetime.now(UTC) if self._triggers is None else await self._triggers.hand_over()
        self._triggers = None
        before, self.entries = self.entries, dict(entries)
        self.problems.clear()
        for name in before.keys() - entries.keys():
            self._timing.remove(name)
            self._timing.crew.backends.pop(name, None)
        for name in before.keys() & entries.keys():
            self._timing.crew.backends[name] = backends_of(runtime.selection, name)
            schedule = entries[name].schedule
            self._timing.change(name, schedule, _spread(name, schedule, len(entries)))
        await self._add(runtime, history, entries.keys() - before.keys())
        try:
            told: dict[str, datetime | None] = dict.fromkeys(before.keys() & entries.keys(), moment)
            await self.start_triggers(runtime, history, told)
        except Exception:  # noqa: BLE001 - the new configuration is in force already
            _log.exception("what makes agents due besides the clock is not watched; a restart tries again")

    async def _add(self, runtime: Runtime, history: History, names: Collection[str]) -> None:
        """Count due times from where they were when the program ran before."""
        for name in self.entries:
            if name not in names:
                continue
            await asyncio.sleep(0)  # a thousand agents must not keep the loop from its other work
            last, newest = history.of(name)
            schedule = self.entries[name].schedule
            spread = _spread(name, schedule, len(self.entries))
            self._timing.crew.backends[name] = backends_of(runtime.selection, name)
            self._timing.add(name, schedule, last=last, newest=newest, spread=spread)
            if name in history.states:
                self._mind_status(history.states[name])

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
        entry = self.entries.get(status.agent)
        until = held_until(status, datetime.now(UTC), () if entry is None else entry.config.backoff)
        if until is not None:
            because = status.held_because or "it failed"
            hold = Hold(reason=f"left alone for a while: {because}", until=until)
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
        if name not in self.entries:
            return (f"it is not enabled: add a table [agents.{name}] to the configuration",)
        now = datetime.now(UTC)
        found = []
        for kind, hold in self._timing.agenda.holds_of(name).items():
            until = "" if hold.until is None else f" until {_shown(hold.until)}"
            end = f"`askfirst agents resume {name}` ends that"
            also = ", a successful run by hand too" if kind == WAIT else ""
            found.append(f"{hold.reason}{until}; {end}{also}")
        quiet = self.entries[name].schedule.quiet_until(now)
        if quiet is not None:
            found.append(
                f"it is quiet time until {_shown(quiet)} (quiet); `askfirst agents run {name}` runs it now"
            )
        waits = self._timing.crew.waits_because(name)
        return (*found, *([waits] if waits is not None else []))

    # what else makes them due

    async def start_triggers(
        self, runtime: Runtime, history: History, told: Mapping[str, datetime | None] | None = None
    ) -> None:
        """Watch the files, calendars and runs that make agents due; `told` says until when that was done."""
        watched = {
            name: entry.schedule
            for name, entry in self.entries.items()
            if entry.schedule.after or entry.schedule.watch or entry.schedule.before is not None
        }
        if not watched:
            return
        await asyncio.to_thread(import_module, "daemon.triggers")
        from daemon.triggers import Triggers  # noqa: PLC0415 - only where something is to be watched

        base_dir = runtime.settings.base_dir
        until = {name: history.watched_until(name, schedule) for name, schedule in watched.items()}
        since = {name: moment for name, moment in {**until, **(told or {})}.items() if moment is not None}
        self._triggers = Triggers(watched, base_dir, self._timing.trigger, since=since)
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


@dataclass(frozen=True, slots=True)
class Entry:
    """How an agent is run, and when it is due by that."""

    config: AgentConfig
    schedule: Schedule


def entry_of(settings: Settings, name: str, agent: type[BaseAgent]) -> Entry:
    """An agent's entry; reads the time zone of this machine from the disk.

    Raises:
        AgentSettingsError: its table cannot work.
    """
    config = settings.agent_config(name, agent)
    return Entry(config, config.schedule)


def _entries_of(runtime: Runtime) -> tuple[dict[str, Entry], dict[str, str]]:
    """Each agent's entry, and why those that cannot be scheduled cannot."""
    entries: dict[str, Entry] = {}
    problems: dict[str, str] = {}
    for name in runtime.agent_names:
        try:
            entries[name] = entry_of(runtime.settings, name, runtime.registry.get(name))
        except AgentError as error:
            problems[name] = str(error)
    return entries, problems


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
