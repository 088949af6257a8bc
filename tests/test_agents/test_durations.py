"""Durations as people write them."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.durations import LONGEST, format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("15m", timedelta(minutes=15)),
        ("1h30m", timedelta(minutes=90)),
        ("90s", timedelta(seconds=90)),
        ("2d", timedelta(days=2)),
        ("1w", timedelta(weeks=1)),
        ("500ms", timedelta(milliseconds=500)),
        ("1.5h", timedelta(minutes=90)),
        ("1d 2h 3m 4s 5ms", timedelta(days=1, hours=2, minutes=3, seconds=4, milliseconds=5)),
        ("  1 H 30 M ", timedelta(minutes=90)),
        ("0s", timedelta()),
        ("45", timedelta(seconds=45)),
        (45, timedelta(seconds=45)),
        (0.25, timedelta(milliseconds=250)),
        (0, timedelta()),
        (1e-7, timedelta()),
        ("3650d", LONGEST),
    ],
)
def test_a_duration_is_read(text: str | float, duration: timedelta) -> None:
    assert parse_duration(text) == duration


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "soon", "15 minutes", "m", "1h1h", "5m1h", "-5m", "-5", -5, "+5m", "1e3", "1,5h", "1.h",
        ".5h", "1:30", "١٥m", "15m\n5", True, None, [], float("nan"), float("inf"), 10**20, b"15m",
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_no_duration_is_named_and_the_forms_are_shown(text: object) -> None:
    with pytest.raises(ValueError, match="1h30m") as caught:
        parse_duration(text)  # type: ignore[arg-type]
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("text", ["3651d", "999999999999w", 999_999_999_999])
def test_a_duration_beyond_ten_years_is_refused(text: str | int) -> None:
    with pytest.raises(ValueError, match="longest duration is 3650d"):
        parse_duration(text)


def test_the_longest_duration_can_be_added_to_any_date_of_this_century() -> None:
    assert datetime(2099, 12, 31) + LONGEST > datetime(2099, 12, 31)  # noqa: DTZ001 - about the range only


@pytest.mark.parametrize(
    ("duration", "text"),
    [
        (timedelta(), "0s"),
        (timedelta(minutes=90), "1h30m"),
        (timedelta(days=10), "10d"),
        (timedelta(seconds=61, milliseconds=5), "1m1s5ms"),
        (timedelta(minutes=-5), "-5m"),
        (timedelta(microseconds=-4), "0s"),
        (timedelta(microseconds=999_600), "1s"),
    ],
)
def test_a_duration_is_written_as_it_is_read(duration: timedelta, text: str) -> None:
    assert format_duration(duration) == text


@given(st.integers(0, int(LONGEST.total_seconds() * 1000)))
def test_what_was_written_reads_as_the_same_duration(milliseconds: int) -> None:
    duration = timedelta(milliseconds=milliseconds)
    assert parse_duration(format_duration(duration)) == duration


@given(st.text(alphabet="0123456789.wdhms -", max_size=12))
def test_any_text_is_a_duration_or_an_error(text: str) -> None:
    with suppress(ValueError):
        assert timedelta() <= parse_duration(text) <= LONGEST
