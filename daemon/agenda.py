"""Agenda: which agent is to be looked at next, over the due times of all agents. Pure: no clock, no loop.

It holds moments, not jobs: whoever has a timer looks at `earliest`, calls `look` until it says that nothing
is left for now, and starts what is `ready` when there is room for it. Whatever happens to the clock, only the
entry in front is looked at, so that a jump of sixty years costs as much as a minute.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from datetime import datetime, timedelta

from agents.schedule import Schedule
from daemon.clock import ClockChange
from daemon.events import DueTime
from daemon.timeline import Timeline
from daemon.turns import Hold, Turn

_Entry = tuple[datetime, int, Timeline]


class Agenda:
    """The due times of all agents.

    Attributes:
        common: what holds all agents, None for nothing.
    """

    def __init__(self) -> None:
        self.common: Hold | None = None
        self._timelines: dict[str, Timeline] = {}
        self._heap: list[_Entry] = []
        self._stamps: dict[str, int] = {}
        self._stamp = 0
        self._changed: dict[str, None] = {}
        self._loose: list[DueTime] = []

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._timelines))

    def __contains__(self, name: object) -> bool:
        return name in self._timelines

    def add(
        self,
        name: str,
        schedule: Schedule,
        now: datetime,
        *,
        last: datetime | None = None,
        newest: datetime | None = None,
        spread: timedelta = timedelta(),
    ) -> None:
        """Count an agent's due times from now on.

        Args:
            name: the agent.
            schedule: when it is due.
            now: the time of day.
            last: the newest due time before `now` that is settled, or else the last run's start; None for an
                agent that never ran.
            newest: the newest due time that is settled, later than `now` if a clock was wrong.
            spread: how long it waits where many would begin at the same moment.
        """
        self._timelines[name] = timeline = Timeline(name, schedule, spread)
        timeline.begin(now, last, newest)
        self._visit(timeline, now)

    def change(self, name: str, schedule: Schedule, now: datetime, spread: timedelta) -> None:
        """Go on with another schedule; what came and waits still does."""
        self._timelines[name].change(schedule, spread, now)
        self._visit(self._timelines[name], now)

    def remove(self, name: str) -> None:
        """Forget an agent; what waited is skipped."""
        timeline = self._timelines.pop(name)
        self._stamps.pop(name, None)
        self._loose += timeline.remove()
        self._changed[name] = None

    @property
    def earliest(self) -> datetime | None:
        """When to look next; None for not by the clock."""
        while self._heap and self._stamps.get(self._heap[0][2].name) != self._heap[0][1]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def look(self, now: datetime) -> bool:
        """Deal with the one entry that is due first; returns False when none is."""
        earliest = self.earliest
        if earliest is None or earliest > now:
            return False
        self._visit(heapq.heappop(self._heap)[2], now)
        return True

    def trigger(self, name: str, trigger: str, due: datetime | None, now: datetime) -> bool:
        """Something happened that makes an agent due.

        Args:
            name: the agent.
            trigger: what, as it stands in the run.
            due: the due time, None for now.
            now: the time of day.

        Returns:
            Whether it was taken up: there is such an agent, it is neither paused nor quarantined, and does
            not wait for this very due time already.
        """
        timeline = self._timelines.get(name)
        if timeline is None:
            return False
        taken = timeline.trigger(trigger, due, now)
        self._visit(timeline, now)
        return taken

    # starting runs

    def pop_changed(self) -> tuple[str, ...]:
        """The agents that may have become ready, or are it no longer, since the last call."""
        names = tuple(self._changed)
        self._changed.clear()
        return names

    def pop_loose(self) -> tuple[DueTime, ...]:
        """What is to be recorded although no run comes of it soon."""
        rows = tuple(self._loose)
        self._loose.clear()
        return rows

    def rank(self, name: str) -> tuple[int, datetime] | None:
        """The place of an agent that is ready among the others, the lowest first; None if it is not ready."""
        timeline = self._timelines.get(name)
        return timeline.rank if timeline is not None and timeline.ready(self.common) else None

    def take(self, name: str, now: datetime) -> Turn | None:
        """The agent's run that begins now; None if there is nothing to run any more."""
        timeline = self._timelines.get(name)
        if timeline is None:
            return None
        turn = timeline.take(now, self.common)
        if turn is None:
            self._visit(timeline, now)
            self._changed.pop(name, None)  # it is looked at again, but not before something happens
        return turn

    def began(self, name: str) -> None:
        """A run that is no turn was asked for, by hand."""
        if name in self._timelines:
            self._timelines[name].busy += 1
            self._changed[name] = None

    def ended(self, name: str) -> bool:
        """A run ended, a turn or not; returns whether there is something to do about that now."""
        timeline = self._timelines.get(name)
        if timeline is None:
            return False
        timeline.busy = max(timeline.busy - 1, 0)
        if timeline.waits:
            self._changed[name] = None
        return timeline.waits or bool(self._loose)

    def put_back(self, turn: Turn) -> None:
        """A turn did not begin after all."""
        if turn.agent in self._timelines:
            self._timelines[turn.agent].put_back(turn)
            self._changed[turn.agent] = None

    def fail(self, turn: Turn) -> None:
        """A turn's run could not be recorded; its due times are, with the next one."""
        if turn.agent in self._timelines:
            self._timelines[turn.agent].fail(turn)

    def drop(self, turn: Turn) -> None:
        """A turn's due time had a fate already, and it was not run."""
        if turn.agent in self._timelines:
            self._timelines[turn.agent].drop(turn)
            self._collect(self._timelines[turn.agent])

    # holds

    def hold(self, name: str, kind: str, hold: Hold, now: datetime) -> None:
        """Keep an agent from running on schedule; one of the same kind takes the other's place."""
        timeline = self._timelines.get(name)
        if timeline is not None:
            timeline.holds[kind] = hold
            self._visit(timeline, now)

    def release(self, name: str, kind: str, now: datetime) -> None:
        """End a hold of that kind, if there is one."""
        timeline = self._timelines.get(name)
        if timeline is not None and kind in timeline.holds:
            timeline.release(kind, now)
            self._visit(timeline, now)

    def hold_all(self, hold: Hold) -> None:
        """Keep every agent from running on schedule."""
        self.common = hold
        self._changed.update(dict.fromkeys(self._timelines))

    def release_all(self, now: datetime) -> None:
        """End that; each agent catches up, spread out."""
        hold, self.common = self.common, None
        if hold is not None:
            self._look_at_all(now)

    def holds_of(self, name: str) -> dict[str, Hold]:
        """What holds an agent, by kind; quiet time and what holds all are not among it."""
        timeline = self._timelines.get(name)
        return {} if timeline is None else dict(timeline.holds)

    def next_due(self, name: str, now: datetime) -> datetime | None:
        """The agent's next due time by the clock."""
        timeline = self._timelines.get(name)
        return None if timeline is None else timeline.next_due(now)

    def next_run(self, name: str, now: datetime) -> datetime | None:
        """When the agent is run at the earliest, what holds it counted in."""
        timeline = self._timelines.get(name)
        return None if timeline is None else timeline.next_run(now, self.common)

    # time itself

    def clock_changed(self, change: ClockChange, now: datetime) -> None:
        """The clock was set, or the machine slept."""
        for timeline in self._timelines.values():
            timeline.clock_changed(change.step, change.slept, now)
        self._look_at_all(now)

    def close(self) -> tuple[DueTime, ...]:
        """What is still to be recorded when the program ends."""
        for timeline in self._timelines.values():
            self._loose += timeline.close()
        return self.pop_loose()

    def _look_at_all(self, now: datetime) -> None:
        """Each of them is looked at, one by one by `look`, since thousands take their time."""
        first = self._stamp + 1
        self._heap = [(now, stamp, each) for stamp, each in enumerate(self._timelines.values(), first)]
        self._stamps = {timeline.name: stamp for _, stamp, timeline in self._heap}
        self._stamp += len(self._heap)  # sorted as it is, the moments being the same

    def _visit(self, timeline: Timeline, now: datetime) -> None:
        again = timeline.visit(now, self.common)
        self._collect(timeline)
        self._changed[timeline.name] = None
        self._stamp += 1
        self._stamps[timeline.name] = self._stamp
        if again is not None:
            heapq.heappush(self._heap, (again, self._stamp, timeline))
        if len(self._heap) > 2 * len(self._timelines) + 64:  # entries that were overtaken
            self._heap = [entry for entry in self._heap if self._stamps.get(entry[2].name) == entry[1]]
            heapq.heapify(self._heap)

    def _collect(self, timeline: Timeline) -> None:
        if timeline.loose:
            self._loose += timeline.pop_fates()
