"""Calendars: an agent is due some time before each event of an .ics file.

The file is read in a process of its own (`daemon.triggers.ics`), once a day and when it has changed, for the
week to come: what is in it may be large, slow or hostile. Between readings only moments are kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta, tzinfo
from pathlib import Path
from typing import Any

from agents.context import utc_now
from agents.schedule import BeforeEvent, Schedule
from daemon.triggers.paths import absolute

_log = logging.getLogger(__name__)

READER = Path(__file__).with_name("ics.py")

AHEAD = timedelta(days=8)
LOOK_BACK = timedelta(days=7)
"""Moments that passed while the program was off are found for so long."""

READ_EVERY = timedelta(days=1)
LOOK_EVERY = timedelta(minutes=10)
"""So often it is looked whether the file has changed; and before each due time."""

READ_LIMIT_S = 180.0
"""A reading may take so long on a busy machine; its CPU time has a limit of its own."""

_READ_BYTES = 1024 * 1024
_PASSED_ON = ("PATH", "HOME", "LANG", "TZ", "TZDIR", "PYTHONTZPATH", "PYTHONPATH", "LD_LIBRARY_PATH")
_PASSED_PREFIXES = ("LC_", "COVERAGE_")  # coverage measures the child too when it measures us


class UnreadableCalendar(Exception):
    """The calendar cannot be used; the message says why."""


@dataclass(slots=True)
class _Calendar:
    """One agent's calendar.

    Attributes:
        event: which events, and how long before them.
        path: the file.
        zone: the time zone of whole days and of times without one.
        since: due times up to this one do not count.
        dues: the due times that are known, in order, UTC.
        fired: those that were told.
        stamp: time, size and inode of the file when it was read.
        read_at: when it was read.
        problem: what was last said to be wrong with it.
    """

    event: BeforeEvent
    path: Path
    zone: tzinfo
    since: datetime
    dues: tuple[datetime, ...] = ()
    fired: set[datetime] = field(default_factory=set)
    stamp: tuple[int, int, int] | None = None
    read_at: datetime | None = None
    problem: str = ""

    def take(self, now: datetime) -> list[datetime]:
        """The due times that have come, each once."""
        come = [due for due in self.dues if self.since < due <= now and due not in self.fired]
        self.fired.update(come)
        return come

    def next_due(self, now: datetime) -> datetime | None:
        """The first due time that has not come."""
        return next(
            (due for due in self.dues if due > now and due > self.since and due not in self.fired), None
        )

    def forget(self) -> None:
        """What was fired before all that is known does not have to be remembered."""
        oldest = self.dues[:1]
        self.fired = {due for due in self.fired if (due,) >= oldest}

    def is_stale(self, stamp: tuple[int, int, int] | None, now: datetime) -> bool:
        """Whether it has to be read: it changed, or what is known of it does not reach far enough."""
        return self.read_at is None or stamp != self.stamp or abs(now - self.read_at) >= READ_EVERY


class Calendars:
    """Watches the calendars of agents, from `start` until `aclose`.

    Args:
        schedules: every agent's schedule; those without `before` do not matter.
        base_dir: where relative paths start.
        fire: called on the event loop with an agent that is due and its due time, UTC.
        since: by agent, the due time after which others count; see `Triggers`.
        now: the clock, UTC.
    """

    def __init__(
        self,
        schedules: Mapping[str, Schedule],
        base_dir: Path,
        fire: Callable[[str, datetime], object],
        *,
        since: Mapping[str, datetime] | None = None,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        begin = now()
        from_when = begin - LOOK_BACK if since is None else begin
        self._calendars = {
            name: _Calendar(
                event=schedule.before,
                path=Path(absolute(schedule.before.calendar, base_dir)),
                zone=schedule.zone,
                since=max((since or {}).get(name, from_when), begin - LOOK_BACK),
            )
            for name, schedule in schedules.items()
            if schedule.before is not None
        }
        self._fire = fire
        self._now = now
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin; the first reading is under way when this returns."""
        if self._calendars:
            self._task = asyncio.create_task(self._watch(), name="calendars")

    async def aclose(self) -> None:
        """End, with a reading that is under way."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def fire_due(self, moment: datetime) -> None:
        """Fire what is due at `moment`, by what is known."""
        for name, calendar in self._calendars.items():
            for due in calendar.take(moment):
                self._fire(name, due)

    def clock_changed(self) -> None:
        """The clock was set, or the machine slept: what was awaited may have come, or be far off."""
        self._wake.set()

    async def _watch(self) -> None:
        while True:
            self._wake.clear()
            for name, calendar in self._calendars.items():
                await self._bring_up_to_date(name, calendar)
                for due in calendar.take(self._now()):
                    self._fire(name, due)
            with contextlib.suppress(TimeoutError):  # not wait_for, which may swallow a cancellation
                async with asyncio.timeout(self._pause()):
                    await self._wake.wait()

    def _pause(self) -> float:
        """Seconds until the next due time, or until the files are looked at again."""
        now = self._now()
        dues = (each.next_due(now) for each in self._calendars.values())
        left = min((due - now for due in dues if due is not None), default=LOOK_EVERY)
        return min(left, LOOK_EVERY).total_seconds()

    async def _bring_up_to_date(self, name: str, calendar: _Calendar) -> None:
        stamp = await asyncio.to_thread(_stamp, calendar.path)
        now = self._now()
        if not calendar.is_stale(stamp, now):
            return
        calendar.stamp, calendar.read_at = stamp, now
        try:
            calendar.dues, problems = await _read(calendar, now)
        except UnreadableCalendar as error:
            self._tell(name, calendar, f"{error}; the events that were known before stay")
        except Exception as error:  # noqa: BLE001 - whatever happens to one calendar, the others are watched
            self._tell(name, calendar, f"it cannot be read: {type(error).__name__}: {error}")
        else:
            calendar.forget()
            self._tell(name, calendar, "; ".join(problems[:3]))

    def _tell(self, name: str, calendar: _Calendar, problem: str) -> None:
        """Say what is wrong once, and that it is not any more once."""
        known, calendar.problem = calendar.problem, problem
        about = {"agent": name}
        if problem and problem != known:
            _log.warning("calendar %s: %s", calendar.path, problem, extra=about)
        elif known and not problem:
            _log.info("calendar %s can be read again", calendar.path, extra=about)


async def _read(calendar: _Calendar, now: datetime) -> tuple[tuple[datetime, ...], list[str]]:
    """The due times from `LOOK_BACK` to `AHEAD`, in order, UTC, and what was left out.

    Raises:
        UnreadableCalendar: it cannot be used.
    """
    lead = calendar.event.lead
    try:
        earliest, latest = now - LOOK_BACK, now + AHEAD
        window = {"start": (earliest + lead).isoformat(), "end": (latest + lead).isoformat()}
    except OverflowError as error:
        msg = "the clock is beyond the years that a calendar knows"
        raise UnreadableCalendar(msg) from error
    answer = await _ask({"path": str(calendar.path), "title": calendar.event.title, **window})
    if "error" in answer:
        raise UnreadableCalendar(answer["error"])
    dues = {_moment(each, calendar.zone) - lead for each in answer["events"]}
    return tuple(sorted(due for due in dues if earliest < due <= latest)), list(answer["problems"])


async def _ask(request: Mapping[str, Any]) -> dict[str, Any]:
    """One reading, in a process that is gone afterwards."""
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", str(READER)), stdin=PIPE, stdout=PIPE, stderr=PIPE, env=_environment()
        )
    except OSError as error:
        msg = f"no process could be started to read it: {error.strerror}"
        raise UnreadableCalendar(msg) from error
    try:
        async with asyncio.timeout(READ_LIMIT_S):
            out, err = await process.communicate(json.dumps(request).encode())
    except TimeoutError as error:
        msg = f"reading it takes longer than {READ_LIMIT_S:g} s"
        raise UnreadableCalendar(msg) from error
    finally:
        await _end(process)
    if process.returncode != 0 or len(out) > _READ_BYTES:
        raise UnreadableCalendar(_last_words(process.returncode or 0, err))
    try:
        answer: dict[str, Any] = json.loads(out)
    except ValueError as error:
        raise UnreadableCalendar(_last_words(0, err)) from error
    return answer


async def _end(process: Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _last_words(code: int, err: bytes) -> str:
    if code < 0:  # by a signal: its limit on CPU time, or the system's on memory
        return (
            "reading it takes too much time or memory: something in it repeats too often, or it is too large"
        )
    lines = err.decode("utf-8", "replace").strip().splitlines()
    return f"it cannot be read: {lines[-1][:200] if lines else f'exit code {code}'}"


def _environment() -> dict[str, str]:
    """The few variables that the reader gets: no key of ours is among them."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in _PASSED_ON or name.startswith(_PASSED_PREFIXES)
    }


def _moment(text: str, zone: tzinfo) -> datetime:
    """When an event begins, UTC; a whole day begins at midnight."""
    moment = datetime.fromisoformat(text)
    if len(text) == len("2026-01-01"):
        moment = datetime.combine(moment.date(), time())
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=zone)).astimezone(UTC)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        state = path.stat()
    except (OSError, ValueError):
        return None
    return (state.st_mtime_ns, state.st_size, state.st_ino)
