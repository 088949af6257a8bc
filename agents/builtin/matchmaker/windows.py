"""When something is to be had: dates, days of the week with hours, or both; and what two have in common."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Self

from agents.builtin.matchmaker.text import plain

DAY_NAMES = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_DAY_MINUTES = 24 * 60

_DAY_WORDS = (
    "mon monday mondays lun lunes l",
    "tue tues tuesday tuesdays mar martes m",
    "wed wednesday wednesdays mie miercoles x",
    "thu thur thurs thursday thursdays jue jueves j",
    "fri friday fridays vie viernes v",
    "sat saturday saturdays sab sabado sabados s",
    "sun sunday sundays dom domingo domingos d",
)
_DAYS = {word: number for number, words in enumerate(_DAY_WORDS) for word in words.split()}
# As they read once the fillers below are gone: "todos los días" is "todos dias" by then.
_GROUPS = {
    "weekdays": range(5),
    "weekends": range(5, 7),
    "weekend": range(5, 7),
    "daily": range(7),
    "entre semana": range(5),
    "laborables": range(5),
    "dias laborables": range(5),
    "fin de semana": range(5, 7),
    "fines de semana": range(5, 7),
    "every day": range(7),
    "any day": range(7),
    "todos dias": range(7),
    "cada dia": range(7),
    "a diario": range(7),
}
_PARTS = {
    "mornings": (8, 12),
    "morning": (8, 12),
    "por manana": (8, 12),
    "mananas": (8, 12),
    "afternoons": (12, 18),
    "afternoon": (12, 18),
    "por tarde": (15, 20),
    "tardes": (15, 20),
    "evenings": (18, 22),
    "evening": (18, 22),
    "por noche": (20, 23),
    "noches": (20, 23),
}
_CLOCK = r"(\d{1,2})(?:[:.h](\d{2}))?\s*(am|pm|h)?"
_HOURS = rf"{_CLOCK}\s*(?:-|–|to|until|a|hasta)\s*{_CLOCK}"
_WORDS = "|".join(sorted((*_GROUPS, *_PARTS, *_DAYS), key=len, reverse=True))
_TOKEN = re.compile(rf"(?P<hours>{_HOURS})|(?P<word>\b(?:{_WORDS})\b)|(?P<to>-|–|\bto\b|\ba\b)|(?P<other>\S)")
# Words that may stand between days and hours without meaning anything.
_FILLERS = re.compile(r"\b(?:from|at|on|and|the|de|del|las|los|el|la|y|e|entre)\b|[,;.]")


class BadWindow(ValueError):
    """A date or a time that cannot be understood; the message says what could be."""


@dataclass(frozen=True, slots=True, order=True)
class Slot:
    """Hours on one day of the week, in local time.

    Attributes:
        day: 0 is Monday.
        start: minutes after midnight.
        end: minutes after midnight, at most 1440.
    """

    day: int
    start: int = 0
    end: int = _DAY_MINUTES


@dataclass(frozen=True, slots=True)
class Window:
    """When something is to be had.

    Attributes:
        start: not before, UTC; None means already.
        end: not after, UTC; None means always.
        slots: on these days and hours only; empty means any.
    """

    start: datetime | None = None
    end: datetime | None = None
    slots: tuple[Slot, ...] = ()

    def common(self, other: Self) -> Window | None:
        """When both are to be had, None when never (days and hours taken together, see `happens_after`)."""
        start = max(filter(None, (self.start, other.start)), default=None)
        end = min(filter(None, (self.end, other.end)), default=None)
        if start is not None and end is not None and start >= end:
            return None
        if not (self.slots and other.slots):
            return Window(start, end, self.slots or other.slots)
        shared = tuple(sorted(_shared(self.slots, other.slots)))
        return Window(start, end, shared) if shared else None

    def happens_after(self, now: datetime, zone: tzinfo) -> bool:
        """Whether any moment of it lies after `now`."""
        start = now if self.start is None else max(now, self.start)
        if self.end is not None and self.end <= start:
            return False
        if not self.slots:
            return True
        return any(
            begin < (self.end or finish) and finish > start
            for begin, finish in self._occurrences(start, zone)
        )

    def _occurrences(self, since: datetime, zone: tzinfo) -> Iterator[tuple[datetime, datetime]]:
        """Begin and end of each slot in the eight days from `since`."""
        first = since.astimezone(zone).date()
        for day in (first + timedelta(days=n) for n in range(8)):
            for slot in self.slots:
                if slot.day == day.weekday():
                    yield _moment(day, slot.start, zone), _moment(day, slot.end, zone)

    def text(self, zone: tzinfo) -> str:
        """For people: "Saturday 10:00-12:00, until 2031-12-31"."""
        parts = [_slots_text(self.slots)] if self.slots else []
        if self.start is not None:
            parts.append(f"from {_moment_text(self.start, zone)}")
        if self.end is not None:
            parts.append(f"until {_moment_text(self.end - timedelta(seconds=1), zone)}")
        return ", ".join(parts) or "any time"


def _shared(one: tuple[Slot, ...], other: tuple[Slot, ...]) -> set[Slot]:
    pairs = ((a, b) for a in one for b in other if a.day == b.day)
    overlaps = (Slot(a.day, max(a.start, b.start), min(a.end, b.end)) for a, b in pairs)
    return {slot for slot in overlaps if slot.start < slot.end}


def _moment(day: date, minutes: int, zone: tzinfo) -> datetime:
    extra, minutes = divmod(minutes, _DAY_MINUTES)
    hour, minute = divmod(minutes, 60)
    return datetime.combine(day + timedelta(days=extra), time(hour, minute), zone).astimezone(UTC)


def _moment_text(moment: datetime, zone: tzinfo) -> str:
    local = moment.astimezone(zone)
    whole_day = (local.hour, local.minute) in {(0, 0), (23, 59)}
    return f"{local:%Y-%m-%d}" if whole_day else f"{local:%Y-%m-%d %H:%M}"


def _slots_text(slots: tuple[Slot, ...]) -> str:
    """Days with the same hours together, in the order of the week."""
    hours: dict[tuple[int, int], list[int]] = {}
    for slot in slots:
        hours.setdefault((slot.start, slot.end), []).append(slot.day)
    return "; ".join(f"{_days_text(days)}{_hours_text(*span)}" for span, days in hours.items())


def _days_text(days: list[int]) -> str:
    if days == list(range(days[0], days[0] + len(days))) and len(days) > 2:
        return "every day" if len(days) == 7 else f"{DAY_NAMES[days[0]]} to {DAY_NAMES[days[-1]]}"
    return ", ".join(DAY_NAMES[day] for day in days)


def _hours_text(start: int, end: int) -> str:
    if (start, end) == (0, _DAY_MINUTES):
        return ""
    return f" {start // 60:02}:{start % 60:02}-{end // 60:02}:{end % 60:02}"


def parse_moment(text: str, zone: tzinfo, *, end: bool = False) -> datetime | None:
    """The moment that `text` names, UTC; None for an empty text.

    Args:
        text: "2031-05-03" or "2031-05-03 14:30", perhaps with an offset.
        zone: the local time zone, for a text without an offset.
        end: whether a date without a time means the end of that day.

    Raises:
        BadWindow: it is neither.
    """
    text = text.strip()
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        msg = f"{text!r} is no date; write 2031-05-03 or 2031-05-03 14:30"
        raise BadWindow(msg) from error
    if end and re.fullmatch(r"\d{4}-?\d{2}-?\d{2}", text):
        moment += timedelta(days=1)
    return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).astimezone(UTC)


def parse_times(text: str) -> tuple[Slot, ...]:
    """Days of the week and hours: "mon-fri 9-12", "Sat 10:00-13:00; Sun", "lunes a viernes por la tarde".

    Raises:
        BadWindow: a part of it is not understood.
    """
    reader = _TimesReader(text)
    cleaned = " ".join(_FILLERS.sub(" ", plain(text)).split())
    for token in _TOKEN.finditer(cleaned):
        reader.take(token)
    return reader.slots()


class _TimesReader:
    """Collects days until hours follow; several hours may follow the same days."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._days: list[int] = []
        self._found: set[Slot] = set()
        self._closed = False  # hours were seen, so that the next day begins anew
        self._range_from: int | None = None

    def take(self, token: re.Match[str]) -> None:
        """Read one token."""
        if token["other"] or (token["to"] and not self._days):
            self._refuse()
        elif token["to"]:
            self._range_from = self._days[-1]
        elif token["hours"]:
            self._hours(*_span(token, self._text))
        else:
            self._word(token["word"])

    def _word(self, word: str) -> None:
        if word in _PARTS:
            start, end = _PARTS[word]
            self._hours(start * 60, end * 60)
            return
        if self._closed:
            self._days, self._closed = [], False
        days = _GROUPS.get(word)
        if days is not None:
            self._days += days
        elif self._range_from is None:
            self._days.append(_DAYS[word])
        else:
            self._days += _days_between(self._range_from, _DAYS[word])
            self._range_from = None

    def _hours(self, start: int, end: int) -> None:
        self._found |= {Slot(day, start, end) for day in self._days or range(7)}
        self._closed = True

    def slots(self) -> tuple[Slot, ...]:
        """What was read."""
        if self._range_from is not None:
            self._refuse()
        if not self._closed:
            self._found |= {Slot(day) for day in self._days}
        return tuple(sorted(self._found))

    def _refuse(self) -> None:
        msg = (
            f"{self._text.strip()!r} is not understood; write for example 'mon-fri 09:00-12:00' or 'sat, sun'"
        )
        raise BadWindow(msg)


def _days_between(first: int, last: int) -> list[int]:
    return [(first + n) % 7 for n in range(1, (last - first) % 7 + 1)]


def _span(token: re.Match[str], text: str) -> tuple[int, int]:
    hour, minute, half, to_hour, to_minute, to_half = token.groups()[1:7]
    start = _minutes(
        hour, minute, half or (to_half if to_half == "pm" and int(hour) < int(to_hour) < 12 else None)
    )
    end = _minutes(to_hour, to_minute, to_half)
    if not start < end <= _DAY_MINUTES or any(int(minutes or 0) > 59 for minutes in (minute, to_minute)):
        msg = f"{token['hours']!r} in {text.strip()!r} is no span of one day; write for example '18:00-24:00'"
        raise BadWindow(msg)
    return start, end


def _minutes(hour: str, minute: str | None, half: str | None) -> int:
    hours = int(hour)
    if half in {"am", "pm"}:
        hours = hours % 12 + (12 if half == "pm" else 0)
    return hours * 60 + int(minute or 0)
