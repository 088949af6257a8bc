"""Days, hours and dates: what people write is understood or refused, and what two have in common is right."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.builtin.matchmaker.windows import BadWindow, Slot, Window, parse_moment, parse_times

WEDNESDAY_NOON = datetime(2026, 5, 20, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mon-fri 9-12", "Monday to Friday 09:00-12:00"),
        ("Sat 10:00-13:00; Sun", "Saturday 10:00-13:00; Sunday"),
        ("lunes a viernes por la tarde", "Monday to Friday 15:00-20:00"),
        ("weekends 10am-1pm", "Saturday, Sunday 10:00-13:00"),
        ("L-V 17:00-20:00", "Monday to Friday 17:00-20:00"),
        ("todos los días", "every day"),
        ("sáb y dom de 10 a 13", "Saturday, Sunday 10:00-13:00"),
        ("tue, thu 16:00-18:00, 19-20", "Tuesday, Thursday 16:00-18:00; Tuesday, Thursday 19:00-20:00"),
        ("fri-mon", "Monday, Friday, Saturday, Sunday"),
        ("9-12", "every day 09:00-12:00"),
        ("mon 10-2pm", "Monday 10:00-14:00"),
        ("sábados 10h-12h", "Saturday 10:00-12:00"),
        ("Mondays and Wednesdays from 9 to 11", "Monday, Wednesday 09:00-11:00"),
        ("", "any time"),
    ],
)
def test_days_and_hours_are_understood_in_both_languages(text: str, expected: str) -> None:
    assert Window(slots=parse_times(text)).text(UTC) == expected


@pytest.mark.parametrize(
    "text", ["whenever", "mon-", "22:00-02:00", "9:75-10", "25-26", "after lunch on mon", "-fri"]
)
def test_what_is_not_understood_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(BadWindow, match="for example"):
        parse_times(text)


def test_a_date_means_the_whole_local_day() -> None:
    madrid = ZoneInfo("Europe/Madrid")
    assert parse_moment("2031-05-03", madrid) == datetime(2031, 5, 2, 22, tzinfo=UTC)
    assert parse_moment("2031-05-03", madrid, end=True) == datetime(2031, 5, 3, 22, tzinfo=UTC)
    assert parse_moment("2031-05-03 14:30", madrid, end=True) == datetime(2031, 5, 3, 12, 30, tzinfo=UTC)
    assert parse_moment("2031-05-03T14:30+00:00", madrid) == datetime(2031, 5, 3, 14, 30, tzinfo=UTC)
    assert parse_moment(" ", UTC) is None


@pytest.mark.parametrize("text", ["03/05/2031", "soon", "2031-13-01", "mayo"])
def test_a_date_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(BadWindow, match="write 2031-05-03"):
        parse_moment(text, UTC)


def test_two_windows_have_in_common_what_lies_in_both() -> None:
    one = Window(end=WEDNESDAY_NOON + timedelta(days=9), slots=parse_times("mon-fri 9-12"))
    other = Window(start=WEDNESDAY_NOON, slots=parse_times("thu 11-15; sat"))
    common = one.common(other)
    assert common == Window(WEDNESDAY_NOON, WEDNESDAY_NOON + timedelta(days=9), (Slot(3, 11 * 60, 12 * 60),))
    assert common is not None
    assert common.text(UTC) == "Thursday 11:00-12:00, from 2026-05-20 12:00, until 2026-05-29 11:59"


def test_windows_that_only_touch_have_nothing_in_common() -> None:
    assert Window(slots=parse_times("mon 9-12")).common(Window(slots=parse_times("mon 12-14"))) is None
    assert Window(end=WEDNESDAY_NOON).common(Window(start=WEDNESDAY_NOON)) is None


@pytest.mark.parametrize(
    ("start", "end", "times", "still"),
    [
        (None, None, "", True),
        (None, -1, "", False),
        (None, 1, "", True),
        (None, 1, "mon", False),  # until Thursday noon, Mondays only
        (None, 1, "thu 9-11", True),
        (None, 1, "thu 13-15", False),
        (None, 1, "wed 9-11", False),  # that was this morning
        (None, None, "wed 9-11", True),  # next week again
        (30, 31, "fri", True),
        (30, 30.5, "mon", False),
    ],
)
def test_a_window_is_over_when_none_of_its_moments_is_to_come(
    start: float | None, end: float | None, times: str, still: bool
) -> None:
    moments = [None if days is None else WEDNESDAY_NOON + timedelta(days=days) for days in (start, end)]
    window = Window(moments[0], moments[1], parse_times(times))
    assert window.happens_after(WEDNESDAY_NOON, UTC) is still


SLOTS = st.builds(
    lambda day, start, length: Slot(day, start, min(start + length, 1440)),
    st.integers(0, 6),
    st.integers(0, 1439),
    st.integers(1, 600),
)


@given(st.lists(SLOTS, max_size=5), st.lists(SLOTS, max_size=5), st.integers(0, 6), st.integers(0, 1439))
def test_a_moment_is_in_the_common_window_exactly_when_it_is_in_both(
    one: list[Slot], other: list[Slot], day: int, minute: int
) -> None:
    def has(window: Window | None) -> bool:
        if window is None:
            return False
        return not window.slots or any(s.day == day and s.start <= minute < s.end for s in window.slots)

    windows = Window(slots=tuple(one)), Window(slots=tuple(other))
    assert has(windows[0].common(windows[1])) == (has(windows[0]) and has(windows[1]))
