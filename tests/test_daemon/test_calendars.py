"""Calendars: an agent is due so long before each event of an .ics file, whatever is in the file."""

from __future__ import annotations

import asyncio
import os
import time as clocks
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from agents.schedule import BeforeEvent, Schedule
from daemon.triggers import calendar as module
from daemon.triggers import ics as reader
from daemon.triggers.calendar import Calendars, UnreadableCalendar
from tests.support.calendars import event, ics
from tests.support.waiting import seen

BERLIN = ZoneInfo("Europe/Berlin")
HOUR = timedelta(hours=1)
CODE = Path(reader.__file__).read_text(encoding="utf-8")
NOW = datetime(2026, 3, 26, 12, tzinfo=UTC)  # a Thursday; on Sunday Berlin's clock goes from 02:00 to 03:00


async def dues_of(
    folder: Path,
    text: str | bytes,
    *,
    lead: timedelta = timedelta(),
    title: str = "",
    zone: tzinfo = BERLIN,
    now: datetime = NOW,
) -> tuple[list[str], list[str]]:
    """What one reading finds within a week back and eight days ahead, and what it complains about."""
    path = folder / "events.ics"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    one = module._Calendar(BeforeEvent(path.name, lead, title), path, zone, since=now)
    dues, problems = await module._read(one, now)
    return [each.strftime("%d %H:%M") for each in dues], problems


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read in this process: forty starts of the other one would take most of the time."""

    async def ask(request: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return await asyncio.to_thread(reader._read, **request)
        except reader.Unusable as error:
            return {"error": str(error)}

    monkeypatch.setattr(module, "_ask", ask)


IN_THIS_PROCESS = pytest.mark.usefixtures("here")


async def only_dues(folder: Path, *events: str, **options: Any) -> list[str]:
    dues, problems = await dues_of(folder, ics(*events), **options)
    assert problems == []
    return dues


FRIDAYS = """DTSTART;TZID=Europe/Berlin:20260213T100000
RRULE:FREQ=WEEKLY;INTERVAL=2
EXDATE;TZID=Europe/Berlin:20260327T100000
RDATE;TZID=Europe/Berlin:20260328T110000"""

CASES = {
    "utc": (["DTSTART:20260327T100000Z"], ["27 10:00"]),
    "with a zone": (["DTSTART;TZID=Europe/Berlin:20260327T100000"], ["27 09:00"]),
    "with a zone of the calendar's own program": (
        ["DTSTART;TZID=W. Europe Standard Time:20260330T100000"],
        ["30 08:00"],
    ),
    "in a zone that nobody knows": (["DTSTART;TZID=Mars/Base:20260327T100000"], ["27 09:00"]),
    "without a zone": (["DTSTART:20260327T100000", "DTSTART:20260330T100000"], ["27 09:00", "30 08:00"]),
    "at a time that is left out": (["DTSTART:20260329T023000"], ["29 01:30"]),
    "a whole day": (["DTSTART;VALUE=DATE:20260327", "DTSTART;VALUE=DATE:20260330"], ["26 23:00", "29 22:00"]),
    "every day through daylight saving": (
        ["DTSTART;TZID=Europe/Berlin:20200101T180000\nRRULE:FREQ=DAILY;UNTIL=20260331T235959Z"],
        [
            *("19 17:00", "20 17:00", "21 17:00", "22 17:00", "23 17:00", "24 17:00", "25 17:00", "26 17:00"),
            *("27 17:00", "28 17:00", "29 16:00", "30 16:00", "31 16:00"),
        ],
    ),
    "every second Friday, without one, with another": (
        [FRIDAYS],
        ["28 10:00"],
    ),
    "cancelled": (["DTSTART:20260327T100000Z\nSTATUS:CANCELLED", "DTSTART:20260327T110000Z"], ["27 11:00"]),
    "tentative": (["DTSTART:20260327T100000Z\nSTATUS:TENTATIVE"], ["27 10:00"]),
    "twice at the same time": (["DTSTART:20260327T100000Z", "DTSTART:20260327T100000Z"], ["27 10:00"]),
    "that began long ago and goes on": (["DTSTART:20260301T100000Z\nDTEND:20260501T100000Z"], []),
    "far away": (["DTSTART:20260318T100000Z", "DTSTART:20260404T100000Z", "DTSTART:19990327T100000Z"], []),
    "of one series, one of them moved and one cancelled": (
        [
            "DTSTART:20260326T100000Z\nRRULE:FREQ=DAILY;COUNT=4",
            "RECURRENCE-ID:20260327T100000Z\nDTSTART:20260327T150000Z",
            "RECURRENCE-ID:20260328T100000Z\nDTSTART:20260328T100000Z\nSTATUS:CANCELLED",
        ],
        ["26 10:00", "27 15:00", "29 10:00"],
    ),
}


@IN_THIS_PROCESS
@pytest.mark.parametrize(("events", "dues"), CASES.values(), ids=CASES)
async def test_when_an_event_begins(tmp_path: Path, events: list[str], dues: list[str]) -> None:
    text = ics(*events)
    if "RECURRENCE-ID" in text:
        text = text.replace("UID:event-2", "UID:event-1").replace("UID:event-3", "UID:event-1")
    assert await dues_of(tmp_path, text) == (dues, [])


@IN_THIS_PROCESS
async def test_the_lead_is_taken_off_and_reaches_far(tmp_path: Path) -> None:
    party = "DTSTART:20260327T100000Z"
    assert await only_dues(tmp_path, party, lead=2 * HOUR) == ["27 08:00"]
    assert await only_dues(tmp_path, "DTSTART:20270327T100000Z", lead=timedelta(days=365)) == ["27 10:00"]


@IN_THIS_PROCESS
async def test_only_events_whose_title_has_the_text_count_whatever_its_case(tmp_path: Path) -> None:
    events = [f"DTSTART:20260327T{hour}0000Z\nSUMMARY:{title}" for hour, title in
              (("10", "Big WORK Party"), ("11", "Dentist"), ("12", "Straßenfest"))]  # fmt: skip
    assert await only_dues(tmp_path, *events, title="work party") == ["27 10:00"]
    assert await only_dues(tmp_path, *events, title="STRASSENFEST") == ["27 12:00"]
    assert await only_dues(tmp_path, *events, "DTSTART:20260327T130000Z") == [
        "27 10:00", "27 11:00", "27 12:00", "27 13:00",
    ]  # fmt: skip


@IN_THIS_PROCESS
async def test_events_that_cannot_be_used_are_left_out_with_their_line_and_the_others_count(
    tmp_path: Path,
) -> None:
    text = ics(
        "DTSTART:19990101T100000Z",  # far away: not even looked at
        "DTSTART:banana",
        "DTSTART:20260327T100000Z",
        "SUMMARY:when?",
        "DTSTART:20260327T110000Z\nRRULE:FREQ=BANANA",
        "DTSTART:20260327T120000Z\nRRULE:FREQ=SECONDLY",
        "DTSTART:20260327T120000Z\nRRULE:FREQ=MINUTELY",
    )
    dues, problems = await dues_of(tmp_path, text)
    assert dues == ["27 10:00"]
    lines = text.splitlines()
    assert [problem.partition(": ")[2] for problem in problems] == [
        "an event is left out: its DTSTART cannot be read",
        "an event is left out: it has no DTSTART",
        "an event is left out: its RRULE cannot be read",
        "an event is left out: it repeats more often than hourly",
        "an event is left out: it repeats more often than hourly",
    ]
    numbers = [int(problem.partition(":")[0].removeprefix("line ")) for problem in problems]
    assert [lines[number + 2] for number in numbers] == [
        "DTSTART:banana", "SUMMARY:when?", "DTSTART:20260327T110000Z",
        "DTSTART:20260327T120000Z", "DTSTART:20260327T120000Z",
    ]  # fmt: skip
    assert {lines[number - 1] for number in numbers} == {"BEGIN:VEVENT"}


PARTY = "DTSTART:20260327T100000Z"


@IN_THIS_PROCESS
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1: the file ends before END:VCALENDAR"),
        ("hello\n", "line 1: this is no calendar; BEGIN:VCALENDAR is expected here"),
        (ics(PARTY) + "hello", "line 10: this is no calendar"),
        (ics(PARTY)[:-17], "line 8: the file ends before END:VCALENDAR (of line 1); it is cut off"),
        (ics(f"{PARTY}\nEND:VTODO"), "line 8: END:VTODO has no BEGIN:VTODO before it"),
        (ics(PARTY, head="nonsense\n"), "line 4: it is no calendar"),
        (ics(f"{PARTY}\nSUMMARY:\xff").encode("latin-1"), "line 8: not UTF-8"),
        ("BEGIN:VCALENDAR\n" * 100_000, "line 9: more than 8 parts inside each other"),
        ("BEGIN:VEVENT\n" * 5 + "END:VEVENT\n" * 6, "line 11: END:VEVENT has no BEGIN:VEVENT before it"),
        (ics(f"{PARTY}\nX-LONG:{'y' * reader.MOST_BYTES}"), f"at most {reader.MOST_BYTES} are read"),
    ],
)  # fmt: skip
async def test_a_file_that_cannot_be_used_is_said_with_the_line(
    tmp_path: Path, text: str | bytes, said: str
) -> None:
    with pytest.raises(UnreadableCalendar) as caught:
        await dues_of(tmp_path, text)
    assert said in str(caught.value)


async def test_a_file_that_is_not_there_or_not_a_file_is_said(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.ics", tmp_path):
        one = module._Calendar(BeforeEvent("x", HOUR), path, UTC, since=NOW)
        with pytest.raises(UnreadableCalendar, match=r"it cannot be read: (No such file|Is a directory)"):
            await module._read(one, NOW)


@IN_THIS_PROCESS
async def test_two_calendars_in_one_file_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    text = ics(PARTY) + ics("DTSTART:20260328T100000Z")
    assert await dues_of(tmp_path, b"\xef\xbb\xbf" + text.encode()) == (["27 10:00", "28 10:00"], [])


@IN_THIS_PROCESS
async def test_more_events_than_anybody_has_are_cut_off_and_said(tmp_path: Path) -> None:
    events = [f"DTSTART:20260327T{n // 3600:02}{n // 60 % 60:02}{n % 60:02}Z" for n in range(600)]
    dues, problems = await dues_of(tmp_path, ics(*events))
    assert len(dues) == reader.MOST_EVENTS
    assert dues[0] == "27 00:00"
    assert "more than 500 events" in problems[0]


@pytest.mark.parametrize(
    "rule",
    ["FREQ=YEARLY;BYHOUR={};BYMINUTE={};BYSECOND={}", "FREQ=HOURLY;BYMINUTE={1};BYSECOND={2}"],
)
async def test_a_rule_that_never_ends_costs_bounded_time_and_memory(
    tmp_path: Path, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = [",".join(map(str, range(count))) for count in (24, 60, 60)]
    monkeypatch.setattr(module, "READER", limited_reader(tmp_path, cpu_seconds=1))
    began = clocks.monotonic()
    with pytest.raises(UnreadableCalendar, match=r"too (much|often)"):
        await dues_of(tmp_path, ics(f"DTSTART:19700101T000000Z\nRRULE:{rule.format(*every)}"))
    assert clocks.monotonic() - began < 40  # far less on a machine that has nothing else to do


async def test_a_reading_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READ_LIMIT_S", 1.0)
    os.mkfifo(tmp_path / "pipe.ics")  # nobody writes into it
    one = module._Calendar(BeforeEvent("x", HOUR), tmp_path / "pipe.ics", UTC, since=NOW)
    with pytest.raises(UnreadableCalendar, match="takes longer than 1 s"):
        await module._read(one, NOW)


async def test_a_reader_that_breaks_is_said_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for text, said in (("raise SystemExit('no disk')", "no disk"), ("print('hello')", "exit code 0")):
        (tmp_path / "broken.py").write_text(text, encoding="utf-8")
        monkeypatch.setattr(module, "READER", tmp_path / "broken.py")
        with pytest.raises(UnreadableCalendar, match=said):
            await dues_of(tmp_path, ics(PARTY))


async def test_without_the_packages_the_way_out_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare, code = tmp_path / "bare.py", CODE
    bare.write_text(
        f"import sys\nsys.modules['icalendar'] = None\n{code.replace('from __future__', '#')}", "utf-8"
    )
    monkeypatch.setattr(module, "READER", bare)
    with pytest.raises(UnreadableCalendar, match=r"pip install 'askfirst\[agents\]'"):
        await dues_of(tmp_path, ics(PARTY))


def limited_reader(folder: Path, cpu_seconds: int) -> Path:
    """The reader with less CPU time, so that a test of the limit does not take as long as the limit."""
    made = folder / "limited.py"
    made.write_text(
        CODE.replace(f"CPU_SECONDS = {reader.CPU_SECONDS}", f"CPU_SECONDS = {cpu_seconds}"), "utf-8"
    )
    return made


async def test_the_reader_knows_no_secret_of_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_API_KEY", "s3cret")
    teller = tmp_path / "teller.py"
    teller.write_text("import json, os; print(json.dumps({'error': ' '.join(os.environ)}))", encoding="utf-8")
    monkeypatch.setattr(module, "READER", teller)
    with pytest.raises(UnreadableCalendar) as caught:
        await dues_of(tmp_path, ics(PARTY))
    assert "PATH" in str(caught.value)
    assert "LLM_API_KEY" not in str(caught.value)


# --- from reading to firing ---


class Told:
    """What was fired, and a clock that can be set."""

    def __init__(self) -> None:
        self.fired: list[tuple[str, datetime]] = []
        self.ahead = timedelta()

    def now(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    def fire(self, agent: str, due: datetime) -> None:
        self.fired.append((agent, due))


@pytest.fixture
def told() -> Told:
    return Told()


@asynccontextmanager
async def calendars(folder: Path, told: Told, **options: Any) -> AsyncIterator[Calendars]:
    before = BeforeEvent("events.ics", options.pop("lead", HOUR), options.pop("title", ""))
    schedules = {"agent": Schedule(before=before, zone=BERLIN), "other": Schedule()}
    made = Calendars(schedules, folder, told.fire, now=told.now, **options)
    await made.start()
    try:
        yield made
    finally:
        await made.aclose()


def write(folder: Path, *moments: datetime) -> None:
    draft = folder / "draft"
    draft.write_text(ics(*map(event, moments)), encoding="utf-8")
    draft.replace(folder / "events.ics")


def whole(moment: datetime) -> datetime:
    """An event begins at a whole second."""
    return moment.replace(microsecond=0) + timedelta(seconds=1)


async def known(made: Calendars) -> None:
    """It has been read."""
    await seen(lambda: made._calendars["agent"].read_at is not None)
    await asyncio.sleep(0)
    await seen(lambda: bool(made._calendars["agent"].dues or made._calendars["agent"].problem))


async def test_an_agent_is_due_once_at_its_time_before_the_event(tmp_path: Path, told: Told) -> None:
    due = whole(told.now() + timedelta(seconds=1.5))
    write(tmp_path, due + HOUR, due + 5 * HOUR)
    async with calendars(tmp_path, told):
        await seen(lambda: bool(told.fired))
        late = told.now() - due
        assert told.fired == [("agent", due)]
        assert timedelta() <= late < timedelta(seconds=60)
        await asyncio.sleep(0.1)
        assert len(told.fired) == 1


async def test_moments_that_passed_while_the_program_was_off_are_fired_with_their_due_times(
    tmp_path: Path, told: Told
) -> None:
    past = [whole(told.now() - days * timedelta(days=1)) for days in (8, 6, 1)]
    write(tmp_path, *(each + HOUR for each in past))
    async with calendars(tmp_path, told) as made:
        await known(made)
        await seen(lambda: len(told.fired) == 2)
    assert told.fired == [("agent", past[1]), ("agent", past[2])]


@pytest.mark.parametrize(("since_days", "fired"), [(3, 1), (0.5, 0), (None, 0)])
async def test_what_an_agent_ran_for_already_is_not_fired_again(
    tmp_path: Path, told: Told, since_days: float | None, fired: int
) -> None:
    past = [whole(told.now() - days * timedelta(days=1)) for days in (6, 1)]
    write(tmp_path, *(each + HOUR for each in past))
    since = {} if since_days is None else {"agent": told.now() - timedelta(days=since_days)}
    async with calendars(tmp_path, told, since=since) as made:
        await known(made)
        await seen(lambda: made._pause() > 1)
        await asyncio.sleep(0.05)
    assert told.fired == [("agent", past[1])][:fired]


async def test_an_event_that_is_moved_or_deleted_shortly_before_is_seen(tmp_path: Path, told: Told) -> None:
    due = whole(told.now() + 2 * HOUR)
    write(tmp_path, due + HOUR)
    async with calendars(tmp_path, told) as made:
        await known(made)
        write(tmp_path, due + 3 * HOUR)
        told.ahead = 2 * HOUR + timedelta(minutes=1)  # the old moment has come; it looks before it fires
        made.clock_changed()
        await seen(lambda: made._calendars["agent"].dues == (due + 2 * HOUR,))
        await seen(lambda: made._pause() > 1)
        assert told.fired == []


async def test_a_step_of_the_clock_fires_what_has_come_and_nothing_twice(tmp_path: Path, told: Told) -> None:
    first = whole(told.now() + 2 * HOUR)
    far = first + timedelta(days=20)
    write(tmp_path, first + HOUR, far + HOUR)
    async with calendars(tmp_path, told) as made:
        await known(made)
        told.ahead = timedelta(hours=3)
        made.clock_changed()
        await seen(lambda: told.fired == [("agent", first)])
        for ahead in (timedelta(hours=-3), timedelta(hours=3)):
            told.ahead = ahead
            made.clock_changed()
            await seen(lambda: not made._wake.is_set())
            await asyncio.sleep(0.1)
        assert told.fired == [("agent", first)]
        told.ahead = timedelta(days=21)  # beyond what was read
        made.clock_changed()
        await seen(lambda: told.fired == [("agent", first), ("agent", far)])


async def test_it_sleeps_until_the_next_moment_and_ten_minutes_at_most(tmp_path: Path, told: Told) -> None:
    write(tmp_path, whole(told.now() + HOUR + timedelta(minutes=3)))
    async with calendars(tmp_path, told) as made:
        await known(made)
        assert 170 < made._pause() < 182
        write(tmp_path, told.now() + timedelta(days=3))
        made.clock_changed()
        await seen(lambda: made._calendars["agent"].dues[0] > told.now() + timedelta(days=1))
        assert made._pause() == module.LOOK_EVERY.total_seconds()


async def test_a_broken_file_is_told_once_its_old_events_stay_and_its_repair_is_told_once(
    tmp_path: Path, told: Told, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    due = whole(told.now() + 2 * HOUR)
    write(tmp_path, due + HOUR)
    async with calendars(tmp_path, told) as made:
        await known(made)
        calendar = made._calendars["agent"]
        for number in range(3):
            (tmp_path / "events.ics").write_text("BEGIN:VCALENDAR\n" + "X:y\n" * number, "utf-8")
            read_at = calendar.read_at
            made.clock_changed()
            await seen(lambda before=read_at: calendar.read_at != before)  # type: ignore[misc]
        await seen(lambda: bool(calendar.problem))
        assert calendar.dues == (due,)
        told.ahead = 2 * HOUR + timedelta(minutes=1)
        made.clock_changed()
        await seen(lambda: told.fired == [("agent", due)])
        write(tmp_path, due + 9 * HOUR)
        made.clock_changed()
        await seen(lambda: calendar.problem == "")
    messages = [record.message for record in caplog.records if record.name == module.__name__]
    assert all("events that were known before stay" in each for each in messages[:-1])
    assert "it is cut off" in messages[0]
    assert messages[-1] == f"calendar {tmp_path / 'events.ics'} can be read again"
    assert all(before != after for before, after in pairwise(messages))


async def test_the_same_problem_is_told_once(
    tmp_path: Path, told: Told, caplog: pytest.LogCaptureFixture
) -> None:
    async with calendars(tmp_path, told) as made:
        await known(made)
        for _ in range(3):
            told.ahead += timedelta(days=2)  # so that it is read again
            read_at = made._calendars["agent"].read_at
            made.clock_changed()
            await seen(lambda before=read_at: made._calendars["agent"].read_at != before)  # type: ignore[misc]
    messages = [record.message for record in caplog.records if record.name == module.__name__]
    assert len(messages) == 1
    assert "No such file" in messages[0]


async def test_a_clock_beyond_all_years_is_a_problem_and_not_the_end(
    tmp_path: Path, told: Told, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, whole(told.now() + 2 * HOUR))
    told.ahead = datetime(9999, 12, 30, tzinfo=UTC) - datetime.now(UTC)
    async with calendars(tmp_path, told) as made:
        await known(made)
        await seen(lambda: "beyond the years" in made._calendars["agent"].problem)
        told.ahead = timedelta()
        made.clock_changed()
        await seen(lambda: len(made._calendars["agent"].dues) == 1)


async def test_it_ends_during_a_reading_and_leaves_no_process_behind(
    tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid_file = tmp_path / "pid"
    sleeper = tmp_path / "sleeper.py"
    sleeper.write_text(
        "import os, time, pathlib\n"
        f"pathlib.Path({str(pid_file)!r}).write_text(str(os.getpid()))\ntime.sleep(600)",
        encoding="utf-8",
    )
    monkeypatch.setattr(module, "READER", sleeper)
    async with calendars(tmp_path, told):
        await seen(lambda: pid_file.exists() and pid_file.read_text() != "")
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


async def test_nothing_runs_without_a_calendar(tmp_path: Path, told: Told) -> None:
    made = Calendars({"agent": Schedule()}, tmp_path, told.fire)
    await made.start()
    assert made._task is None
    await made.aclose()
