"""Timeline: the due times of one agent: what is to come, what came and waits, what became of it. Pure.

Each due time gets one fate. It runs; or a later one's run stands for it (coalesced); or the program does not
want it (skipped); or it passed while the program could do nothing, and is not caught up (missed).
"""

from __future__ import annotations

import hashlib
from collections import deque
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from agents.durations import format_duration
from agents.schedule import Dues, Every, Schedule
from daemon.clock import first_due
from daemon.events import DueTime, Fate
from daemon.turns import ASLEEP, CLOCK_SET, OFF, QUIET, STOOD_STILL, TICK, Cause, Hold, Turn

ON_TIME = timedelta(seconds=60)
"""A due time that is seen so late is still on time: the program was busy, it did not stand still."""

LONGEST_INTERVAL = timedelta(days=36_500)
"""An agent that is due less often is run this often; the calendar of computers ends with the year 9999."""

MOST_CAUGHT_UP = 100
"""With `catch_up = "all"` so many due times are run one after another; older ones are coalesced."""

RUNNING = "its run before was still under way"
OVERTAKEN = "a later one came before it could begin"
UNRECORDED = "its run could not be recorded"
STOPPED = "the program was stopped before it could begin"
REMOVED = "the agent was taken out of the configuration before it could begin"


@dataclass(slots=True)
class _Arrival:
    """A due time that came and waits to begin; late is what comes after `start`."""

    due: datetime
    start: datetime
    trigger: str
    doubtful: bool = False
    movable: bool = False
    missed: bool = False


@dataclass(slots=True, eq=False)
class Timeline:
    """One agent's due times.

    Attributes:
        name: the agent.
        schedule: when it is due.
        spread: how long it waits where many would begin at the same moment.
        due: its next due time by the clock, None when it has none.
        start: when that one is to begin: later by its jitter.
        busy: how many of its runs are under way or were asked for by hand.
        holds: what holds it, by kind.
        newest: the newest due time that ever was dealt with; a doubt begins there.
        loose: whether there are fates that no run of the near future records.
    """

    name: str
    schedule: Schedule
    spread: timedelta = timedelta()
    due: datetime | None = None
    start: datetime | None = None
    busy: int = 0
    holds: dict[str, Hold] = field(default_factory=dict)
    newest: datetime | None = None
    loose: bool = False
    _every: timedelta | None = None
    _base: datetime = datetime.min.replace(tzinfo=UTC)  # noqa: RUF009 - a constant
    _behind: bool = False  # it began at a time of day before what was settled already
    _cause: Cause | None = None
    _delayed: datetime | None = None
    _eventful: bool = False
    _waiting: deque[_Arrival] = field(default_factory=deque)
    _older: list[DueTime] = field(default_factory=list)
    _fates: list[DueTime] = field(default_factory=list)

    def begin(self, now: datetime, last: datetime | None, newest: datetime | None) -> None:
        """Count due times from now on.

        Args:
            now: the time of day.
            last: the newest due time before `now` that is settled, or else the last run's start; None for an
                agent that never ran.
            newest: the newest due time that is settled, later than now if a clock was wrong.
        """
        self.newest = newest if last is None or newest is None else max(last, newest)
        if self.newest is None:
            self.newest = last
        self._behind = self.newest is not None and self.newest > now
        self._adopt(self.schedule)
        self._base = now if last is None else min(last, now)
        if self._every is None:
            self._plan(self.schedule.due_after(self._base, self._base))
        elif last is not None and last + self._every <= now:
            self._plan(last + self._every)
        else:
            self._count_from_start(now, last if last is not None else newest)
        if self.start is not None and self.start <= now:
            self._cause = OFF

    def _adopt(self, schedule: Schedule) -> None:
        every = schedule.interval
        if every is not None and every > LONGEST_INTERVAL:
            every = LONGEST_INTERVAL
            schedule = replace(schedule, timed=(Every(every),))
        self.schedule, self._every = schedule, every

    def _count_from_start(self, now: datetime, last: datetime | None) -> None:
        if self._every is not None:
            due = first_due(now, self._every, last, self.spread)
            self._base = due - self._every
            self._plan(due, jitter=last is not None)

    def change(self, schedule: Schedule, spread: timedelta, now: datetime) -> None:
        """Go on with another schedule; the count of an interval goes on from its last due time."""
        before = self.schedule.timed
        self._adopt(schedule)
        self.spread = spread
        if self.schedule.timed == before:
            return
        if self._every is None:
            self._base = now
            self._plan(schedule.due_after(now, now))
        else:
            self._count_from_start(now, self.newest)

    # looking at it

    def visit(self, now: datetime, common: Hold | None = None) -> datetime | None:
        """Deal with what has come due; returns when to look again, None for not by the clock.

        Args:
            now: the time of day.
            common: what holds all agents, None for nothing.
        """
        self._end_holds(now)
        holds = self.all_holds(common)
        if holds:
            self._cause = self._cause or Cause(holds[0].reason)
            ends = [hold.until for hold in holds if hold.until is not None]
            return max(ends) if len(ends) == len(holds) else None
        if not self._waiting and (self.start is None or self.start > now):
            self._cause = self._delayed = None
            return self.start
        quiet = self.schedule.quiet_until(now)
        if quiet is not None:
            self._cause = self._cause or QUIET
            return quiet
        return self._come(now)

    def _come(self, now: datetime) -> datetime | None:
        if self._cause is None and self.start is not None and self.start + ON_TIME < now:
            self._cause = STOOD_STILL
        if self._cause is not None and self.schedule.catch_up != "skip":
            if self._delayed is None:
                self._delayed = now + self.spread
            if self._delayed > now:
                return self._delayed
        cause, self._cause, self._delayed = self._cause, None, None
        if cause is not None and self.schedule.catch_up == "skip":
            self._give_up(_gone(cause), cause.reason)
        dues = self._passed(now)
        if dues is not None:
            self._receive(dues, cause, now)
        return self.start

    def _receive(self, dues: Dues, cause: Cause | None, now: datetime) -> None:
        policy = self.schedule.catch_up
        if self.busy and policy != "all" and not self._waiting:
            self._settle(dues, Fate.SKIPPED, RUNNING)
        elif cause is not None and policy == "skip":
            self._settle(dues, _gone(cause), cause.reason)
            self.loose = True
        elif cause is not None and policy == "once" and self._is_long_past(dues.last, now):
            self._begin_anew(dues, cause, now)
        else:
            self._join(dues, cause, "schedule")

    def _is_long_past(self, due: datetime, now: datetime) -> bool:
        """Whether the next due time of an interval comes sooner than that one is past."""
        return self._every is not None and not self._waiting and now - due >= self._every / 2

    def _begin_anew(self, dues: Dues, cause: Cause, now: datetime) -> None:
        """An interval that was missed is due now, and counts from here: no second run soon after this one."""
        limit = self.schedule.max_lateness
        if limit is not None and now - dues.last > limit:
            self._settle(dues, _gone(cause), _too_late(limit))
            self.loose = True
            return
        self._coalesce(dues, cause.reason)
        self._join(Dues(now, now), None, "schedule")
        self._base = now
        self._plan(self.schedule.due_after(now, now), jitter=False)

    def _passed(self, now: datetime) -> Dues | None:
        """The due times that have come since the last look; the next one is planned."""
        first = self.due
        if first is None or self.start is None or self.start > now:
            return None
        following = self.schedule.due_after(first, first)
        dues: Dues | None = Dues(first, first)
        if following is not None and following <= now:
            dues = self.schedule.between(self._base, now) or dues
            following = self.schedule.due_after(dues.last, now) if dues else following
            if dues and dues.count > 1 and dues.last + self._jitter(dues.last) > now:
                following = dues.last
                dues = self.schedule.between(self._base, following - TICK)
        self._base = first if dues is None else dues.last
        self._behind = False
        self._plan(following)
        return dues

    def _plan(self, due: datetime | None, *, jitter: bool = True) -> None:
        self.due = self.start = due
        if due is not None and jitter and self.schedule.jitter:
            self.start = due + self._jitter(due)

    def _jitter(self, due: datetime) -> timedelta:
        """How late that due time is on purpose: always by the same share, and before the next one."""
        longest = self.schedule.jitter
        if not longest:
            return longest
        following = self.schedule.due_after(due, due)
        if following is not None:
            longest = min(longest, following - due)
        digest = hashlib.sha256(f"{self.name} {due.isoformat()}".encode()).digest()
        return longest * (int.from_bytes(digest[:4]) / 2**32)

    # what came

    def trigger(self, trigger: str, due: datetime | None, now: datetime) -> bool:
        """An event makes it due; returns whether a run will come of it, unless something stops that."""
        dropping = next((hold for hold in self.holds.values() if hold.drops), None)
        moment = now if due is None else due
        if dropping is not None:
            self._settle(Dues(moment, moment), Fate.SKIPPED, dropping.reason)
            return False
        if any(arrival.due == due for arrival in self._waiting):
            return False
        if due is None and self.newest is not None and moment <= self.newest < moment + ON_TIME:
            moment = self.newest + TICK  # two at the same moment are two
        self._eventful = True
        self._join(Dues(moment, moment), None, trigger, movable=due is None)
        return True

    def ready(self, common: Hold | None = None) -> bool:
        """Whether a run may begin as soon as there is a free place."""
        return bool(self._waiting) and not self.busy and self._delayed is None and not self.all_holds(common)

    @property
    def waits(self) -> bool:
        """Whether something came that waits to begin."""
        return bool(self._waiting)

    @property
    def rank(self) -> tuple[int, datetime]:
        """Its place among those that are ready: the lowest goes first."""
        return -self.schedule.priority, self._waiting[0].due

    def take(self, now: datetime, common: Hold | None = None) -> Turn | None:
        """The run that begins now; None when nothing of what waited may still run."""
        limit = self.schedule.max_lateness
        while self.ready(common) and self.schedule.quiet_until(now) is None:
            arrival = self._waiting.popleft()
            if limit is not None and now - arrival.start > limit:
                fate = Fate.MISSED if arrival.missed else Fate.SKIPPED
                self._end_older(fate, _too_late(limit))
                self._settle(Dues(arrival.due, arrival.due), fate, _too_late(limit))
                self.loose = True
                continue
            settled = (*self._fates, *self._older)
            self._fates.clear()
            self._older.clear()
            self._eventful = self._eventful and bool(self._waiting)
            self.busy += 1
            return Turn(
                agent=self.name,
                trigger=arrival.trigger,
                due=arrival.due,
                settled=settled,
                doubtful=arrival.doubtful,
                movable=arrival.movable,
            )
        return None

    def put_back(self, turn: Turn) -> None:
        """The run did not begin after all: what it was for waits again."""
        arrival = _Arrival(turn.due, turn.due, turn.trigger, turn.doubtful, turn.movable)
        self._waiting.appendleft(arrival)
        self._eventful = self._eventful or turn.trigger != "schedule"
        self._older[:0] = [each for each in turn.settled if each.fate is Fate.COALESCED]
        self._fates[:0] = [each for each in turn.settled if each.fate is not Fate.COALESCED]

    def fail(self, turn: Turn) -> None:
        """The run could not be recorded: as far as anybody can tell its due times did not lead to one."""
        due = DueTime(agent=self.name, due=turn.due, last=turn.due, fate=Fate.COALESCED)
        rows: list[DueTime] = []
        for each in (*turn.settled, due, *self._fates):
            lost = each.fate is Fate.COALESCED
            _append(rows, replace(each, fate=Fate.SKIPPED, reason=UNRECORDED) if lost else each)
        self._fates = rows

    def drop(self, turn: Turn) -> None:
        """Its due time has a fate already; what was to be recorded with it is recorded by itself."""
        reason = "the clock was set back over it"
        self._fates[:0] = [
            replace(each, fate=Fate.SKIPPED, reason=reason) if each.fate is Fate.COALESCED else each
            for each in turn.settled
        ]
        self.loose = True

    def _join(self, dues: Dues, cause: Cause | None, trigger: str, *, movable: bool = False) -> None:
        """They wait to begin: the newest, or with "all" each of them."""
        every_one = self.schedule.catch_up == "all"
        reason = OVERTAKEN if cause is None else cause.reason
        most = MOST_CAUGHT_UP if every_one else 1
        older, moments = self._split(dues, most)
        self._fold(most - len(moments), OVERTAKEN if every_one else reason)
        if older is not None:
            self._coalesce(older, reason)
        for moment in moments:
            start = moment + self._jitter(moment) if trigger == "schedule" else moment
            doubtful = self.newest is not None and moment <= self.newest
            missed = cause is not None and cause.missed
            by_interval = trigger == "schedule" and self._every is not None
            self._waiting.append(_Arrival(moment, start, trigger, doubtful, movable or by_interval, missed))
            self.newest = moment if self.newest is None else max(self.newest, moment)

    def _fold(self, most: int, reason: str) -> None:
        """Coalesce the oldest of those that wait until at most so many are left."""
        while len(self._waiting) > most:
            oldest = self._waiting.popleft()
            self._coalesce(Dues(oldest.due, oldest.due), reason)

    def _split(self, dues: Dues, most: int) -> tuple[Dues | None, list[datetime]]:
        """Those that are older than the newest `most`, and these."""
        if dues.count == 1:
            return None, [dues.last]
        if self._every is not None:
            kept = min(most, dues.count)
            moments = [dues.last - n * self._every for n in reversed(range(kept))]
            older = Dues(dues.first, moments[0] - self._every, dues.count - kept)
            return (older if older.count else None), moments
        moments = self._newest_of(dues, most)
        found = self.schedule.between(dues.first - TICK, moments[0] - TICK)
        count = dues.count - len(moments)
        return (None if found is None else replace(found, count=max(count, found.count))), moments

    def _newest_of(self, dues: Dues, most: int) -> list[datetime]:
        if most == 1:
            return [dues.last]
        span = timedelta(minutes=1)
        while True:  # looks back further and further, since there may be millions of them
            begin = max(dues.first, dues.last - span) - TICK
            found = self.schedule.between(begin, dues.last)
            if begin < dues.first or (found is not None and found.count >= most):
                break
            span *= 4
        moments: deque[datetime] = deque(maxlen=most)
        moment = self.schedule.due_after(begin, begin)
        while moment is not None and moment <= dues.last:
            moments.append(moment)
            moment = self.schedule.due_after(moment, moment)
        return list(moments)

    # what became of them

    def _settle(self, dues: Dues, fate: Fate, reason: str) -> None:
        _append(self._fates, self._due_time(dues, fate, reason))
        self.newest = dues.last if self.newest is None else max(self.newest, dues.last)

    def _coalesce(self, dues: Dues, reason: str) -> None:
        _append(self._older, self._due_time(dues, Fate.COALESCED, reason))
        self.newest = dues.last if self.newest is None else max(self.newest, dues.last)

    def _due_time(self, dues: Dues, fate: Fate, reason: str) -> DueTime:
        return DueTime(
            agent=self.name, due=dues.first, last=dues.last, count=dues.count, fate=fate, reason=reason
        )

    def _end_older(self, fate: Fate, reason: str) -> None:
        for each in self._older:
            _append(self._fates, replace(each, fate=fate, reason=reason))
        self._older.clear()

    def _give_up(self, fate: Fate, reason: str) -> None:
        """Nothing of what waits is run."""
        if not self._waiting and not self._older:
            return
        self._end_older(fate, reason)
        for arrival in self._waiting:
            _append(self._fates, self._due_time(Dues(arrival.due, arrival.due), fate, reason))
        self._waiting.clear()
        self._eventful = False
        self.loose = True

    def pop_fates(self) -> tuple[DueTime, ...]:
        """What is to be recorded, handed over."""
        fates = tuple(self._fates)
        self._fates.clear()
        self.loose = False
        return fates

    def remove(self) -> tuple[DueTime, ...]:
        """The agent is not run any more: nothing of what waits is."""
        self._give_up(Fate.SKIPPED, REMOVED)
        return self.pop_fates()

    def close(self) -> tuple[DueTime, ...]:
        """The program ends: what waits by the clock is caught up at the next start, but for events."""
        if self._eventful:
            self._give_up(Fate.SKIPPED, STOPPED)
        return self.pop_fates()

    # what holds it

    def all_holds(self, common: Hold | None = None) -> tuple[Hold, ...]:
        """What holds it now; quiet time is not among it."""
        if common is None and not self.holds:
            return ()
        return (*self.holds.values(), *([common] if common is not None else []))

    def release(self, kind: str, now: datetime) -> None:
        """End a hold of that kind, if there is one."""
        hold = self.holds.pop(kind, None)
        if hold is None:
            return
        if not hold.drops:
            self._cause = self._cause or Cause(hold.reason)
            return
        self._give_up(Fate.SKIPPED, hold.reason)
        dues = self._passed(now)
        if dues is not None:
            self._settle(dues, Fate.SKIPPED, hold.reason)
            self.loose = True
        self._cause = self._delayed = None

    def _end_holds(self, now: datetime) -> None:
        if self.holds:
            for kind, hold in tuple(self.holds.items()):
                if hold.until is not None and hold.until <= now:
                    self.release(kind, now)

    def held_until(self, kind: str) -> datetime | None:
        """When the hold of that kind ends by itself."""
        hold = self.holds.get(kind)
        return None if hold is None else hold.until

    def next_due(self, now: datetime) -> datetime | None:
        """Its next due time by the clock, None when it has none."""
        if self.due is None or self.due > now:
            return self.due
        if self._delayed is not None and self._every is not None:
            return self._delayed
        return self.schedule.due_after(self._base, now)

    def next_run(self, now: datetime, common: Hold | None = None) -> datetime | None:
        """When it is run at the earliest, what holds it counted in; None when only a person can say."""
        moment = now if self._waiting else self.start
        if self._delayed is not None:
            moment = self._delayed
        if moment is None:
            return None
        for hold in self.all_holds(common):
            if hold.until is None:
                return None
            moment = max(moment, hold.until)
        return self.schedule.quiet_until(moment) or moment

    # when time itself changes

    def clock_changed(self, step: timedelta, slept: timedelta, now: datetime) -> None:
        """Keep an interval's remaining time, and count what follows the calendar from the new time of day."""
        if step:
            self.holds = {
                kind: hold if hold.until is None else replace(hold, until=shifted(hold.until, step, now))
                for kind, hold in self.holds.items()
            }
            if self._delayed is not None:
                self._delayed = shifted(self._delayed, step, now)
            if self._every is not None:
                self._shift(self._every, step, now)
            else:
                self._recount(step, now)
        if slept:
            self._cause = self._cause or ASLEEP

    def _shift(self, every: timedelta, step: timedelta, now: datetime) -> None:
        if self.due is not None and self.start is not None:
            start = shifted(self.start, step, now)
            self.due, self.start = start - (self.start - self.due), start
            self._base = self.due - every
        for arrival in self._waiting:
            if arrival.trigger == "schedule":
                arrival.due = arrival.start = shifted(arrival.due, step, now)
        self._older = [
            replace(each, due=shifted(each.due, step, now), last=shifted(each.last, step, now))
            for each in self._older
        ]
        if self._behind and self.newest is not None and self.due is not None and self.newest <= now:
            # It began with a wrong clock (in 1970, say): only now is it known how long ago the last one was.
            self._behind = False
            due = first_due(now, every, self.newest, self.spread)
            if due < self.due:
                self._base = due - every
                self._plan(due)

    def _recount(self, step: timedelta, now: datetime) -> None:
        if self._behind and self.newest is not None and self.newest <= now:
            self._behind = False
            self._base = max(self._base, self.newest)
        self._base = min(self._base, now)
        self._plan(self.schedule.due_after(self._base, self._base))
        if step > timedelta() and self.start is not None and self.start <= now:
            self._cause = self._cause or CLOCK_SET


def shifted(moment: datetime, step: timedelta, now: datetime) -> datetime:
    """`moment` by the clock that was set by `step`; now if that is beyond the years 1 to 9999."""
    try:
        return moment + step
    except OverflowError:
        return now


def _gone(cause: Cause) -> Fate:
    return Fate.MISSED if cause.missed else Fate.SKIPPED


def _too_late(limit: timedelta) -> str:
    return f"it was later than its max_lateness of {format_duration(limit)}"


def _append(rows: list[DueTime], row: DueTime) -> None:
    """Consecutive ones that share their fate share a row."""
    before = rows[-1] if rows else None
    if before is not None and (before.fate, before.reason) == (row.fate, row.reason):
        first, last = min(before.due, row.due), max(before.last, row.last)
        rows[-1] = replace(before, due=first, last=last, count=before.count + row.count)
    else:
        rows.append(row)
