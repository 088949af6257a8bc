"""When an interval is due, over clocks that are set, and machines that sleep."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.clock import LONGEST_SPREAD, ClockWatch, first_due, real_seconds, spread_of

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
QUARTER = timedelta(minutes=15)

moments = st.datetimes(datetime(1970, 1, 1), datetime(2090, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - hypothesis adds the zone
intervals = st.timedeltas(timedelta(seconds=1), timedelta(days=400))


@given(
    now=moments,
    last=st.none() | moments,
    every=intervals,
    name=st.text(max_size=9),
    agents=st.integers(1, 5000),
)
def test_the_first_due_time_is_after_the_start_and_within_one_interval(
    now: datetime, last: datetime | None, every: timedelta, name: str, agents: int
) -> None:
    spread = spread_of(name, every, agents)
    due = first_due(now, every, last, spread)
    assert now + spread <= due <= now + every


def test_a_restart_does_not_restart_the_count() -> None:
    day = timedelta(days=1)
    spread = timedelta(seconds=3)
    assert first_due(NOON, day, NOON - timedelta(hours=23), spread) == NOON + timedelta(hours=1)


def test_an_agent_that_is_overdue_runs_soon_after_the_start_once() -> None:
    spread = timedelta(seconds=3)
    assert first_due(NOON, QUARTER, NOON - timedelta(days=400), spread) == NOON + spread
    assert first_due(NOON, QUARTER, None, spread) == NOON + spread


def test_a_last_run_in_the_future_was_a_wrong_clock_and_costs_one_interval_at_most() -> None:
    assert first_due(NOON, QUARTER, NOON + timedelta(days=9000), timedelta(0)) == NOON + QUARTER


def test_the_spread_is_fixed_by_the_name_and_grows_with_the_number_of_agents() -> None:
    assert spread_of("matchmaker", QUARTER, 10) == spread_of("matchmaker", QUARTER, 10)
    assert spread_of("matchmaker", QUARTER, 1) <= timedelta(seconds=1)
    many = sorted(spread_of(f"agent-{n}", QUARTER, 200) for n in range(200))
    assert many[-1] <= LONGEST_SPREAD
    gaps = [later - earlier for earlier, later in pairwise(many)]
    assert max(gaps) < timedelta(seconds=3)
    assert sum(moment < LONGEST_SPREAD / 2 for moment in many) in range(70, 131)


class Clocks:
    """Three clocks that a test moves."""

    wall = 1_000_000.0
    real = 500.0
    awake = 400.0

    def watch(self) -> ClockWatch:
        return ClockWatch(lambda: self.wall, lambda: self.real, lambda: self.awake)

    def pass_time(self, seconds: float) -> None:
        self.wall += seconds
        self.real += seconds
        self.awake += seconds


@pytest.mark.parametrize("seconds", [0.0, 0.01, 30.0, 86_400.0])
def test_time_that_simply_passes_is_no_change(seconds: float) -> None:
    clocks = Clocks()
    watch = clocks.watch()
    clocks.pass_time(seconds)
    assert watch.look() is None


@pytest.mark.parametrize("step", [-86_400 * 3650.0, -7_200.0, -1.5, 1.5, 7_200.0, 86_400 * 21_900.0])
def test_a_clock_that_is_set_is_noticed_once_with_its_step(step: float) -> None:
    clocks = Clocks()
    watch = clocks.watch()
    clocks.pass_time(12)
    clocks.wall += step
    change = watch.look()
    assert change is not None
    assert change.step == timedelta(seconds=step)
    assert change.slept == timedelta(0)
    clocks.pass_time(30)
    assert watch.look() is None


def test_sleep_is_told_from_a_step() -> None:
    clocks = Clocks()
    watch = clocks.watch()
    clocks.wall += 3600
    clocks.real += 3600
    change = watch.look()
    assert change is not None
    assert (change.step, change.slept) == (timedelta(0), timedelta(hours=1))


def test_slewing_is_no_step() -> None:
    clocks = Clocks()
    watch = clocks.watch()
    for _ in range(100):
        clocks.pass_time(30)
        clocks.wall += 0.015
        assert watch.look() is None


def test_the_real_clocks_of_this_machine_agree() -> None:
    before = real_seconds()
    watch = ClockWatch()
    assert watch.look() is None
    assert real_seconds() >= before
