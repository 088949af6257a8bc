"""A world without clocks and loops: an agenda, a book of fates, and a time of day that a test moves."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from agents.schedule import Schedule
from daemon.agenda import Agenda
from daemon.clock import ClockChange
from daemon.events import DueTime, Fate
from daemon.turns import Hold, Turn

START = datetime(2026, 11, 2, tzinfo=UTC)


class World:
    """Drives an agenda as the daemon does, and keeps what became of each due time as the database does.

    Args:
        schedules: by agent.
        places: how many runs may be under way at once.
        spread: how long each agent waits where many would begin at once.
    """

    def __init__(
        self,
        schedules: dict[str, Schedule],
        *,
        places: int = 100,
        spread: timedelta = timedelta(),
        now: datetime = START,
    ) -> None:
        self.schedules = schedules
        self.places = places
        self.spread = spread
        self.now = now
        self.rows: dict[tuple[str, datetime], DueTime] = {}
        self.runs: list[Turn] = []
        self.began: list[datetime] = []
        self.under_way: dict[str, Turn] = {}
        self.looks = 0
        self._ready: dict[str, tuple[int, datetime]] = {}
        self.start()

    def start(self) -> None:
        """The program starts, with what the book says."""
        self.agenda = Agenda()
        self._ready.clear()
        for name, schedule in self.schedules.items():
            mine = [row for row in self.rows.values() if row.agent == name]
            past = [row.last if row.last <= self.now else row.due for row in mine if row.due <= self.now]
            newest = max((row.last for row in mine), default=None)
            last = max(past, default=None)
            self.agenda.add(name, schedule, self.now, last=last, newest=newest, spread=self.spread)
        self.look()

    def stop(self) -> None:
        """The program stops: what is under way is recorded as it is cancelled."""
        self.end_all()
        self.record(self.agenda.close())

    def look(self) -> None:
        """What happens at a wake-up."""
        while self.agenda.look(self.now):
            self.looks += 1
        for name in self.agenda.pop_changed():
            rank = self.agenda.rank(name)
            self._ready.pop(name, None)
            if rank is not None:
                self._ready[name] = rank
        self.record(self.agenda.pop_loose())
        while self._ready and len(self.under_way) < self.places:
            name = min(self._ready, key=lambda each: self._ready[each])
            del self._ready[name]
            turn = self.agenda.take(name, self.now)
            if turn is None:
                continue
            while turn.doubtful and turn.movable and (turn.agent, turn.due) in self.rows:
                turn = turn.moved()
            if turn.doubtful and (turn.agent, turn.due) in self.rows:
                self.agenda.drop(turn)
                self.agenda.ended(name)
                continue
            self.under_way[name] = turn
            self.runs.append(turn)
            self.began.append(self.now)
        self.record(self.agenda.pop_loose())
        earliest = self.agenda.earliest
        assert earliest is None or earliest > self.now, "it would be woken up again at once"

    def pass_time(self, by: timedelta, run: timedelta | None = timedelta()) -> None:
        """Time passes, with a wake-up whenever one was asked for.

        Args:
            by: how long.
            run: how long each run takes; None for runs that a test ends itself.
        """
        until = self.now + by
        if run is not None:
            self._end_in(run)
        while (earliest := self._next(run)) is not None and earliest <= until:
            self.now = max(self.now, earliest)
            if run is not None:
                self._end_in(run)
            self.look()
            if run is not None:
                self._end_in(run)
        self.now = until
        self.look()
        if run is not None:
            self._end_in(run)

    def _next(self, run: timedelta | None) -> datetime | None:
        moments = [self.agenda.earliest]
        if run is not None:
            moments += [self._ends(name, run) for name in self.under_way]
        return min((moment for moment in moments if moment is not None), default=None)

    def _ends(self, name: str, run: timedelta) -> datetime:
        turn = self.under_way[name]
        return self.began[self.runs.index(turn)] + run

    def _end_in(self, run: timedelta) -> None:
        for name in tuple(self.under_way):
            if self._ends(name, run) <= self.now:
                self.end(name)

    def oversleep(self, by: timedelta) -> None:
        """Time passes without a wake-up: the program was stopped by a signal, or is very busy."""
        self.now += by

    def sleep(self, by: timedelta) -> None:
        """The machine sleeps, and the clocks are compared when it wakes up."""
        self.now += by
        self.agenda.clock_changed(ClockChange(step=timedelta(), slept=by), self.now)
        self.look()

    def set_clock(self, by: timedelta) -> None:
        """Somebody sets the clock, which is noticed at once."""
        self.now += by
        self.agenda.clock_changed(ClockChange(step=by, slept=timedelta()), self.now)
        self.look()

    def hold(self, name: str, hold: Hold, kind: str = "state") -> None:
        self.agenda.hold(name, kind, hold, self.now)
        self.look()

    def release(self, name: str, kind: str = "state") -> None:
        self.agenda.release(name, kind, self.now)
        self.look()

    def trigger(self, name: str, due: datetime | None = None) -> bool:
        taken = self.agenda.trigger(name, "webhook", due, self.now)
        self.look()
        return taken

    def end(self, name: str) -> None:
        """A run ends and is recorded with what it settles."""
        turn = self.under_way.pop(name)
        run_id = f"run-{self.runs.index(turn)}"
        own = DueTime(agent=name, due=turn.due, last=turn.due, fate=Fate.RUN, run_id=run_id)
        self.record(
            [replace(row, run_id=run_id if row.fate is Fate.COALESCED else None) for row in turn.settled]
        )
        before = self.rows.get((name, turn.due))
        assert before is None or before.fate is not Fate.RUN, f"{name} ran twice for {turn.due}"
        self.record([own])
        self.agenda.ended(name)
        self.look()

    def end_all(self) -> None:
        while self.under_way:
            self.end(next(iter(self.under_way)))

    def record(self, rows: tuple[DueTime, ...] | list[DueTime]) -> None:
        """As the database: a due time that has a fate keeps it."""
        for row in rows:
            self.rows.setdefault((row.agent, row.due), row)

    def told(self, name: str = "a") -> list[tuple[str, str, int, str, str]]:
        """The book of one agent: the first and the last due time of each row, count, fate, why."""
        mine = sorted((row for row in self.rows.values() if row.agent == name), key=lambda row: row.due)
        return [(clock(row.due), clock(row.last), row.count, row.fate.value, row.reason) for row in mine]


def clock(moment: datetime) -> str:
    """A moment as a test names it: "07:00", or "+2 07:00" two days after the start."""
    days = (moment - START) // timedelta(days=1)
    return (f"{days:+} " if days else "") + moment.strftime("%H:%M" if not moment.second else "%H:%M:%S")
