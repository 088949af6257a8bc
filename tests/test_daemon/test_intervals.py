"""Intervals: how many an agent has let pass since its last success."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from agents.schedule import At, Cron, Every, Schedule
from daemon.intervals import Intervals

MONDAY = datetime(2026, 3, 2, 8, tzinfo=UTC)
HOUR = timedelta(hours=1)
WORKING_DAYS = Schedule(timed=(Cron("0 8 * * mon-fri", UTC),))


def test_of_a_fixed_interval_it_is_the_time_divided_by_it() -> None:
    counted = Intervals(Schedule(timed=(Every(2 * HOUR),)), MONDAY)
    for hours in (0, 1, 2, 7, 7.5):
        assert counted.passed(MONDAY + hours * HOUR) == hours / 2


def test_the_days_on_which_a_calendar_does_not_want_it_do_not_count() -> None:
    friday = MONDAY + timedelta(days=4, seconds=30)
    counted = Intervals(WORKING_DAYS, friday)
    sunday, monday = friday + timedelta(days=2), MONDAY + timedelta(days=7)
    assert counted.passed(sunday) == pytest.approx(2 / 3, abs=0.01)
    assert counted.passed(monday) == 1.0
    assert counted.passed(monday + timedelta(days=2.5)) == 3.5


def test_what_was_counted_step_by_step_is_what_is_counted_at_once() -> None:
    zone = ZoneInfo("Europe/Berlin")
    schedule = Schedule(timed=(Cron("*/20 * * * *", zone), Cron("0 3 * * *", zone)))
    often = Intervals(schedule, MONDAY)
    for minutes in range(0, 60 * 40, 7):  # beyond a night
        moment = MONDAY + timedelta(minutes=minutes)
        passed = often.passed(moment)
        assert passed == Intervals(schedule, MONDAY).passed(moment)
    assert passed == pytest.approx(3 * 40, abs=2)


def test_a_clock_that_is_set_back_is_followed() -> None:
    counted = Intervals(Schedule(timed=(Every(HOUR),)), MONDAY)
    assert counted.passed(MONDAY + 50 * HOUR) == 50
    assert counted.passed(MONDAY + 3 * HOUR) == 3
    assert counted.passed(MONDAY - HOUR) == 0  # the success was recorded by a clock that was ahead
    assert counted.passed(MONDAY + 4 * HOUR) == 4


def test_moments_that_are_over_leave_what_was_missed_of_them() -> None:
    moments = At((MONDAY + HOUR, MONDAY + 2 * HOUR))
    counted = Intervals(Schedule(timed=(moments,)), MONDAY)
    assert counted.passed(MONDAY + 0.5 * HOUR) == 0.5
    assert counted.passed(MONDAY + 99 * HOUR) == 2.0
    assert Intervals(Schedule(timed=(moments,)), MONDAY + 3 * HOUR).passed(MONDAY + 4 * HOUR) is None


def test_it_is_not_due_by_the_clock_where_only_events_bring_it() -> None:
    assert Intervals(Schedule(webhook=True), MONDAY).passed(MONDAY + HOUR) is None
