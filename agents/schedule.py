"""When an agent is due: every so often, by cron, at a moment, or because something happened. Pure.

A due time is a moment, UTC. What becomes of it (run, coalesced, skipped, missed) is the daemon's business.
Cron expressions have the five fields of crontab(5) and follow Debian's cron through daylight saving: what
falls into the hour that is left out comes right after it, what falls into the hour that comes twice comes
once, and with `*` for minute or hour it comes as often as the clock on the wall shows it. cronsim lists
the times on the wall; which moments these are is decided here, as it is only right for shifts of whole hours.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Literal, Protocol

from agents.durations import format_duration

CatchUp = Literal["once", "all", "skip"]
"""What to do about due times that passed while the agent could not run: one run for all, all, none."""

MOST_COUNTED = 1_000
"""Due times of a cron expression between two moments are counted up to here; the newest is always found."""

QUIET_FORMS = 'a time span such as "22:00-07:00", with days in front if need be: "sat,sun 00:00-24:00"'

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_LONGEST_SHIFT = timedelta(hours=3)
"""Nowhere is the clock set by more for daylight saving."""

_LOOK_BACK = (timedelta(hours=1), timedelta(days=1), timedelta(days=32), timedelta(days=400))
_MIDNIGHT = 24 * 60
_WEEK_DAYS = len(_DAYS) + 1


@dataclass(frozen=True, slots=True)
class Dues:
    """Consecutive due times.

    Attributes:
        first: the oldest.
        last: the newest.
        count: how many; of a cron expression `MOST_COUNTED` may stand for more.
    """

    first: datetime
    last: datetime
    count: int = 1


class Timed(Protocol):
    """Something that is due by the clock."""

    def due_after(self, previous: datetime, now: datetime) -> datetime | None:
        """The first due time after `now`, None when there is none any more.

        Args:
            previous: a due time of before; an interval counts from it.
            now: the time of day.
        """

    def between(self, previous: datetime, now: datetime) -> Dues | None:
        """The due times after `previous` and not after `now`, None when there is none."""


@dataclass(frozen=True, slots=True)
class Every:
    """Due at each interval; how many intervals have passed is computed, not listed.

    Attributes:
        interval: the time from one due time to the next.
    """

    interval: timedelta

    def due_after(self, previous: datetime, now: datetime) -> datetime | None:
        """`previous` and as many whole intervals as lead beyond `now`."""
        passed = max((now - previous) // self.interval, 0)
        try:
            return previous + (passed + 1) * self.interval
        except OverflowError:  # beyond the year 9999
            return None

    def between(self, previous: datetime, now: datetime) -> Dues | None:
        """The whole intervals from `previous` to `now`."""
        count = (now - previous) // self.interval
        if count < 1:
            return None
        return Dues(previous + self.interval, previous + count * self.interval, count)

    def __str__(self) -> str:
        return f"every {format_duration(self.interval)}"


@dataclass(frozen=True, slots=True)
class Cron:
    """Due by the calendar.

    Attributes:
        expression: the five fields of crontab(5).
        zone: the time zone that they are meant in.
    """

    expression: str
    zone: tzinfo

    def due_after(self, previous: datetime, now: datetime) -> datetime | None:
        """The first match after `now`; `previous` does not matter."""
        del previous
        return next(self._from(now), None)

    def between(self, previous: datetime, now: datetime) -> Dues | None:
        """The matches up to `now`, looked for up to `MOST_COUNTED`."""
        first = last = None
        count = 0
        for due in self._from(previous):
            if due > now:
                break
            first, last, count = first or due, due, count + 1
            if count == MOST_COUNTED:
                last = self._newest(due, now)
                break
        return None if first is None or last is None else Dues(first, last, count)

    def _newest(self, known: datetime, now: datetime) -> datetime:
        """The newest match not after `now`, `known` being one."""
        for span in _LOOK_BACK:
            found = list(self._until(max(known, now - span), now))
            if found:
                return found[-1]
        return known

    def _until(self, moment: datetime, now: datetime) -> Iterator[datetime]:
        for due in self._from(moment):
            if due > now:
                return
            yield due

    def _from(self, moment: datetime) -> Iterator[datetime]:
        """The matches after `moment` in order, UTC, up to the end of time."""
        newest = moment
        with suppress(OverflowError):  # beyond the year 9999
            for due in self._about(moment):
                if due > newest:
                    newest = due
                    yield due

    def _about(self, moment: datetime) -> Iterator[datetime]:
        """As `_from`, but a match may come twice, and some before `moment`."""
        from cronsim import CronSim  # noqa: PLC0415 - only agents with such a schedule need it

        second_pass: deque[datetime] = deque()
        for wall in CronSim(self.expression, self._wall_before(moment)):
            dues = self._moments(wall)
            while second_pass and dues and second_pass[0] < dues[0]:
                yield second_pass.popleft()
            yield from dues[:1]
            second_pass.extend(dues[1:])
        yield from second_pass

    def _wall_before(self, moment: datetime) -> datetime:
        """A time on the wall, no match before which is a moment after `moment`."""
        around = (moment + shift for shift in (-_LONGEST_SHIFT, timedelta(), _LONGEST_SHIFT))
        steady = len({each.astimezone(self.zone).utcoffset() for each in around}) == 1
        wall = moment.astimezone(self.zone).replace(tzinfo=None)
        return wall if steady else wall - _LONGEST_SHIFT

    def _moments(self, wall: datetime) -> tuple[datetime, ...]:
        """When the clock on the wall shows `wall` and that counts: once as a rule, UTC."""
        early = wall.replace(tzinfo=self.zone)
        late = early.replace(fold=1)
        if early.utcoffset() == late.utcoffset():
            return (early.astimezone(UTC),)
        by_the_clock = all(not field.startswith("*") for field in self.expression.split()[:2])
        if early.utcoffset() < late.utcoffset():  # type: ignore[operator]  # left out: the clock jumps over it
            return (_jump(late.astimezone(UTC), early.astimezone(UTC), self.zone),) if by_the_clock else ()
        moments = (early.astimezone(UTC), late.astimezone(UTC))
        return moments[:1] if by_the_clock else moments

    def __str__(self) -> str:
        return f"cron {self.expression} ({self.zone})"


@dataclass(frozen=True, slots=True)
class At:
    """Due at certain moments, each once.

    Attributes:
        moments: the moments, UTC, the oldest first.
    """

    moments: tuple[datetime, ...]

    def due_after(self, previous: datetime, now: datetime) -> datetime | None:
        """The next moment."""
        del previous
        return next((moment for moment in self.moments if moment > now), None)

    def between(self, previous: datetime, now: datetime) -> Dues | None:
        """The moments that have passed since `previous`."""
        passed = [moment for moment in self.moments if previous < moment <= now]
        return Dues(passed[0], passed[-1], len(passed)) if passed else None

    def __str__(self) -> str:
        return f"at {', '.join(moment.isoformat(' ', 'minutes') for moment in self.moments)}"


@dataclass(frozen=True, slots=True)
class BeforeEvent:
    """Due some time before each event of a calendar.

    Attributes:
        calendar: path of the .ics file, relative to the configuration's folder.
        lead: how long before an event begins.
        title: only events whose title contains this, whatever its case; empty for all.
    """

    calendar: str
    lead: timedelta
    title: str = ""

    def __str__(self) -> str:
        which = f"events like {self.title!r}" if self.title else "each event"
        return f"{format_duration(self.lead)} before {which} of {self.calendar}"


@dataclass(frozen=True, slots=True)
class QuietWindow:
    """A span of the day in which an agent is not run on schedule.

    Attributes:
        days: the days on which it begins, 0 is Monday.
        start: minutes after midnight.
        end: minutes after midnight; not after `start` means on the next day.
    """

    days: frozenset[int]
    start: int
    end: int

    def until(self, local: datetime) -> datetime | None:
        """When the window ends that `local`, a moment in its time zone, is in; None outside of it."""
        for back in (0, 1):
            day = local.date() - timedelta(days=back)
            if day.weekday() not in self.days:
                continue
            length = (self.end - self.start) % _MIDNIGHT or _MIDNIGHT
            ends = _at_minute(day, self.start + length, local.tzinfo)
            if _at_minute(day, self.start, local.tzinfo) <= local < ends:  # as the clock on the wall shows it
                again = ends.astimezone(UTC) <= local.astimezone(UTC)  # in the hour that comes twice
                return ends.replace(fold=1) if again else ends
        return None

    def __str__(self) -> str:
        days = "" if len(self.days) == len(_DAYS) else f"{','.join(_DAYS[day] for day in sorted(self.days))} "
        return f"{days}{_clock(self.start)}-{_clock(self.end)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """When one agent is run.

    Attributes:
        timed: what makes it due by the clock; empty when only events do.
        after: the agents after whose successful runs it is due.
        watch: files, folders or patterns; a change of one makes it due.
        webhook: whether an authorised request makes it due.
        before: the calendar before whose events it is due.
        quiet: when it is not run although it is due.
        zone: the time zone of `quiet`.
        jitter: the longest random delay of a due time; the same due time is always delayed by the same.
        catch_up: what to do about due times that passed while it could not run.
        max_lateness: a due time that is later than this is not run any more; None for any lateness.
        priority: of agents that wait for a free place the higher one goes first.
    """

    timed: tuple[Timed, ...] = ()
    after: tuple[str, ...] = ()
    watch: tuple[str, ...] = ()
    webhook: bool = False
    before: BeforeEvent | None = None
    quiet: tuple[QuietWindow, ...] = ()
    zone: tzinfo = UTC
    jitter: timedelta = timedelta()
    catch_up: CatchUp = "once"
    max_lateness: timedelta | None = None
    priority: int = 0

    def due_after(self, previous: datetime, now: datetime) -> datetime | None:
        """The first due time by the clock after `now`; see `Timed.due_after`."""
        dues = [due for each in self.timed if (due := each.due_after(previous, now)) is not None]
        return min(dues, default=None)

    def between(self, previous: datetime, now: datetime) -> Dues | None:
        """The due times by the clock after `previous` and not after `now`."""
        found = [dues for each in self.timed if (dues := each.between(previous, now)) is not None]
        if not found:
            return None
        first, last = min(dues.first for dues in found), max(dues.last for dues in found)
        return Dues(first, last, sum(dues.count for dues in found))

    @property
    def interval(self) -> timedelta | None:
        """The interval of one that is due every so often, None of every other."""
        return next((each.interval for each in self.timed if isinstance(each, Every)), None)

    def quiet_until(self, moment: datetime) -> datetime | None:
        """When the quiet time that `moment` is in ends, UTC; None when it is in none."""
        end: datetime | None = None
        for _ in range(_WEEK_DAYS * len(self.quiet)):  # one window may begin where another ends
            local = (end or moment).astimezone(self.zone)
            later = max(filter(None, (window.until(local) for window in self.quiet)), default=None)
            if later is None:
                break
            end = later.astimezone(UTC)
        return end

    def __str__(self) -> str:
        parts = [*map(str, self.timed)]
        if self.after:
            parts.append(f"after {', '.join(self.after)}")
        if self.watch:
            parts.append(f"when {', '.join(self.watch)} changes")
        if self.webhook:
            parts.append("on a webhook")
        if self.before is not None:
            parts.append(str(self.before))
        return "; ".join(parts) or "only by hand"


def parse_cron(text: str) -> str:
    """The expression with its blanks evened out.

    Raises:
        ValueError: it is none, or it never matches; the message names it.
    """
    from cronsim import CronSim, CronSimError  # noqa: PLC0415 - as above

    fields = text.split()
    fault = "" if len(fields) == 5 else "it needs five fields: minute, hour, day of month, month, day of week"
    if not fault:
        try:
            if next(CronSim(" ".join(fields), datetime(2026, 1, 1, tzinfo=UTC)), None) is None:
                fault = "no day matches it"
        except CronSimError as error:
            fault = str(error).lower()
    if fault:
        msg = f'{text!r} is not a cron expression: {fault}; an example: "0 7 * * mon-fri"'
        raise ValueError(msg)
    return " ".join(fields)


def parse_zone(name: str) -> tzinfo:
    """The time zone of that name.

    Raises:
        ValueError: this machine knows none of that name.
    """
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError  # noqa: PLC0415 - as above

    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        msg = (
            f'{name!r} is no time zone that this machine knows; use a name such as "Europe/Berlin" or "UTC" '
            "(the list is in the package tzdata)"
        )
        raise ValueError(msg) from error


def is_never_loud(windows: Iterable[QuietWindow]) -> bool:
    """Whether the windows leave no minute of the week between them."""
    week = len(_DAYS) * _MIDNIGHT
    quiet = bytearray(week)
    for window in windows:
        length = (window.end - window.start) % _MIDNIGHT or _MIDNIGHT
        for day in window.days:
            begin = day * _MIDNIGHT + window.start
            for minute in range(begin, begin + length):
                quiet[minute % week] = 1
    return all(quiet)


def parse_quiet(text: str) -> QuietWindow:
    """Read a quiet window: `QUIET_FORMS`.

    Raises:
        ValueError: it is none; the message names it and the forms.
    """
    window = _quiet_window(text.lower())
    if window is None:
        msg = f"{text!r} is not {QUIET_FORMS}"
        raise ValueError(msg)
    return window


def _quiet_window(text: str) -> QuietWindow | None:
    match = re.fullmatch(r"\s*(?:([a-z, -]+?)\s+)?([\d:]+)\s*-\s*([\d:]+)\s*", text)
    if match is None:
        return None
    days = _days(match[1]) if match[1] else frozenset(range(len(_DAYS)))
    start, end = _minutes(match[2]), _minutes(match[3])
    if days is None or start is None or end is None or start == _MIDNIGHT:
        return None
    return QuietWindow(days, start, end)


def at_moments(values: Iterable[datetime | time], zone: tzinfo) -> tuple[Timed, ...]:
    """Moments and times of day as what makes an agent due.

    Args:
        values: a moment without time zone is meant in `zone`; a time of day, to the minute, comes every day.
        zone: the agent's time zone.
    """
    moments: set[datetime] = set()
    daily: dict[Timed, None] = {}
    for value in values:
        if isinstance(value, datetime):
            aware = value if value.tzinfo is not None else value.replace(tzinfo=zone)
            moments.add(aware.astimezone(UTC))
        else:
            daily[Cron(f"{value.minute} {value.hour} * * *", value.tzinfo or zone)] = None
    return (*([At(tuple(sorted(moments)))] if moments else []), *daily)


def local_zone() -> tzinfo:
    """The time zone of this machine, with its rules of daylight saving; UTC when it cannot be told."""
    import tzlocal  # noqa: PLC0415 - only agents without a zone of their own need it

    try:
        return tzlocal.get_localzone()
    except (LookupError, ValueError, OSError):
        return UTC


def _jump(before: datetime, after: datetime, zone: tzinfo) -> datetime:
    """The moment between two at which the clock on the wall is set, to the second."""
    offset = before.astimezone(zone).utcoffset()
    while after - before > timedelta(seconds=1):
        middle = before + (after - before) // 2
        if middle.astimezone(zone).utcoffset() == offset:
            before = middle
        else:
            after = middle
    return after.replace(microsecond=0)


def _days(text: str) -> frozenset[int] | None:
    found: set[int] = set()
    for part in text.replace(" ", "").split(","):
        first, to, last = part.partition("-")
        last = last if to else first
        if first not in _DAYS or last not in _DAYS:
            return None
        begin, end = _DAYS.index(first), _DAYS.index(last)
        found.update(day % len(_DAYS) for day in range(begin, end + 1 + (len(_DAYS) if end < begin else 0)))
    return frozenset(found)


def _minutes(text: str) -> int | None:
    match = re.fullmatch(r"([0-9]{1,2}):([0-5][0-9])", text)
    minutes = int(match[1]) * 60 + int(match[2]) if match else _MIDNIGHT + 1
    return minutes if minutes <= _MIDNIGHT else None


def _clock(minutes: int) -> str:
    return f"{minutes // 60:02}:{minutes % 60:02}"


def _at_minute(day: date, minutes: int, zone: tzinfo | None) -> datetime:
    """So many minutes after midnight by the clock on the wall, which daylight saving may have moved."""
    return datetime.combine(day, time(), tzinfo=zone) + timedelta(minutes=minutes)
