"""Standing: where agents stand and why, and the controls over them: alone, and inside the daemon.

Both kinds of controls keep states in the same way. The daemon's add what only its scheduler knows: what is
running, when an agent runs next, what keeps it from running at this moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from agents.config import AgentConfig
from agents.context import utc_now
from agents.errors import AgentError, AgentNotFound
from agents.schedule import Schedule
from daemon.controls import Controls, Standing
from daemon.discipline import held_until, paused, resumed
from daemon.errors import DaemonError
from daemon.events import AgentState, AgentStatus, EventBus, RunResult
from daemon.interruptions import announce
from daemon.proposals import ProposalDesk
from daemon.runner import Runner
from daemon.settings import Settings
from daemon.store.uncancelled import finished

if TYPE_CHECKING:
    from daemon.runtime import Runtime
    from daemon.store.due_times import DueTimeStore
    from daemon.store.engine import Database
    from daemon.store.runs import RunStore
    from daemon.store.states import StateStore

NO_DAEMON = "no daemon is running, so nothing runs on schedule; start it: askfirst run"
"""What holds every agent while there is no daemon."""

DUE_TIMES_SHOWN = 10
"""So many of an agent's last due times belong to its standing."""

Backup = Callable[[Path | None], Awaitable[Path]]
"""Makes a verified copy of the database; see `Controls.backup`."""

Reload = Callable[[], Awaitable[tuple[str, ...]]]
"""Reads the configuration again; see `Controls.reload`."""


class Live(Protocol):
    """What a scheduler that runs knows of its agents, and does when asked."""

    @property
    def runtime(self) -> Runtime | None:
        """What is open, by the configuration that is in force."""

    def running_since(self, agent: str) -> datetime | None:
        """When the agent's run that is under way began, None when none is."""

    def next_due(self, agent: str) -> datetime | None:
        """The agent's next due time by the clock, None when it has none."""

    def next_run(self, agent: str) -> datetime | None:
        """When that is run at the earliest, None when only a person or an event can bring a run."""

    def holds(self, agent: str) -> tuple[str, ...]:
        """What keeps it from running now, one sentence each, with the way out."""

    async def run_once(self, agent: str) -> list[RunResult]:
        """Run it now."""


class LocalControls:
    """The controls of a command that works alone: no daemon is running.

    Args:
        settings: the configuration.
        database: where states are kept.
        runs: the runs.
        desk: finishes what a crash interrupted before an agent is run.
        runner: runs agents, and knows how.
        due_times: what became of due times.
        states: the agents' states.
        events: where changes are told.
        backup: makes a copy of the database; None where nobody can.
        now: the clock, UTC.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        runs: RunStore,
        desk: ProposalDesk,
        runner: Runner,
        *,
        due_times: DueTimeStore,
        states: StateStore,
        events: EventBus,
        backup: Backup | None = None,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._settings = settings
        self._database = database
        self._runs = runs
        self._desk = desk
        self._runner = runner
        self._due_times = due_times
        self._states = states
        self._events = events
        self._backup = backup
        self._now = now

    async def pause(self, agent: str, by: str, reason: str = "") -> AgentStatus:
        """Do not run the agent on schedule until it is resumed; a run under way goes on."""
        return await self._change(agent, lambda status: paused(status, by, reason, self._now()))

    async def resume(self, agent: str, by: str) -> AgentStatus:
        """Run a paused, quarantined or held agent on schedule again; its failures are forgotten."""
        return await self._change(agent, lambda status: resumed(status, by, self._now()))

    async def run(self, agent: str, trigger: str = "manual") -> RunResult:
        """Run the agent now, whatever holds it, and tell how the run ended."""
        await self._check_known(agent)
        await self._desk.recover()
        return await self._runner.run(agent, trigger)

    async def why(self, agent: str) -> Standing:
        """Where the agent stands, as the stores and the configuration say."""
        enabled = agent in self._settings.enabled_agents
        holds: list[str] = []
        readable = True
        try:
            config = await self._runner.config(agent)
        except AgentNotFound:
            raise
        except AgentError as error:
            config, readable = AgentConfig(name=agent, every=None), False
            holds.append(f"it cannot be run: {error}")
        status = await self._states.get(agent)
        last = await self._runs.list(agent=agent, limit=1)
        due_times = await self._due_times.list(agent=agent, limit=DUE_TIMES_SHOWN)
        newest = await self._due_times.last(agent)
        if newest is None and last:
            newest = last[0].started_at
        now = self._now()
        # In a thread: the machine's time zone, and whatever reads cron expressions, are read from the disk.
        words, next_due, quiet = await asyncio.to_thread(_by_the_clock, config, newest, now)
        holds += _holds(status, config, now, quiet, enabled=enabled)
        return Standing(
            status=status,
            schedule=words if readable else "not known",
            enabled=enabled,
            next_due=next_due if enabled else None,
            holds=(*holds, NO_DAEMON),
            last_run=last[0] if last else None,
            due_times=due_times,
        )

    async def reload(self) -> tuple[str, ...]:
        """Raises DaemonError: there is nobody who would have to read the configuration again."""
        msg = (
            "no daemon is running: the configuration is read when it starts; check it: askfirst config check"
        )
        raise DaemonError(msg)

    async def backup(self, to: Path | None = None) -> Path:
        """Make a verified copy of the database and return where it is; `to` None puts it with the others."""
        if self._backup is None:
            msg = "this program was put together without backups; copy the database while nothing runs"
            raise DaemonError(msg)
        return await self._backup(to)

    async def _change(self, agent: str, decide: Callable[[AgentStatus], AgentStatus]) -> AgentStatus:
        await self._check_known(agent)
        return await finished(self._save(agent, decide))

    async def _save(self, agent: str, decide: Callable[[AgentStatus], AgentStatus]) -> AgentStatus:
        async with self._database.write() as connection:
            before = await self._states.get(agent, connection)
            status = decide(before)
            if status != before:
                await self._states.save(connection, status)
        if status != before:
            announce(self._events, status, before.state)
        return status

    async def _check_known(self, agent: str) -> AgentConfig | None:
        """How the agent is run, None if that cannot work; an agent whose table is broken can still be paused.

        Raises:
            AgentNotFound: there is no such agent.
        """
        try:
            return await self._runner.config(agent)
        except AgentNotFound:
            raise
        except AgentError:
            return None


class DaemonControls:
    """The controls inside the daemon: those over what is kept, and what its scheduler knows besides.

    Args:
        scheduler: the one that runs.
        runtime: what is open; the scheduler has another one after the configuration was read again.
        reload: reads the configuration again.
        backup: makes a copy of the database; None leaves that to the runtime's own controls.
    """

    def __init__(
        self, scheduler: Live, runtime: Runtime, *, reload: Reload, backup: Backup | None = None
    ) -> None:
        self._scheduler = scheduler
        self._runtime = runtime
        self._reload = reload
        self._backup = backup

    async def pause(self, agent: str, by: str, reason: str = "") -> AgentStatus:
        """Do not run the agent on schedule until it is resumed; a run under way goes on."""
        return await self._kept.pause(agent, by, reason)

    async def resume(self, agent: str, by: str) -> AgentStatus:
        """Run a paused, quarantined or held agent on schedule again; its failures are forgotten."""
        return await self._kept.resume(agent, by)

    async def run(self, agent: str, trigger: str = "manual") -> RunResult:
        """Run the agent now, beside those that the scheduler runs, and tell how the run ended."""
        del trigger  # the scheduler knows that a person asked
        (result,) = await self._scheduler.run_once(agent)
        return result

    async def why(self, agent: str) -> Standing:
        """Where the agent stands."""
        live = self._scheduler
        return replace(
            await self._kept.why(agent),
            running_since=live.running_since(agent),
            next_due=live.next_due(agent),
            next_run=live.next_run(agent),
            holds=live.holds(agent),
        )

    async def reload(self) -> tuple[str, ...]:
        """Read the configuration again, whole or not at all; returns what changed, one sentence each."""
        return await self._reload()

    async def backup(self, to: Path | None = None) -> Path:
        """Make a verified copy of the database and return where it is; `to` None puts it with the others."""
        return await (self._kept.backup(to) if self._backup is None else self._backup(to))

    @property
    def _kept(self) -> Controls:
        """The controls over what is kept, by the configuration that is in force."""
        return (self._scheduler.runtime or self._runtime).controls


def _by_the_clock(
    config: AgentConfig, newest: datetime | None, now: datetime
) -> tuple[str, datetime | None, datetime | None]:
    """The schedule in words, the due time that comes next or has passed without a run, the quiet time's end.

    Args:
        config: how the agent is run.
        newest: its newest due time that is settled, or when it ran last; None if it never ran.
        now: the time of day.
    """
    schedule = config.schedule
    return str(schedule), _next_due(schedule, newest, now), schedule.quiet_until(now)


def _next_due(schedule: Schedule, newest: datetime | None, now: datetime) -> datetime | None:
    if newest is None:
        return now if schedule.interval is not None else schedule.due_after(now, now)
    passed = schedule.between(newest, now)
    return schedule.due_after(newest, now) if passed is None else passed.last


def _holds(
    status: AgentStatus, config: AgentConfig, now: datetime, quiet: datetime | None, *, enabled: bool
) -> list[str]:
    """What keeps an agent from being run on schedule now, one sentence each, with the way out."""
    name = status.agent
    holds: list[str] = []
    if not enabled:
        holds.append(f"it is not enabled: give it a table [agents.{name}] without enabled = false")
    if status.state is AgentState.PAUSED:
        why = f": {status.reason}" if status.reason else ""
        by = f" by {status.by}" if status.by else ""
        holds.append(f"paused{by} since {_when(status.since)}{why}; resume it: askfirst agents resume {name}")
    elif status.state is AgentState.QUARANTINED:
        holds.append(
            f"quarantined since {_when(status.since)}: {status.reason}; mend it, then resume it: "
            f"askfirst agents resume {name} (or change its configuration)"
        )
    until = held_until(status, now, config.backoff)
    if until is not None:
        holds.append(
            f"left alone until {_when(until)}: {status.held_because}; "
            f"run it now: askfirst agents run {name}, or end the wait: askfirst agents resume {name}"
        )
    if quiet is not None:
        holds.append(f"quiet until {_when(quiet)}; run it now: askfirst agents run {name}")
    return holds


def _when(moment: datetime | None) -> str:
    return "an unknown time" if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
