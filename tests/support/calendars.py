"""Writes .ics files for tests."""

from __future__ import annotations

from datetime import UTC, datetime


def ics(*events: str, head: str = "") -> str:
    """A calendar with these events, each given by its lines after UID and DTSTAMP."""
    parts = [
        f"BEGIN:VEVENT\nUID:event-{number}@example\nDTSTAMP:20260101T000000Z\n{lines.strip()}\nEND:VEVENT\n"
        for number, lines in enumerate(events, start=1)
    ]
    text = f"BEGIN:VCALENDAR\nVERSION:2.0\nPRODID:-//tests//EN\n{head}{''.join(parts)}END:VCALENDAR\n"
    return text.replace("\n", "\r\n")


def event(start: datetime, title: str = "Work party", *more: str) -> str:
    """The lines of an event that begins at a moment."""
    stamp = start.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    return "\n".join((f"DTSTART:{stamp}", f"SUMMARY:{title}", *more))
