"""Timing: calls a coroutine function when names are due: the agenda, the crew and the clocks, put together.

It knows neither agents nor the database, and can be driven alone: by names, schedules and a function to call.
All it does is done in slices, between which the loop does its other work.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Protocol

from agents.schedule import Schedule
from daemon.agenda import Agenda
from daemon.clock import ClockWatch
from daemon.crew import Crew
from daemon.errors import DaemonError
from daemon.events import DueTime
from daemon.turns import Hold, Turn

_log = logging.getLogger(__name__)

SLICE_S = 0.003
"""So long it works without a break when many are due: the loop has other work, too."""

SETTLE_AGAIN_S = 30.0
"""So long after the database could not be written it is tried again."""


def utc_now() -> datetime:
    """The time of day."""
    return datetime.now(UTC)


class WakeUp(Protocol):
    """Something that calls `Timing.look` at a moment."""

    def at(self, moment: datetime | None) -> None:
        """Call it then, in place of what was said before; None for not by the clock."""


Call = Callable[[Turn], Coroutine[Any, Any, Any]]
Settle = Callable[[Sequence[DueTime]], Awaitable[None]]
Known = Callable[[str, datetime], Awaitable[bool]]


class Timing:
    """Calls `call` with each turn when it is due and there is a place for it.

    Args:
        call: what a run is.
        wake: the timer.
        crew: how many run at once.
        settle: records due times that lead to no run; None forgets them.
        known: whether a due time has a fate already; None for never. Asked only after the clock was set back.
        clock: compares the clocks.
        now: the time of day.

    Attributes:
        agenda: the due times.
        crew: the runs.
        on_clock_change: told when the clock was set or the machine slept.
        looked_at: when it last looked for what is due, seconds of `time.monotonic`.
        slices: how often it gave the loop back its time before it was done.
        clock_changes: how often the clock was set or the machine slept.
    """

    def __init__(
        self,
        call: Call,
        wake: WakeUp,
        crew: Crew,
        *,
        settle: Settle | None = None,
        known: Known | None = None,
        clock: ClockWatch | None = None,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self.agenda = Agenda()
        self.crew = crew
        self.on_clock_change: Callable[[], None] | None = None
        self.looked_at = time.monotonic()
        self.slices = self.clock_changes = 0
        self._call = call
        self._wake = wake
        self._settle = settle
        self._known = known
        self._clock = ClockWatch() if clock is None else clock
        self._now = now
        self._turns: dict[str, Turn] = {}
        self._soon: asyncio.Handle | None = None
        self._settling: asyncio.Task[None] | None = None
        self._unsettled: list[DueTime] = []
        self._going = False
        self._crew_told = crew.on_end
        crew.on_end = self._ended

    def add(
        self,
        name: str,
        schedule: Schedule,
        *,
        last: datetime | None = None,
        newest: datetime | None = None,
        spread: timedelta = timedelta(),
    ) -> None:
        """Call for `name` by that schedule; see `Agenda.add`."""
        self.agenda.add(name, schedule, self._now(), last=last, newest=newest, spread=spread)
        self.look_soon()

    def change(self, name: str, schedule: Schedule, spread: timedelta) -> None:
        """Go on with another schedule."""
        self.agenda.change(name, schedule, self._now(), spread)
        self.look_soon()

    def remove(self, name: str) -> None:
        """Call for `name` no more."""
        self.agenda.remove(name)
        self.look_soon()

    def trigger(self, name: str, trigger: str, due: datetime | None = None) -> bool:
        """Something happened that makes `name` due; see `Agenda.trigger`."""
        taken = self.agenda.trigger(name, trigger, due, self._now())
        self.look_soon()
        return taken

    def hold(self, name: str, kind: str, hold: Hold) -> None:
        """Keep `name` from running on schedule."""
        self.agenda.hold(name, kind, hold, self._now())
        self.look_soon()

    def release(self, name: str, kind: str) -> None:
        """End that."""
        self.agenda.release(name, kind, self._now())
        self.look_soon()

    def hold_all(self, hold: Hold) -> None:
        """Keep every name from running on schedule."""
        self.agenda.hold_all(hold)
        self.look_soon()

    def release_all(self) -> None:
        """End that."""
        self.agenda.release_all(self._now())
        self.look_soon()

    def by_hand(self, name: str, work: Callable[[], Coroutine[Any, Any, Any]]) -> asyncio.Task[Any]:
        """Run something else for `name` now; its due times wait, or are skipped, meanwhile."""
        self.agenda.began(name)
        return self.crew.run(name, work)

    def next_due(self, name: str) -> datetime | None:
        """The next due time by the clock."""
        return self.agenda.next_due(name, self._now())

    def next_run(self, name: str) -> datetime | None:
        """When it is called at the earliest, what holds it counted in."""
        return self.agenda.next_run(name, self._now())

    def turn_of(self, name: str) -> Turn | None:
        """The turn that is under way."""
        return self._turns.get(name)

    # the loop

    def start(self) -> None:
        """Begin; a loop must be running."""
        self._going = True
        self._clock.look()
        self.look()

    def stop(self) -> None:
        """Begin no run any more."""
        self._going = False
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None

    async def aclose(self) -> None:
        """Record what is still to be recorded, in one transaction; the runs have to be ended before."""
        self.stop()
        self.crew.on_end = self._crew_told
        if self._settling is not None:
            self._settling.cancel()
            await asyncio.gather(self._settling, return_exceptions=True)
        self._unsettled += self.agenda.close()
        await self._write()

    def look_soon(self) -> None:
        """Look in the loop's next round; however often it is asked for, once."""
        if self._going and self._soon is None:
            self._soon = asyncio.get_running_loop().call_soon(self.look)

    def look(self) -> None:
        """Deal with what is due, as long as a slice allows; the rest in the loop's next round."""
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        self.looked_at = time.monotonic()
        if not self._going:
            return
        until = time.perf_counter() + SLICE_S
        now = self._look_at_clocks()
        more = self._look_at_agenda(now, until)
        more = self.crew.fill(self._begin, until) or more
        self._record_loose()
        if more:
            self.slices += 1
            self.look_soon()
        else:
            self._wake.at(self.agenda.earliest)

    def _look_at_clocks(self) -> datetime:
        change, now = self._clock.look(), self._now()
        if change is not None:
            self.clock_changes += 1
            seconds = {
                "step_seconds": change.step.total_seconds(),
                "slept_seconds": change.slept.total_seconds(),
            }
            _log.warning("the clock was set, or the machine slept", extra=seconds)
            self.agenda.clock_changed(change, now)
            if self.on_clock_change is not None:
                self.on_clock_change()
        return now

    def _look_at_agenda(self, now: datetime, until: float) -> bool:
        while self.agenda.look(now):
            if time.perf_counter() > until:
                break
        for name in self.agenda.pop_changed():
            rank = self.agenda.rank(name)
            if rank is None:
                self.crew.withdraw(name)
            else:
                self.crew.wait(name, rank)
        earliest = self.agenda.earliest
        return earliest is not None and earliest <= now

    def _begin(self, name: str) -> Callable[[], Coroutine[Any, Any, Any]] | None:
        turn = self.agenda.take(name, self._now())
        return None if turn is None else partial(self._run, turn)

    async def _run(self, turn: Turn) -> Any:
        self._turns[turn.agent] = turn
        try:
            if turn.doubtful and self._known is not None:
                while await self._known(turn.agent, turn.due):
                    if not turn.movable:
                        self.agenda.drop(turn)
                        return None
                    turn = self._turns[turn.agent] = turn.moved()
            return await self._call(turn)
        except Exception:  # raised again: whatever it is, the due time stays open
            self.agenda.fail(turn)
            raise
        finally:
            del self._turns[turn.agent]

    def _ended(self, name: str) -> None:
        waits = self.agenda.ended(name)
        if self._crew_told is not None:
            self._crew_told(name)
        if waits or self.crew.queued:
            self.look_soon()

    # what leads to no run

    def _record_loose(self) -> None:
        loose = self.agenda.pop_loose()
        if self._settle is None:
            return
        self._unsettled += loose
        if self._unsettled and (self._settling is None or self._settling.done()):
            self._settling = asyncio.create_task(self._record(), name="due times")
            self._settling.add_done_callback(self._recorded)

    async def _record(self) -> None:
        """Write what there is, and what has come meanwhile."""
        await asyncio.sleep(0)  # those that are found in the same slices go into the same transaction
        in_trouble = False
        while self._unsettled:
            try:
                await self._write()
            except DaemonError as error:
                if not in_trouble:
                    _log.warning("what became of due times cannot be recorded now: %s", error)
                in_trouble = True
                await asyncio.sleep(SETTLE_AGAIN_S)

    async def _write(self) -> None:
        rows = tuple(self._unsettled)
        if rows and self._settle is not None:
            await self._settle(rows)
            del self._unsettled[: len(rows)]

    def _recorded(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            _log.error("due times were not recorded", exc_info=task.exception())
