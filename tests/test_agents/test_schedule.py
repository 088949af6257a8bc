"""When an agent is due, by every kind of schedule, through daylight saving and over long absences."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, time, timedelta, tzinfo
from itertools import pairwise, takewhile
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.durations import LONGEST
from agents.schedule import (
    MOST_COUNTED,
    At,
    BeforeEvent,
    Cron,
    Dues,
    Every,
    QuietWindow,
    Schedule,
    Timed,
    at_moments,
    is_never_loud,
    local_zone,
    parse_cron,
    parse_quiet,
    parse_zone,
)

BERLIN = ZoneInfo("Europe/Berlin")
LORD_HOWE = ZoneInfo("Australia/Lord_Howe")  # shifts by half an hour
SANTIAGO = ZoneInfo("America/Santiago")  # shifts at midnight
ZONES = (BERLIN, LORD_HOWE, SANTIAGO, UTC)
HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[arg-type,misc]


def listed(timed: Timed, after: datetime, until: datetime) -> list[datetime]:
    """Every due time of a span, one at a time."""

    def each() -> Iterator[datetime]:
        due = timed.due_after(after, after)
        while due is not None:
            yield due
            due = timed.due_after(due, due)

    return list(takewhile(lambda due: due <= until, each()))


def on_the_wall(expression: str, zone: tzinfo, after: datetime, count: int) -> list[str]:
    cron, found = Cron(expression, zone), [after]
    for _ in range(count):
        due = cron.due_after(found[-1], found[-1])
        assert due is not None
        found.append(due)
    return [due.astimezone(zone).strftime("%d %H:%M %z") for due in found[1:]]


# --- every ---


def test_an_interval_counts_from_the_due_time_of_before() -> None:
    every = Every(HOUR)
    previous = utc(2026, 5, 1, 12, 7)
    assert every.due_after(previous, previous) == previous + HOUR
    assert every.due_after(previous, previous + 3 * HOUR + MINUTE) == previous + 4 * HOUR
    assert every.due_after(previous, previous + 3 * HOUR) == previous + 4 * HOUR  # now itself has come
    assert every.due_after(previous, previous - 9 * HOUR) == previous + HOUR


def test_the_intervals_of_sixty_years_are_computed_and_not_listed() -> None:
    every, previous, now = Every(timedelta(seconds=1)), utc(1970, 1, 1), utc(2030, 1, 1)
    assert every.due_after(previous, now) == now + timedelta(seconds=1)
    count = int((now - previous).total_seconds())
    assert every.between(previous, now) == Dues(previous + timedelta(seconds=1), now, count)


def test_an_interval_that_has_not_passed_leaves_nothing_behind() -> None:
    previous = utc(2026, 5, 1)
    assert Every(HOUR).between(previous, previous + HOUR - timedelta(microseconds=1)) is None
    assert Every(HOUR).between(previous, previous - 5 * HOUR) is None
    assert Every(HOUR).between(previous, previous + HOUR) == Dues(previous + HOUR, previous + HOUR, 1)


def test_an_interval_beyond_the_last_year_is_never_due() -> None:
    last = datetime.max.replace(tzinfo=UTC)
    assert Every(LONGEST).due_after(last - HOUR, last) is None


# --- cron ---

NIGHT_BEFORE = {
    ("spring", BERLIN): utc(2026, 3, 28, 23, 30),  # 00:30, the clock jumps from 02:00 to 03:00
    ("autumn", BERLIN): utc(2026, 10, 24, 22, 30),  # 00:30, 02:00 to 03:00 comes twice
    ("spring", LORD_HOWE): utc(2026, 10, 3, 14, 0),  # 00:30, from 02:00 to 02:30
    ("autumn", LORD_HOWE): utc(2026, 4, 4, 13, 30),  # 00:30, 01:30 to 02:00 comes twice
    ("spring", SANTIAGO): utc(2026, 9, 6, 1, 30),  # 21:30 of the 5th, from 00:00 to 01:00
    ("autumn", SANTIAGO): utc(2026, 4, 5, 1, 30),  # 22:30 of the 4th, 23:00 to 24:00 comes twice
}


@pytest.mark.parametrize(
    ("season", "zone", "expression", "dues"),
    [
        # What falls into the hour that is left out comes right after it, once.
        ("spring", BERLIN, "30 2 * * *", ["29 03:00 +0200", "30 02:30 +0200"]),
        ("spring", BERLIN, "15,45 2 * * *", ["29 03:00 +0200", "30 02:15 +0200"]),
        ("spring", BERLIN, "30 2,3 * * *", ["29 03:00 +0200", "29 03:30 +0200", "30 02:30 +0200"]),
        ("spring", BERLIN, "0 2,3 * * *", ["29 03:00 +0200", "30 02:00 +0200"]),
        # With a star it comes when the clock on the wall shows it.
        ("spring", BERLIN, "30 * * * *", ["29 01:30 +0100", "29 03:30 +0200"]),
        ("spring", BERLIN, "*/20 2-3 * * *", ["29 03:00 +0200", "29 03:20 +0200"]),
        # What falls into the hour that comes twice comes once, and with a star twice.
        ("autumn", BERLIN, "30 2 * * *", ["25 02:30 +0200", "26 02:30 +0100"]),
        ("autumn", BERLIN, "0,30 2 * * *", ["25 02:00 +0200", "25 02:30 +0200", "26 02:00 +0100"]),
        ("autumn", BERLIN, "30 * * * *", [
            "25 01:30 +0200", "25 02:30 +0200", "25 02:30 +0100", "25 03:30 +0100",
        ]),
        ("autumn", BERLIN, "*/30 2 * * *", [
            "25 02:00 +0200", "25 02:30 +0200", "25 02:00 +0100", "25 02:30 +0100", "26 02:00 +0100",
        ]),
        ("autumn", BERLIN, "0 3 * * *", ["25 03:00 +0100"]),
        ("spring", LORD_HOWE, "15 2 * * *", ["04 02:30 +1100", "05 02:15 +1100"]),
        ("spring", LORD_HOWE, "*/15 2-3 * * *", ["04 02:30 +1100", "04 02:45 +1100", "04 03:00 +1100"]),
        ("spring", LORD_HOWE, "*/30 5 * * *", ["04 05:00 +1100", "04 05:30 +1100", "05 05:00 +1100"]),
        ("autumn", LORD_HOWE, "45 1 * * *", ["05 01:45 +1100", "06 01:45 +1030"]),
        ("autumn", LORD_HOWE, "*/15 1 * * *", [
            "05 01:00 +1100", "05 01:15 +1100", "05 01:30 +1100", "05 01:45 +1100",
            "05 01:30 +1030", "05 01:45 +1030", "06 01:00 +1030",
        ]),
        ("autumn", LORD_HOWE, "* 3 * * *", ["05 03:00 +1030", "05 03:01 +1030"]),
        ("spring", SANTIAGO, "0 0 * * *", ["06 01:00 -0300", "07 00:00 -0300"]),
        ("spring", SANTIAGO, "30 0 * * *", ["06 01:00 -0300", "07 00:30 -0300"]),
        ("spring", SANTIAGO, "0 * * * *", ["05 22:00 -0400", "05 23:00 -0400", "06 01:00 -0300"]),
        ("autumn", SANTIAGO, "30 23 * * *", ["04 23:30 -0300", "05 23:30 -0400"]),
        ("autumn", SANTIAGO, "0 0 * * *", ["05 00:00 -0400"]),
    ],
)  # fmt: skip
def test_cron_goes_through_daylight_saving_as_debians_cron_does(
    season: str, zone: ZoneInfo, expression: str, dues: list[str]
) -> None:
    assert on_the_wall(expression, zone, NIGHT_BEFORE[season, zone], len(dues)) == dues


FIELDS = st.sampled_from(["*", "*/7", "*/15", "*/30", "0", "30", "13,47", "5-9"])
HOURS = st.sampled_from(["*", "*/2", "*/5", "0", "1", "2", "3", "1-3", "2,14", "23"])


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from(ZONES),
    FIELDS,
    HOURS,
    st.sampled_from(sorted(NIGHT_BEFORE.values())),
    st.integers(0, 6 * 3600),
)
def test_where_the_counting_begins_does_not_change_what_comes(
    zone: tzinfo, minute: str, hour: str, night: datetime, seconds: int
) -> None:
    cron, end = Cron(f"{minute} {hour} * * *", zone), night + timedelta(hours=30)
    whole = listed(cron, night, end)
    assert all(before < after for before, after in pairwise(whole))
    begin = night + timedelta(seconds=seconds)
    assert listed(cron, begin, end) == [due for due in whole if due > begin]


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(ZONES), FIELDS, HOURS, st.sampled_from(sorted(NIGHT_BEFORE.values())))
def test_with_a_star_cron_is_due_at_each_minute_that_the_clock_shows(
    zone: tzinfo, minute: str, hour: str, night: datetime
) -> None:
    if "*" not in (minute[0], hour[0]):
        hour = "*"
    cron = Cron(f"{minute} {hour} * * *", zone)
    plain = Cron(f"{minute} {hour} * * *", UTC)  # has no daylight saving, so it says which clock times match
    day = utc(2026, 1, 1)
    shown = {due.time() for due in listed(plain, day - MINUTE, day + timedelta(days=1) - MINUTE)}
    minutes = [night + each * MINUTE for each in range(1, 24 * 60)]
    expected = [each for each in minutes if each.astimezone(zone).time() in shown]
    assert listed(cron, night, minutes[-1]) == expected


def test_between_finds_the_first_and_the_newest_however_many_there_are() -> None:
    cron, previous = Cron("*/5 * * * *", UTC), utc(2026, 1, 1)
    newest = previous + MOST_COUNTED * 5 * MINUTE
    first = previous + 5 * MINUTE
    assert cron.between(previous, newest) == Dues(first, newest, MOST_COUNTED)
    assert cron.between(previous, newest - MINUTE) == Dues(first, newest - 5 * MINUTE, MOST_COUNTED - 1)
    years_later = utc(2056, 1, 1, 0, 3)
    assert cron.between(previous, years_later) == Dues(first, utc(2056, 1, 1), MOST_COUNTED)
    assert cron.between(previous, previous + 4 * MINUTE) is None


@pytest.mark.parametrize(
    ("expression", "newest"),
    [
        ("0 * * * *", utc(2055, 6, 15, 12)),
        ("30 4 * * *", utc(2055, 6, 15, 4, 30)),
        ("0 0 1 * *", utc(2055, 6, 1)),
        ("0 0 1 1 *", utc(2055, 1, 1)),
    ],
)
def test_the_newest_of_a_rare_time_is_found_too(expression: str, newest: datetime) -> None:
    # From 1900 there are far more than MOST_COUNTED of each but the last, of which there are 155.
    dues = Cron(expression, UTC).between(utc(1900, 1, 1), utc(2055, 6, 15, 12, 10))
    assert dues is not None
    assert dues.last == newest
    assert dues.count == (155 if expression.endswith("1 1 *") else MOST_COUNTED)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(ZONES), FIELDS, HOURS, st.sampled_from(sorted(NIGHT_BEFORE.values())), st.integers(0, 900)
)
def test_between_is_what_a_listing_finds(
    zone: tzinfo, minute: str, hour: str, night: datetime, minutes: int
) -> None:
    cron, now = Cron(f"{minute} {hour} * * *", zone), night + minutes * MINUTE
    found = listed(cron, night, now)
    assert cron.between(night, now) == (Dues(found[0], found[-1], len(found)) if found else None)


def test_a_day_that_comes_every_four_years_is_found() -> None:
    leap = Cron("0 0 29 2 *", UTC)
    assert leap.due_after(utc(2026, 1, 1), utc(2026, 1, 1)) == utc(2028, 2, 29)
    assert leap.due_after(utc(2096, 3, 1), utc(2096, 3, 1)) == utc(2104, 2, 29)


def test_cron_beyond_the_last_year_is_never_due() -> None:
    last = datetime.max.replace(tzinfo=UTC)
    for zone in ZONES:
        assert Cron("0 0 1 1 *", zone).due_after(last, last) is None
        assert Cron("* * * * *", zone).between(last, last) is None


# --- at ---


def test_a_moment_is_due_once() -> None:
    one, other = utc(2026, 12, 24, 18), utc(2026, 12, 31, 23)
    at = At((one, other))
    assert at.due_after(utc(2020, 1, 1), utc(2026, 1, 1)) == one
    assert at.due_after(one, one) == other
    assert at.due_after(other, other) is None
    assert at.between(utc(2026, 1, 1), utc(2026, 12, 25)) == Dues(one, one, 1)
    assert at.between(utc(2026, 1, 1), other) == Dues(one, other, 2)
    assert at.between(one, other - MINUTE) is None


def test_times_of_day_and_moments_are_meant_in_the_zone_and_a_moment_twice_counts_once() -> None:
    values = [datetime.fromisoformat("2026-07-01 09:00"), utc(2026, 7, 1, 7)]
    values += [time(7, 30), time(7, 30), time(6, tzinfo=UTC)]
    found = at_moments(values, BERLIN)
    assert found == (At((utc(2026, 7, 1, 7),)), Cron("30 7 * * *", BERLIN), Cron("0 6 * * *", UTC))
    assert at_moments([], BERLIN) == ()
    schedule = Schedule(timed=found)
    now = utc(2026, 6, 30, 12)
    dues: list[datetime] = []
    while len(dues) < 4:
        due = schedule.due_after(now, now)
        assert due is not None
        dues.append(due)
        now = due
    assert dues == [utc(2026, 7, 1, 5, 30), utc(2026, 7, 1, 6), utc(2026, 7, 1, 7), utc(2026, 7, 2, 5, 30)]


# --- all kinds ---

MOMENTS = st.integers(0, 2**32).map(lambda seconds: datetime.fromtimestamp(seconds, UTC))
KINDS = st.one_of(
    st.builds(Every, st.timedeltas(timedelta(seconds=1), LONGEST)),
    st.builds(
        Cron,
        st.sampled_from(["0 7 * * mon-fri", "*/10 * * * *", "0 0 1 * *", "30 2 * * *"]),
        st.sampled_from(ZONES),
    ),
    st.lists(MOMENTS, min_size=1, max_size=4, unique=True).map(lambda found: At(tuple(sorted(found)))),
)  # fmt: skip


@settings(deadline=None)
@given(KINDS, MOMENTS, MOMENTS)
def test_what_is_due_is_always_in_the_future(timed: Timed, previous: datetime, now: datetime) -> None:
    due = timed.due_after(previous, now)
    assert due is None or due > now


@settings(deadline=None)
@given(KINDS, MOMENTS, MOMENTS)
def test_what_has_come_lies_between_and_nothing_comes_after_its_newest(
    timed: Timed, previous: datetime, now: datetime
) -> None:
    dues = timed.between(previous, now)
    if dues is None:
        due = timed.due_after(previous, previous)
        assert now <= previous or due is None or due > now
    else:
        assert previous < dues.first <= dues.last <= now
        assert dues.count >= 1
        assert timed.between(dues.last, now) is None


def test_several_kinds_together_are_due_at_the_first_and_counted_together() -> None:
    schedule = Schedule(timed=(Every(HOUR), At((utc(2026, 5, 1, 12, 30),))))
    noon = utc(2026, 5, 1, 12)
    assert schedule.due_after(noon, noon) == noon + 30 * MINUTE
    assert schedule.between(noon, noon + 2 * HOUR) == Dues(noon + 30 * MINUTE, noon + 2 * HOUR, 3)
    assert schedule.interval == HOUR
    assert Schedule().due_after(noon, noon) is None
    assert Schedule().between(noon, noon + HOUR) is None
    assert Schedule().interval is None


def test_a_schedule_says_itself_in_words() -> None:
    schedule = Schedule(
        timed=(Every(90 * MINUTE), Cron("0 7 * * *", BERLIN), At((utc(2026, 12, 24, 18),))),
        after=("first", "second"),
        watch=("inbox", "*.csv"),
        webhook=True,
        before=BeforeEvent("events.ics", 2 * HOUR, "party"),
    )
    assert str(schedule) == (
        "every 1h30m; cron 0 7 * * * (Europe/Berlin); at 2026-12-24 18:00+00:00; after first, second; "
        "when inbox, *.csv changes; on a webhook; 2h before events like 'party' of events.ics"
    )
    assert str(Schedule(before=BeforeEvent("a.ics", HOUR))) == "1h before each event of a.ics"
    assert str(Schedule()) == "only by hand"


# --- quiet windows ---


def quiet(*windows: str, zone: tzinfo = UTC) -> Schedule:
    return Schedule(quiet=tuple(map(parse_quiet, windows)), zone=zone)


def test_a_window_over_midnight_belongs_to_the_day_on_which_it_begins() -> None:
    friday = quiet("fri 22:00-07:00")  # 2026-05-01 is a Friday
    assert friday.quiet_until(utc(2026, 5, 1, 21, 59)) is None
    assert friday.quiet_until(utc(2026, 5, 1, 22)) == utc(2026, 5, 2, 7)
    assert friday.quiet_until(utc(2026, 5, 2, 6, 59)) == utc(2026, 5, 2, 7)
    assert friday.quiet_until(utc(2026, 5, 2, 7)) is None
    assert friday.quiet_until(utc(2026, 5, 2, 22)) is None
    assert friday.quiet_until(utc(2026, 5, 1, 3)) is None


def test_adjoining_windows_are_one() -> None:
    weekend = quiet("sat,sun 00:00-24:00", "22:00-07:00")
    assert weekend.quiet_until(utc(2026, 5, 1, 23)) == utc(2026, 5, 4, 7)
    assert weekend.quiet_until(utc(2026, 5, 4, 7)) is None
    assert quiet("09:00-10:00", "10:00-11:00", "11:00-12:00").quiet_until(utc(2026, 5, 1, 9)) == utc(
        2026, 5, 1, 12
    )


def test_the_same_window_on_five_days_is_one_too() -> None:
    assert quiet("mon-fri 00:00-24:00").quiet_until(utc(2026, 5, 4)) == utc(2026, 5, 9)


def test_a_window_without_an_end_on_its_day_lasts_a_whole_day() -> None:
    assert quiet("wed 12:00-12:00").quiet_until(utc(2026, 5, 6, 12)) == utc(2026, 5, 7, 12)
    assert quiet("wed 12:00-12:00").quiet_until(utc(2026, 5, 7, 12)) is None


def test_a_window_follows_the_clock_on_the_wall_through_daylight_saving() -> None:
    night = quiet("22:00-07:00", zone=BERLIN)
    assert night.quiet_until(utc(2026, 3, 28, 21)) == utc(2026, 3, 29, 5)  # 07:00 is an hour earlier
    assert night.quiet_until(utc(2026, 10, 24, 20)) == utc(2026, 10, 25, 6)  # and later again
    assert (
        quiet("02:15-02:45", zone=BERLIN).quiet_until(utc(2026, 3, 29, 1)) is None
    )  # that night has no 02:30


def test_in_the_hour_that_comes_twice_a_window_is_quiet_twice_and_ends_in_the_future() -> None:
    night = quiet("22:00-02:30", zone=BERLIN)
    assert night.quiet_until(utc(2026, 10, 25, 0, 10)) == utc(2026, 10, 25, 0, 30)  # 02:10, summer time
    assert night.quiet_until(utc(2026, 10, 25, 0, 40)) is None
    assert night.quiet_until(utc(2026, 10, 25, 1, 10)) == utc(2026, 10, 25, 1, 30)  # 02:10 again
    assert night.quiet_until(utc(2026, 10, 25, 1, 40)) is None


WINDOWS = st.builds(
    QuietWindow,
    st.frozensets(st.integers(0, 6), min_size=1),
    st.integers(0, 24 * 60 - 1),
    st.integers(0, 24 * 60),
)
AROUND = st.one_of(
    MOMENTS,
    st.builds(
        lambda night, seconds: night + timedelta(seconds=seconds),
        st.sampled_from(sorted(NIGHT_BEFORE.values())),
        st.integers(0, 8 * 3600),
    ),
)


@settings(deadline=None, max_examples=300)
@given(st.lists(WINDOWS, min_size=1, max_size=4), st.sampled_from(ZONES), AROUND)
def test_the_end_of_quiet_time_is_later_and_outside(
    windows: list[QuietWindow], zone: tzinfo, moment: datetime
) -> None:
    schedule = Schedule(quiet=tuple(windows), zone=zone)
    end = schedule.quiet_until(moment)
    if end is None:
        local = moment.astimezone(zone)
        assert all(window.until(local) is None for window in windows)
        return
    assert end > moment
    if not is_never_loud(windows):
        assert schedule.quiet_until(end) is None


def test_windows_that_leave_no_minute_are_known() -> None:
    assert is_never_loud([parse_quiet("00:00-24:00")])
    assert is_never_loud([parse_quiet("22:00-07:00"), parse_quiet("07:00-22:00")])
    assert is_never_loud([parse_quiet("mon-sat 12:00-12:00"), parse_quiet("sun 12:00-12:00")])
    assert not is_never_loud([parse_quiet("22:00-07:00"), parse_quiet("07:01-22:00")])
    assert not is_never_loud([parse_quiet("mon-sat 00:00-24:00")])
    assert not is_never_loud([])


# --- what people write ---


@pytest.mark.parametrize(
    ("text", "days", "start", "end", "shown"),
    [
        ("22:00-07:00", range(7), 22 * 60, 7 * 60, "22:00-07:00"),
        (" 7:05 - 8:00 ", range(7), 425, 480, "07:05-08:00"),
        ("sat,sun 00:00-24:00", (5, 6), 0, 1440, "sat,sun 00:00-24:00"),
        ("Mon-Fri 12:00-13:00", range(5), 720, 780, "mon,tue,wed,thu,fri 12:00-13:00"),
        ("fri-mon, wed 12:00-13:00", (0, 2, 4, 5, 6), 720, 780, "mon,wed,fri,sat,sun 12:00-13:00"),
    ],
)
def test_a_quiet_window_is_read_and_written(text: str, days: range, start: int, end: int, shown: str) -> None:
    window = parse_quiet(text)
    assert window == QuietWindow(frozenset(days), start, end)
    assert str(window) == shown
    assert parse_quiet(shown) == window


@pytest.mark.parametrize(
    "text",
    ["", "22-07", "22:00", "22:00-25:00", "24:00-07:00", "22:60-07:00", "22:00-07:00-09:00",
     "day 22:00-07:00",
     "mon- 22:00-07:00", "mon-tue-wed 22:00-07:00", ", 22:00-07:00", "٢٢:00-07:00"],
)  # fmt: skip
def test_what_is_no_quiet_window_is_named_and_the_form_is_shown(text: str) -> None:
    with pytest.raises(ValueError, match="22:00-07:00") as caught:
        parse_quiet(text)
    assert repr(text.lower()) in str(caught.value) or repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("* * * *", "needs five fields"),
        ("0 0 * * * *", "needs five fields"),
        ("@daily", "needs five fields"),
        ("61 * * * *", "bad minute"),
        ("0 24 * * *", "bad hour"),
        ("0 0 30 2 *", "bad day-of-month"),
        ("0 0 * * noday", "bad day-of-week"),
        ("", "needs five fields"),
    ],
)
def test_what_is_no_cron_expression_is_named_with_the_field(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        parse_cron(text)
    assert repr(text) in str(caught.value)
    assert "0 7 * * mon-fri" in str(caught.value)


def test_blanks_of_a_cron_expression_are_evened_out() -> None:
    assert parse_cron("  0   7 *\t* mon-fri ") == "0 7 * * mon-fri"


@pytest.mark.parametrize(
    "name", ["", "Berlin", "Europe", "../../etc/passwd", "Europe/Berlin\0", "/etc/localtime"]
)
def test_what_is_no_time_zone_is_named(name: str) -> None:
    with pytest.raises(ValueError, match="Europe/Berlin") as caught:
        parse_zone(name)
    assert repr(name) in str(caught.value)


def test_a_zone_is_read_and_the_machines_own_has_rules() -> None:
    assert parse_zone("Europe/Berlin") == BERLIN
    assert utc(2026, 1, 1).astimezone(local_zone()).utcoffset() is not None
