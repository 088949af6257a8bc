"""Reads the events of an .ics file, in a process of its own: a calendar may come from anywhere.

Started as a file, with nothing of Askfirst on its path; icalendar and recurring-ical-events are the extra
`askfirst[agents]`. One JSON object comes in on stdin:

    {"path", "start", "end", "title"}                start and end: moments in ISO 8601, UTC

and one goes out on stdout:

    {"events": [...], "problems": [...]}              when they begin, in ISO 8601: a day, a moment without
                                                      time zone, or one with; what was left out, and why
    {"error": "..."}                                  the file as a whole cannot be used

A file that is made to be slow ends with the limits on CPU time and memory below; the parent says so.
"""

from __future__ import annotations

import json
import os
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

MOST_BYTES = 10 * 1024 * 1024
MOST_EVENTS = 500
"""Events within the window; more are left out."""

CPU_SECONDS = 60
MEMORY_BYTES = 256 * 1024 * 1024
MOST_DEEP = 8
"""Components inside each other; real calendars have three."""

_MARGIN = timedelta(days=2)
"""Elsewhere in the world a day begins earlier or later, and the first check is of whole days."""

_NEEDED = frozenset({"DTSTART", "DTEND", "DURATION", "RRULE", "RDATE", "EXDATE", "RECURRENCE-ID"})
_PLACE = re.compile(r"^(BEGIN|END):(.*)$", re.IGNORECASE)
_STARTS = re.compile(r"^DTSTART[^:\r\n]*:(\d{4})(\d{2})(\d{2})", re.MULTILINE | re.IGNORECASE)
_REPEATS = re.compile(r"^(RRULE|RDATE|RECURRENCE-ID)[;:]", re.MULTILINE | re.IGNORECASE)


class Unusable(Exception):
    """The file as a whole cannot be used; the message says where and why."""


@dataclass(slots=True)
class Text:
    """A calendar's text without the events that cannot matter.

    Attributes:
        lines: what is left, each with its number in the whole file.
        begins: the number of the line at which each event that is left begins.
    """

    lines: list[tuple[int, str]] = field(default_factory=list)
    begins: list[int] = field(default_factory=list)


def main() -> None:
    """Answer the one request."""
    _limit()
    asked = json.load(sys.stdin)
    try:
        answer: dict[str, Any] = _read(**asked)
    except Unusable as error:
        answer = {"error": str(error)}
    except MemoryError:
        answer = {"error": "it needs too much memory: something in it repeats too often"}
    except Exception as error:  # noqa: BLE001 - whatever a strange file makes the packages do
        answer = {"error": f"it makes no sense: {type(error).__name__}: {str(error)[:200]}"}
    json.dump(answer, sys.stdout)


def _limit() -> None:
    os.nice(5)
    for kind, limit in ((resource.RLIMIT_CPU, CPU_SECONDS), (resource.RLIMIT_AS, MEMORY_BYTES)):
        with suppress(ValueError, OSError):  # macOS knows no limit of address space
            resource.setrlimit(kind, (limit, limit))


def _read(path: str, start: str, end: str, title: str) -> dict[str, Any]:
    first, last = datetime.fromisoformat(start), datetime.fromisoformat(end)
    text = _relevant(_load(Path(path)), first - _MARGIN, last + _MARGIN)
    found, problems = _events(text, first - _MARGIN, last + _MARGIN)
    begins = sorted({_iso(event.start) for event in found if _is_meant(event, title)}, key=_order)
    near = [each for each in begins if _may_be_within(each, first, last)]
    if len(near) > MOST_EVENTS:
        problems.append(
            f"more than {MOST_EVENTS} events in the days that are looked at; the later ones are left out"
        )
    return {"events": near[:MOST_EVENTS], "problems": problems}


def _load(path: Path) -> str:
    try:
        if path.stat().st_size > MOST_BYTES:
            msg = f"it has {path.stat().st_size} bytes; at most {MOST_BYTES} are read"
            raise Unusable(msg)
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        msg = f"it cannot be read: {error.strerror}"
        raise Unusable(msg) from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        msg = f"line {line}: not UTF-8"
        raise Unusable(msg) from error


def _relevant(text: str, first: datetime, last: datetime) -> Text:
    """The text without single events far from the window, which are most of a calendar of many years.

    Raises:
        Unusable: its parts do not begin and end as they should; named with the line.
    """
    kept, open_parts, block, begun = Text(), list[tuple[str, int]](), list[tuple[int, str]](), 0
    number = 0
    for number, line in enumerate(text.splitlines(), start=1):
        place = _PLACE.match(line.rstrip())
        if place is not None:
            _follow(open_parts, place[1].upper(), place[2].strip().upper(), number)
            if place[1].upper() == "BEGIN" and open_parts[-1][0] == "VEVENT" and not block:
                begun = number
        elif not open_parts and line.strip():
            msg = f"line {number}: this is no calendar; BEGIN:VCALENDAR is expected here"
            raise Unusable(msg)
        if not begun:
            kept.lines.append((number, line))
            continue
        block.append((number, line))
        if "VEVENT" not in (name for name, _ in open_parts):
            if _matters("\n".join(each for _, each in block), first, last):
                kept.lines += block
                kept.begins.append(begun)
            block, begun = [], 0
    if open_parts or not number:
        name, line_number = open_parts[-1] if open_parts else ("VCALENDAR", 1)
        msg = f"line {number or 1}: the file ends before END:{name} (of line {line_number}); it is cut off"
        raise Unusable(msg)
    return kept


def _follow(open_parts: list[tuple[str, int]], kind: str, name: str, number: int) -> None:
    if kind == "BEGIN":
        open_parts.append((name, number))
        if len(open_parts) > MOST_DEEP:
            msg = f"line {number}: more than {MOST_DEEP} parts inside each other"
            raise Unusable(msg)
    elif not open_parts or open_parts.pop()[0] != name:
        msg = f"line {number}: END:{name} has no BEGIN:{name} before it"
        raise Unusable(msg)


def _matters(block: str, first: datetime, last: datetime) -> bool:
    if _REPEATS.search(block):
        return True
    match = _STARTS.search(block)
    if match is None:
        return True  # so that what is wrong with it is told
    try:
        day = date(*map(int, match.groups()))
    except ValueError:
        return True
    return first.date() <= day <= last.date()


def _events(text: Text, first: datetime, last: datetime) -> tuple[list[Any], list[str]]:
    """The events that may be within the window, and what is wrong with others."""
    try:
        import icalendar  # noqa: PLC0415 - an extra that may be missing
        import recurring_ical_events  # noqa: PLC0415 - as above
    except ImportError as error:
        msg = "calendars need packages that are not installed: pip install 'askfirst[agents]'"
        raise Unusable(msg) from error
    try:
        calendars = icalendar.Calendar.from_ical("\r\n".join(line for _, line in text.lines), multiple=True)
    except ValueError as error:
        msg = f"{_line_of(error, text)}it is no calendar: {str(error)[:200]}"
        raise Unusable(msg) from error
    problems = list(_without_broken_ones(calendars, text.begins))
    found: list[Any] = []
    for calendar in calendars:
        query = recurring_ical_events.of(calendar, components=["VEVENT"], skip_bad_series=True)
        found += query.between(first, last)
    return found, problems


def _without_broken_ones(calendars: list[Any], begins: list[int]) -> Iterator[str]:
    """Take events that cannot be used out of the calendars; tells of each."""
    lines = iter(begins)
    for calendar in calendars:
        for event in [each for each in calendar.subcomponents if each.name == "VEVENT"]:
            line = next(lines, 0)
            fault = _fault(event)
            if fault:
                calendar.subcomponents.remove(event)
                yield f"line {line}: an event is left out: {fault}"


def _fault(event: Any) -> str:
    broken = next((name for name, _ in event.errors if name in _NEEDED), None)
    if broken is not None:
        return f"its {broken} cannot be read"
    if "DTSTART" not in event:
        return "it has no DTSTART"
    rules = event.get("RRULE", [])
    for rule in rules if isinstance(rules, list) else [rules]:
        if {"SECONDLY", "MINUTELY"} & {str(each).upper() for each in rule.get("FREQ", [])}:
            return "it repeats more often than hourly"
    return ""


def _line_of(error: ValueError, text: Text) -> str:
    """Where the line is that the message quotes."""
    quoted = re.search(r"'(.+?)'", str(error))
    if quoted is None:
        return ""
    number = next((number for number, line in text.lines if quoted[1] in line), 0)
    return f"line {number}: " if number else ""


def _is_meant(event: Any, title: str) -> bool:
    if str(event.get("STATUS", "")).upper() == "CANCELLED":
        return False
    return title.casefold() in str(event.get("SUMMARY", "")).casefold()


def _iso(start: date) -> str:
    return start.isoformat()


def _order(text: str) -> str:
    return text.replace("T", " ")


def _may_be_within(text: str, first: datetime, last: datetime) -> bool:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is not None:
        return first < moment <= last
    moment = moment.replace(tzinfo=UTC)
    return first - timedelta(days=1) < moment <= last + timedelta(days=1)


if __name__ == "__main__":
    main()
