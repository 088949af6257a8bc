"""Interruptions: runs that ended with the whole program, found out at the next start.

While an agent runs, a mark in its lock file says which run that is (daemon/marks.py). A mark that says so
although nobody holds the lock was left by a crash, a power cut or a kill. If the run is in the database, it
had been committed and nothing more is to be done. Else it is recorded as interrupted; its due time stays
open, so that it is run again. Three such runs in a row park the agent: no program crashes for ever over it.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from agents.base import NAME_PATTERN
from agents.config import AgentConfig
from agents.errors import AgentError
from daemon.discipline import after_crashes, config_digest, crash_reason
from daemon.errors import StoreError
from daemon.events import (
    AgentState,
    AgentStateChanged,
    AgentStatus,
    DueTime,
    DueTimesSettled,
    Event,
    EventBus,
    Fate,
    RunFinished,
    RunOutcome,
    RunResult,
)
from daemon.execution import agent_lock
from daemon.maker import AgentMaker
from daemon.marks import Mark, read_mark, write_mark
from daemon.outcome import RunUnderWay
from daemon.store.locks import LockBusy
from daemon.store.uncancelled import finished

if TYPE_CHECKING:
    from daemon.store.due_times import DueTimeStore
    from daemon.store.engine import Database
    from daemon.store.runs import RunStore
    from daemon.store.states import StateStore

MAX_CRASHES = 3
"""After so many runs in a row that ended with the whole program, an agent is no longer run on schedule."""

_log = logging.getLogger(__name__)


def announce(events: EventBus, status: AgentStatus, before: AgentState) -> None:
    """Tell that an agent's state was changed; a quarantine is the one thing that somebody must look at."""
    known = {"agent": status.agent, "reason": status.reason}
    if status.state is AgentState.QUARANTINED:
        way = f"mend it, then: askfirst agents resume {status.agent}"
        _log.error("an agent is quarantined and no longer run on schedule", extra={**known, "way_out": way})
    events.publish(AgentStateChanged(status=status, before=before))


class Interruptions:
    """Marks runs that are under way, and settles what crashes left.

    Args:
        maker: tells how agents are run.
        database: where it is recorded; the lock files are beside it.
        runs: the runs.
        due_times: what became of due times.
        states: the agents' states.
        events: where it is told.
        now: the clock, UTC.
    """

    def __init__(
        self,
        maker: AgentMaker,
        database: Database,
        runs: RunStore,
        due_times: DueTimeStore,
        states: StateStore,
        *,
        events: EventBus,
        now: Callable[[], datetime],
    ) -> None:
        self._maker = maker
        self._database = database
        self._runs = runs
        self._due_times = due_times
        self._states = states
        self._events = events
        self._now = now

    @asynccontextmanager
    async def alone(self, run: RunUnderWay, config: AgentConfig) -> AsyncIterator[None]:
        """No other program runs the agent meanwhile, and the mark says that this run is under way.

        The mark of a run that comes by itself is on the disk before that begins. One by hand spares the
        flush: its mark outlives the program, but perhaps not a power cut.

        Raises:
            AgentError: the agent has just been quarantined for its crashes, and this run comes by itself.
            LockBusy: another program runs it for longer than a run may take.
        """
        lock = agent_lock(self._folder, run.agent, "run")
        async with lock.held(config.timeout.total_seconds()) as file:
            left = await asyncio.to_thread(read_mark, file)
            if left is not None and left.under_way:
                left, _ = await finished(self._settle(file, run.agent, left))
                if left is None and not run.by_hand:
                    await self._refuse_parked(run)
            crashes = 0 if left is None else left.crashes
            if left is not None and run.due is not None and left.due == run.due:
                run.attempt = left.attempt + 1
            mark = Mark(
                run_id=run.run_id,
                trigger=run.trigger,
                started_at=run.started_at,
                due=run.due,
                attempt=run.attempt,
                crashes=crashes,
            )
            try:
                await finished(self._write(file, run.agent, mark, durable=not run.by_hand))
                yield
            finally:
                await finished(self._clear(file, run.agent))

    async def recover(self, names: Iterable[str]) -> tuple[RunResult, ...]:
        """Record the runs that ended with the whole program, and park agents that made it crash too often.

        Args:
            names: the agents to look at.

        Returns:
            The interrupted runs that were not recorded before.

        Raises:
            StoreError: the database or a lock file cannot be used.
        """
        found: list[RunResult] = []
        for name in await asyncio.to_thread(_marked, self._folder, tuple(names)):
            try:
                async with agent_lock(self._folder, name, "run").held(0) as file:
                    mark = await asyncio.to_thread(read_mark, file)
                    if mark is not None and mark.under_way:
                        _, result = await finished(self._settle(file, name, mark))
                        found += [] if result is None else [result]
            except LockBusy:  # it is running, in another program
                continue
        return tuple(found)

    @property
    def _folder(self) -> Path:
        return self._database.path.parent

    async def _refuse_parked(self, run: RunUnderWay) -> None:
        status = await self._states.get(run.agent)
        if status.state is AgentState.QUARANTINED:
            msg = f"not run: {status.reason}; read the log, mend it, then: askfirst agents resume {run.agent}"
            raise AgentError(msg)

    async def _settle(self, file: int, agent: str, mark: Mark) -> tuple[Mark | None, RunResult | None]:
        """Find out what a run came to that a mark says is under way, and record it.

        Returns:
            The mark that stands there now, None when the agent begins anew; and the run if it was recorded.
        """
        known = await self._runs.find(mark.run_id)
        if known is not None and known.outcome is not RunOutcome.INTERRUPTED:  # committed, then cut off
            await self._write(file, agent, None)
            return None, None
        crashes = mark.crashes + 1
        result = None if known is not None else await self._interrupted(agent, mark)
        left = replace(mark, crashes=crashes, under_way=False) if crashes < MAX_CRASHES else None
        await self._record(agent, mark, result, parks=left is None)
        await self._write(file, agent, left)
        return left, result

    @staticmethod
    async def _write(file: int, agent: str, mark: Mark | None, *, durable: bool = False) -> None:
        try:
            await asyncio.to_thread(write_mark, file, mark, durable=durable)
        except OSError as error:
            msg = f"locks/{agent}.run in the data folder cannot be written: {error.strerror}; check the disk"
            raise StoreError(msg) from error

    async def _clear(self, file: int, agent: str) -> None:
        try:
            await self._write(file, agent, None)
        except StoreError as error:  # the run is recorded: if this start is found again, it is seen to be
            _log.warning("%s", error, extra={"agent": agent})

    async def _interrupted(self, agent: str, mark: Mark) -> RunResult:
        now = self._now()
        limit = (await self._config(agent)).timeout
        # When it ended is not known, but neither later than now nor later than its time limit allowed.
        longest = min(limit, max(now - mark.started_at, now - now))
        return RunResult(
            run_id=mark.run_id,
            agent=agent,
            trigger=mark.trigger,
            outcome=RunOutcome.INTERRUPTED,
            started_at=mark.started_at,
            finished_at=mark.started_at + longest,
            due=mark.due,
            attempt=mark.attempt,
            error="the whole program ended while it ran: by a crash, a power cut or a kill",
        )

    async def _record(self, agent: str, mark: Mark, result: RunResult | None, *, parks: bool) -> None:
        """One transaction: the interrupted run, and if that was one too many, what follows; then tell it."""
        digest = config_digest(await self._config(agent)) if parks else ""
        settled = self._given_up(agent, mark) if parks else ()
        async with self._database.write() as connection:
            before = status = await self._states.get(agent, connection)
            if result is not None:
                await self._runs.save(connection, result)
            if parks:
                await self._due_times.save(connection, settled)
                status = after_crashes(before, MAX_CRASHES, digest, self._now())
            if status != before:
                await self._states.save(connection, status)
        told: list[Event] = [DueTimesSettled(due_times=settled)] if settled else []
        if result is not None:
            told.append(RunFinished(result=result, status=status))
        if status.state is not before.state:
            announce(self._events, status, before.state)
        for event in told:
            self._events.publish(event)

    @staticmethod
    def _given_up(agent: str, mark: Mark) -> tuple[DueTime, ...]:
        if mark.due is None:
            return ()
        reason = crash_reason(MAX_CRASHES)
        return (DueTime(agent=agent, due=mark.due, last=mark.due, fate=Fate.SKIPPED, reason=reason),)

    async def _config(self, agent: str) -> AgentConfig:
        try:
            return await self._maker.config(agent)
        except AgentError:  # what it left behind is settled nevertheless
            return AgentConfig(name=agent)


def _marked(folder: Path, names: Iterable[str]) -> list[str]:
    """The agents whose marks say that a run is under way; a file that cannot be read says nothing."""
    found: list[str] = []
    for name in filter(NAME_PATTERN.fullmatch, names):
        try:
            file = os.open(folder / "locks" / f"{name}.run", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            mark = read_mark(file)
        finally:
            os.close(file)
        if mark is not None and mark.under_way:
            found.append(name)
    return found
