"""Agenda: every due time gets one fate, whatever happens to the clock, to the program and to the runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.schedule import At, Cron, Every, Schedule, Timed, parse_quiet, parse_zone
from daemon.events import Fate
from daemon.timeline import MOST_CAUGHT_UP
from daemon.turns import Hold
from tests.support.calendar_world import START, World

HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)

HOURLY = Cron("0 * * * *", UTC)
PAUSED = Hold(reason="paused by ana", drops=True)


def schedule(*timed: Timed, **more: object) -> Schedule:
    return Schedule(timed=timed or (HOURLY,), **more)  # type: ignore[arg-type]  # a test's shorthand


def world_of(*timed: Timed, spread: timedelta = timedelta(), **more: object) -> World:
    return World({"a": schedule(*timed, **more)}, spread=spread)


# one after another


def test_an_agent_runs_when_it_is_due_and_each_due_time_is_told() -> None:
    world = world_of()
    world.pass_time(3 * HOUR + MINUTE)
    assert world.told() == [(f"0{n}:00", f"0{n}:00", 1, "run", "") for n in (1, 2, 3)]
    assert world.began == [turn.due for turn in world.runs]
    assert {turn.trigger for turn in world.runs} == {"schedule"}


def test_an_interval_counts_from_its_due_times_and_not_from_the_ends_of_its_runs() -> None:
    world = world_of(Every(10 * MINUTE))
    world.pass_time(35 * MINUTE, run=3 * MINUTE)
    assert [row[0] for row in world.told()] == ["00:00", "00:10", "00:20", "00:30"]


def test_moments_are_run_once_each() -> None:
    moments = (START - HOUR, START + HOUR, START + 2 * HOUR)
    world = world_of(At(moments))
    world.pass_time(10 * DAY)
    assert [row[0] for row in world.told()] == ["01:00", "02:00"]
    assert world.agenda.earliest is None
    assert world.agenda.next_due("a", world.now) is None


def test_an_agent_that_only_events_make_due_is_never_looked_at() -> None:
    world = World({"a": Schedule(webhook=True)})
    assert world.agenda.earliest is None
    assert world.trigger("a")
    world.end("a")
    assert [turn.trigger for turn in world.runs] == ["webhook"]
    assert world.told() == [("00:00", "00:00", 1, "run", "")]


def test_jitter_delays_each_due_time_by_a_fixed_share_and_does_not_add_up() -> None:
    world = world_of(jitter=20 * MINUTE)
    world.pass_time(50 * HOUR)
    late = [began - turn.due for began, turn in zip(world.began, world.runs, strict=True)]
    assert [turn.due for turn in world.runs] == [START + n * HOUR for n in range(1, len(late) + 1)]
    assert all(timedelta() <= each < 20 * MINUTE for each in late)
    assert max(late) - min(late) > 10 * MINUTE
    again = world_of(jitter=20 * MINUTE)
    again.pass_time(50 * HOUR)
    assert again.began == world.began


def test_jitter_is_never_longer_than_the_time_to_the_next_due_time() -> None:
    world = world_of(Every(MINUTE), jitter=HOUR)
    world.pass_time(2 * HOUR)
    assert all(began - turn.due < MINUTE for began, turn in zip(world.began, world.runs, strict=True))
    assert {row[3] for row in world.told()} == {"run"}


# a run that takes long


def test_what_comes_due_during_its_own_run_is_skipped_and_told_in_one_row() -> None:
    world = world_of()
    world.pass_time(4 * HOUR + 30 * MINUTE, run=3 * HOUR + 30 * MINUTE)
    world.pass_time(HOUR)
    assert world.told() == [
        ("01:00", "01:00", 1, "run", ""),
        ("02:00", "04:00", 3, "skipped", "its run before was still under way"),
        ("05:00", "05:00", 1, "run", ""),
    ]


def test_with_all_they_are_run_one_after_another() -> None:
    world = world_of(catch_up="all")
    world.pass_time(4 * HOUR + 45 * MINUTE, run=3 * HOUR + 30 * MINUTE)
    world.pass_time(MINUTE)
    assert [turn.due for turn in world.runs] == [START + n * HOUR for n in (1, 2, 3, 4)]
    assert world.began[1] == START + HOUR + 3 * HOUR + 30 * MINUTE


def test_a_run_by_hand_counts_as_its_own_run_too() -> None:
    world = world_of()
    world.agenda.began("a")
    world.pass_time(HOUR)
    assert world.runs == []
    world.agenda.ended("a")
    world.pass_time(HOUR)
    assert [row[3] for row in world.told()] == ["skipped", "run"]


def test_an_event_during_its_own_run_is_not_lost() -> None:
    world = world_of()
    world.pass_time(HOUR, run=None)
    for _ in range(3):
        world.oversleep(MINUTE)
        assert world.trigger("a")
    assert len(world.runs) == 1
    world.end("a")
    assert [turn.due for turn in world.runs] == [START + HOUR, START + HOUR + 3 * MINUTE]
    world.end("a")
    assert world.told()[1:] == [
        ("01:01", "01:02", 2, "coalesced", "a later one came before it could begin"),
        ("01:03", "01:03", 1, "run", ""),
    ]


# no free place


def test_what_waits_for_a_place_is_overtaken_by_its_own_next_due_time() -> None:
    world = World({"a": schedule(), "b": schedule(priority=1)}, places=1)
    world.pass_time(3 * HOUR, run=None)
    assert [turn.agent for turn in world.runs] == ["b"]
    world.end("b")
    assert [(turn.agent, turn.due) for turn in world.runs[1:]] == [("a", START + 3 * HOUR)]
    world.end("a")
    assert world.told() == [
        ("01:00", "02:00", 2, "coalesced", "a later one came before it could begin"),
        ("03:00", "03:00", 1, "run", ""),
    ]
    assert {row.run_id for row in world.rows.values() if row.agent == "a"} == {"run-1"}


def test_the_higher_priority_goes_first_and_then_who_was_due_first() -> None:
    names = {"late": (30, 0), "early": (10, 0), "urgent": (40, 5), "humble": (5, -5), "first": (1, 0)}
    world = World(
        {name: schedule(At((START + m * MINUTE,)), priority=p) for name, (m, p) in names.items()}, places=1
    )
    world.pass_time(HOUR, run=None)
    for _ in names:
        world.end(world.runs[-1].agent)
    assert [turn.agent for turn in world.runs] == ["first", "urgent", "early", "late", "humble"]


# policies: late because of a hold, a sleep, a stop of the program

WAIT = Hold(reason="left alone for a while: it failed", until=START + 3 * HOUR + 30 * MINUTE)


def held(world: World) -> None:
    world.hold("a", WAIT, "wait")
    world.pass_time(4 * HOUR + MINUTE)


def asleep(world: World) -> None:
    world.sleep(3 * HOUR + 30 * MINUTE)
    world.pass_time(31 * MINUTE)


def stood_still(world: World) -> None:
    world.oversleep(3 * HOUR + 30 * MINUTE)
    world.look()
    world.pass_time(31 * MINUTE)


def off(world: World) -> None:
    world.trigger("a", START)
    world.stop()
    world.oversleep(3 * HOUR + 30 * MINUTE)
    world.start()
    world.pass_time(31 * MINUTE)


def set_forward(world: World) -> None:
    world.set_clock(3 * HOUR + 30 * MINUTE)
    world.pass_time(31 * MINUTE)


Happening = Callable[[World], None]

REASONS: dict[Happening, tuple[str, str]] = {
    held: ("skipped", "left alone for a while: it failed"),
    asleep: ("missed", "the machine was asleep"),
    stood_still: ("missed", "the program stood still"),
    off: ("missed", "the program was not running"),
    set_forward: ("missed", "the clock was set forward over it"),
}


@pytest.mark.parametrize("happening", REASONS, ids=lambda each: str(each.__name__))
def test_catch_up_once_runs_the_newest_and_the_others_with_it(happening: Happening) -> None:
    world = world_of(spread=timedelta(seconds=10))
    happening(world)
    rows = [row for row in world.told() if row[0] != "00:00"]
    assert rows == [
        ("01:00", "02:00", 2, "coalesced", REASONS[happening][1]),
        ("03:00", "03:00", 1, "run", ""),
        ("04:00", "04:00", 1, "run", ""),
    ]
    caught_up = [began for began, turn in zip(world.began, world.runs, strict=True) if turn.due.hour == 3]
    assert caught_up == [START + 3 * HOUR + 30 * MINUTE + world.spread]


@pytest.mark.parametrize("happening", REASONS, ids=lambda each: str(each.__name__))
def test_catch_up_skip_runs_none_of_them(happening: Happening) -> None:
    world = world_of(catch_up="skip")
    happening(world)
    fate, reason = REASONS[happening]
    rows = [row for row in world.told() if row[0] != "00:00"]
    assert rows == [("01:00", "03:00", 3, fate, reason), ("04:00", "04:00", 1, "run", "")]


@pytest.mark.parametrize("happening", REASONS, ids=lambda each: str(each.__name__))
def test_catch_up_all_runs_each_of_them_the_oldest_first(happening: Happening) -> None:
    world = world_of(catch_up="all")
    happening(world)
    rows = [row for row in world.told() if row[0] != "00:00"]
    assert rows == [(f"0{n}:00", f"0{n}:00", 1, "run", "") for n in (1, 2, 3, 4)]


@pytest.mark.parametrize("happening", [held, asleep, stood_still, off], ids=lambda each: str(each.__name__))
def test_an_interval_that_is_caught_up_counts_from_there(happening: Happening) -> None:
    world = world_of(Every(HOUR))
    world.end_all()
    happening(world)
    world.pass_time(HOUR)
    assert [row[0] for row in world.told() if row[3] == "run" and row[0] != "00:00"] == ["03:30", "04:30"]
    (late,) = [row for row in world.told() if row[3] == "coalesced"]
    assert late[:3] == ("01:00" if late[0] != "00:00" else "00:00", "03:00", late[2])


@pytest.mark.parametrize("policy", ["once", "all"])
def test_what_is_later_than_max_lateness_is_not_run(policy: str) -> None:
    world = world_of(catch_up=policy, max_lateness=40 * MINUTE)
    asleep(world)
    late = "it was later than its max_lateness of 40m"
    if policy == "all":
        assert world.told() == [
            ("01:00", "02:00", 2, "missed", late),
            ("03:00", "03:00", 1, "run", ""),
            ("04:00", "04:00", 1, "run", ""),
        ]
    else:
        assert [row[3] for row in world.told()] == ["coalesced", "run", "run"]


@pytest.mark.parametrize("timed", [HOURLY, Every(HOUR)], ids=["cron", "every"])
def test_when_the_newest_is_too_late_none_is_run_and_the_phase_is_kept(timed: Timed) -> None:
    world = world_of(timed, max_lateness=20 * MINUTE)
    world.pass_time(timedelta(seconds=1))
    asleep(world)
    world.pass_time(HOUR)
    late = "it was later than its max_lateness of 20m"
    assert world.told()[-3:] == [
        ("01:00", "03:00", 3, "missed", late),
        ("04:00", "04:00", 1, "run", ""),
        ("05:00", "05:00", 1, "run", ""),
    ]


def test_waiting_for_a_place_for_too_long_is_told_as_well() -> None:
    world = World({"a": schedule(max_lateness=30 * MINUTE), "b": schedule(priority=1)}, places=1)
    world.pass_time(HOUR + 45 * MINUTE, run=None)
    world.end("b")
    assert world.told() == [("01:00", "01:00", 1, "skipped", "it was later than its max_lateness of 30m")]


def test_of_many_missed_ones_the_newest_hundred_are_run() -> None:
    for timed in (Every(MINUTE), Cron("* * * * *", UTC)):
        world = world_of(timed, catch_up="all")
        world.pass_time(timedelta(seconds=1))
        world.sleep(30 * DAY)
        world.pass_time(timedelta(seconds=1))
        caught_up = [row for row in world.told() if row[3] == "run"][-MOST_CAUGHT_UP:]
        assert caught_up[-1][0] == "+30 00:00"
        (older,) = [row for row in world.told() if row[3] == "coalesced"]
        assert older[1] == "+29 22:20"
        assert len(world.runs) in (MOST_CAUGHT_UP, MOST_CAUGHT_UP + 1)


def test_what_is_too_much_is_coalesced_from_the_oldest_on() -> None:
    world = world_of(Every(HOUR), catch_up="all")
    world.pass_time(HOUR, run=None)
    for hours in (10, 200, 10):
        world.oversleep(hours * HOUR)
        world.look()
    world.end_all()
    rows = sorted(world.rows.values(), key=lambda row: row.due)
    assert all(later.due - earlier.last == HOUR for earlier, later in pairwise(rows))
    assert len(world.runs) == MOST_CAUGHT_UP + 1


def test_sixty_years_of_missed_minutes_cost_nothing() -> None:
    for timed in (Every(timedelta(seconds=1)), Cron("* * * * *", UTC)):
        world = world_of(timed)
        world.pass_time(timedelta(seconds=1))
        began = time.perf_counter()
        world.sleep(60 * 365 * DAY)
        world.pass_time(timedelta(seconds=1))
        assert time.perf_counter() - began < 5
        assert len(world.runs) <= 5
        assert sum(row.fate is Fate.COALESCED for row in world.rows.values()) == 1


# holds


def test_what_comes_due_while_it_is_paused_is_skipped_when_it_is_resumed() -> None:
    world = world_of()
    world.hold("a", PAUSED)
    world.pass_time(3 * HOUR + 30 * MINUTE)
    assert world.told() == []
    assert world.agenda.earliest is None
    world.release("a")
    world.pass_time(HOUR)
    assert world.told() == [
        ("01:00", "03:00", 3, "skipped", "paused by ana"),
        ("04:00", "04:00", 1, "run", ""),
    ]


def test_a_run_that_waits_for_a_place_goes_when_its_agent_is_paused() -> None:
    world = World({"a": schedule(), "b": schedule(priority=1)}, places=1)
    world.pass_time(HOUR, run=None)
    assert world.agenda.rank("a") is not None
    world.hold("a", PAUSED)
    assert world.agenda.rank("a") is None
    world.end("b")
    assert [turn.agent for turn in world.runs] == ["b"]
    world.release("a")
    assert world.told() == [("01:00", "01:00", 1, "skipped", "paused by ana")]


def test_an_event_for_a_paused_agent_is_refused_and_told() -> None:
    world = world_of()
    world.hold("a", PAUSED)
    assert not world.trigger("a")
    world.release("a")
    world.stop()
    assert world.told() == [("00:00", "00:00", 1, "skipped", "paused by ana")]
    assert not world.agenda.trigger("nobody", "file", None, world.now)


def test_a_hold_of_all_ends_with_everybody_catching_up() -> None:
    world = World({f"a{n}": schedule() for n in range(20)})
    world.agenda.hold_all(Hold(reason="the disk is full"))
    world.look()
    world.pass_time(2 * HOUR + MINUTE)
    assert world.runs == []
    assert world.agenda.next_run("a1", world.now) is None
    world.agenda.release_all(world.now)
    world.look()
    assert len(world.runs) == 20
    assert world.runs[0].settled[0].reason == "the disk is full"


def test_quiet_time_is_waited_for_and_then_caught_up() -> None:
    world = world_of(quiet=(parse_quiet("01:30-04:30"),))
    world.pass_time(90 * MINUTE)
    assert world.agenda.next_run("a", world.now) == START + 4 * HOUR + 30 * MINUTE
    world.pass_time(4 * HOUR)
    assert world.told() == [
        ("01:00", "01:00", 1, "run", ""),
        ("02:00", "03:00", 2, "coalesced", "it was quiet time"),
        ("04:00", "04:00", 1, "run", ""),
        ("05:00", "05:00", 1, "run", ""),
    ]
    assert world.began[1] == START + 4 * HOUR + 30 * MINUTE


def test_a_run_that_waits_for_a_place_does_not_begin_in_quiet_time() -> None:
    world = World({"a": schedule(quiet=(parse_quiet("01:30-04:30"),)), "b": schedule(priority=1)}, places=1)
    world.pass_time(100 * MINUTE, run=None)
    world.end("b")
    assert [turn.agent for turn in world.runs] == ["b"]
    world.pass_time(5 * HOUR)
    assert START + 4 * HOUR + 30 * MINUTE in world.began


def test_two_holds_both_have_to_end() -> None:
    world = world_of()
    world.hold("a", WAIT, "wait")
    world.hold("a", PAUSED)
    assert world.agenda.next_run("a", world.now) is None
    world.release("a")
    assert world.agenda.next_run("a", world.now) == WAIT.until
    assert world.agenda.next_due("a", world.now) == START + HOUR
    world.pass_time(5 * HOUR)
    assert [row[3] for row in world.told()] == ["coalesced", "run", "run", "run"]


# restarts


def test_a_restart_does_not_restart_the_count() -> None:
    world = world_of(Every(DAY), spread=timedelta(seconds=30))
    world.pass_time(MINUTE)
    for _ in range(20):
        world.stop()
        world.oversleep(HOUR)
        world.start()
        world.pass_time(MINUTE)
    assert len(world.runs) == 1
    assert world.agenda.next_due("a", world.now) == world.runs[0].due + DAY


def test_an_agent_that_is_due_daily_on_a_machine_that_is_off_every_night_runs_daily() -> None:
    world = world_of(Every(DAY), spread=timedelta(seconds=30))
    for _ in range(10):
        world.pass_time(10 * HOUR)
        world.stop()
        world.oversleep(14 * HOUR)
        world.start()
    days = [(turn.due - START) // DAY for turn in world.runs]
    assert len(days) in (9, 10, 11)
    assert all(later - earlier <= 2 for earlier, later in pairwise(days))


def test_a_hundred_restarts_in_a_row_are_one_run() -> None:
    world = world_of(Every(HOUR), spread=timedelta(seconds=2))
    world.pass_time(MINUTE)
    world.stop()
    world.oversleep(9 * HOUR)
    for _ in range(100):
        world.start()
        world.pass_time(timedelta(seconds=3))
        world.stop()
        world.oversleep(timedelta(seconds=3))
    assert len(world.runs) == 2


def test_a_due_time_in_the_future_costs_one_interval_at_most() -> None:
    world = world_of(Every(HOUR))
    world.pass_time(MINUTE)
    world.set_clock(60 * 365 * DAY)
    world.pass_time(2 * HOUR)
    world.stop()
    world.oversleep(-60 * 365 * DAY)
    world.start()
    runs = len(world.runs)
    world.pass_time(HOUR)
    assert len(world.runs) in (runs + 1, runs + 2)
    for _ in range(5):  # and again at every start, since the wrong rows stay
        world.stop()
        world.start()
        world.pass_time(20 * MINUTE)
    assert len(world.runs) > runs + 1


def test_an_event_that_could_not_begin_before_the_stop_is_told() -> None:
    world = World({"a": Schedule(webhook=True), "b": schedule(priority=1)}, places=1)
    world.pass_time(HOUR, run=None)
    assert world.trigger("a")
    world.record(world.agenda.close())
    assert world.told() == [("01:00", "01:00", 1, "skipped", "the program was stopped before it could begin")]


def test_what_waited_for_a_place_at_the_stop_is_caught_up_at_the_next_start() -> None:
    world = World({"a": schedule(), "b": schedule(priority=1)}, places=1)
    world.trigger("a")
    world.end("a")
    world.pass_time(HOUR, run=None)
    world.record(world.agenda.close())
    assert [row[0] for row in world.told()] == ["00:00"]
    world.under_way.clear()
    world.start()
    world.pass_time(MINUTE)
    assert [row[0] for row in world.told()] == ["00:00", "01:00"]


# clocks


@pytest.mark.parametrize(
    "step", [-10 * 365 * DAY, -2 * HOUR, -50 * MINUTE, 2 * HOUR, 30 * DAY, 60 * 365 * DAY]
)
def test_a_clock_that_is_set_changes_no_intervals_remaining_time(step: timedelta) -> None:
    world = world_of(Every(HOUR))
    world.pass_time(HOUR + 20 * MINUTE)
    runs = len(world.runs)
    world.set_clock(step)
    assert len(world.runs) == runs
    assert world.agenda.next_run("a", world.now) == world.now + 40 * MINUTE
    world.pass_time(HOUR)
    assert len(world.runs) == runs + 1


def test_a_backward_step_over_a_moment_of_the_calendar_runs_it_once() -> None:
    world = world_of()
    world.pass_time(3 * HOUR + 10 * MINUTE)
    world.set_clock(-2 * HOUR)
    world.pass_time(4 * HOUR)
    assert [turn.due for turn in world.runs] == [START + n * HOUR for n in (1, 2, 3, 4, 5)]


def test_a_backward_step_is_remembered_over_a_restart() -> None:
    world = world_of()
    world.pass_time(3 * HOUR + 10 * MINUTE)
    world.stop()
    world.oversleep(-2 * HOUR)
    world.start()
    world.pass_time(4 * HOUR)
    assert [turn.due for turn in world.runs] == [START + n * HOUR for n in (1, 2, 3, 4, 5)]


def test_a_board_without_a_clock_learns_only_later_how_long_ago_its_agents_ran() -> None:
    world = world_of(Every(DAY), spread=timedelta(seconds=5))
    for day in range(1, 6):
        world.pass_time(MINUTE)
        world.stop()
        world.now = datetime(1970, 1, 1, tzinfo=UTC)
        world.start()
        world.pass_time(MINUTE)
        world.set_clock(START + day * DAY + HOUR - world.now)
    world.pass_time(MINUTE)
    assert [(turn.due - START) // DAY for turn in world.runs] == [0, 1, 2, 3, 4, 5]


def test_a_calendar_that_begins_in_1970_does_not_count_what_was_settled_before() -> None:
    world = world_of()
    world.pass_time(2 * HOUR + MINUTE)
    world.stop()
    back = world.now + 90 * MINUTE
    world.now = datetime(1970, 1, 1, tzinfo=UTC)
    world.start()
    world.pass_time(MINUTE)
    world.set_clock(back - world.now)
    world.pass_time(MINUTE)
    assert world.told() == [(f"0{n}:00", f"0{n}:00", 1, "run", "") for n in (1, 2, 3)]


def test_daylight_saving_loses_and_doubles_no_day() -> None:
    berlin = parse_zone("Europe/Berlin")
    world = World({"a": schedule(Cron("30 2 * * *", berlin))}, now=datetime(2026, 1, 1, tzinfo=UTC))
    world.pass_time(365 * DAY)
    days = [turn.due.astimezone(berlin).date() for turn in world.runs]
    assert len(days) == len(set(days)) == 365


def test_a_schedule_that_changes_keeps_its_last_due_time() -> None:
    world = world_of(Every(HOUR))
    world.pass_time(HOUR + MINUTE)
    world.agenda.change("a", schedule(Every(3 * HOUR)), world.now, timedelta())
    assert world.agenda.next_due("a", world.now) == START + 4 * HOUR
    world.agenda.change("a", schedule(Every(30 * MINUTE)), world.now, timedelta())
    assert world.agenda.next_due("a", world.now) == START + HOUR + 30 * MINUTE
    world.agenda.change("a", schedule(HOURLY), world.now, timedelta())
    assert world.agenda.next_due("a", world.now) == START + 2 * HOUR


def test_an_agent_that_is_removed_is_not_run_any_more() -> None:
    world = World({"a": schedule(), "b": schedule(priority=1)}, places=1)
    world.pass_time(HOUR, run=None)
    world.agenda.remove("a")
    world.end("b")
    assert [turn.agent for turn in world.runs] == ["b"]
    assert [row[3] for row in world.told()] == ["skipped"]
    assert "a" not in world.agenda


def test_a_run_that_cannot_be_recorded_leaves_its_due_times_to_be_told_later() -> None:
    world = world_of()
    world.pass_time(HOUR, run=None)
    turn = world.under_way.pop("a")
    world.agenda.fail(turn)
    world.agenda.ended("a")
    world.look()
    world.pass_time(HOUR)
    assert world.told() == [
        ("01:00", "01:00", 1, "skipped", "its run could not be recorded"),
        ("02:00", "02:00", 1, "run", ""),
    ]


def test_the_heap_does_not_grow_by_being_looked_at() -> None:
    world = World({f"a{n}": schedule() for n in range(10)})
    for _ in range(1000):
        world.hold("a1", PAUSED)
        world.release("a1")
    assert len(world.agenda._heap) < 100


# any sequence

STEPS = st.sampled_from([-2 * HOUR, -10 * MINUTE, 10 * MINUTE, 2 * HOUR, 30 * DAY, -30 * DAY, 60 * 365 * DAY])
SPANS = st.sampled_from([timedelta(seconds=1), MINUTE, 20 * MINUTE, HOUR, 5 * HOUR, 3 * DAY])
ORDINARY = (
    st.tuples(st.just("pass"), SPANS, st.sampled_from([timedelta(), 10 * MINUTE, 3 * HOUR]))
    | st.tuples(st.just("oversleep"), SPANS)
    | st.tuples(st.just("sleep"), SPANS)
    | st.tuples(st.just("pause"))
    | st.tuples(st.just("resume"))
    | st.tuples(st.just("wait"), SPANS)
    | st.tuples(st.just("all"))
    | st.tuples(st.just("free"))
    | st.tuples(st.just("end"))
    | st.tuples(st.just("restart"), SPANS)
)
POLICIES = st.sampled_from(["once", "all", "skip"])


def _oversleep(world: World, by: timedelta) -> None:
    world.oversleep(by)
    world.look()


def _restart(world: World, off: timedelta) -> None:
    world.stop()
    world.oversleep(off)
    world.start()


def _hold_all(world: World) -> None:
    world.agenda.hold_all(Hold(reason="the disk is full"))
    world.look()


def _release_all(world: World) -> None:
    world.agenda.release_all(world.now)
    world.look()


ACTIONS: dict[str, Callable[..., object]] = {
    "pass": World.pass_time,
    "oversleep": _oversleep,
    "sleep": World.sleep,
    "pause": lambda world: world.hold("a", PAUSED),
    "resume": lambda world: world.release("a"),
    "wait": lambda world, by: world.hold("a", Hold(reason="it failed", until=world.now + by), "wait"),
    "all": _hold_all,
    "free": _release_all,
    "end": World.end_all,
    "restart": _restart,
    "set": World.set_clock,
    "event": lambda world: world.trigger("a"),
}


def do(world: World, step: tuple[Any, ...]) -> None:
    """Carry out one step."""
    ACTIONS[step[0]](world, *step[1:])


def finish(world: World) -> None:
    """End what holds it, let it run dry, and stop."""
    world.release("a")
    world.release("a", "wait")
    _release_all(world)
    world.pass_time(3 * HOUR)
    world.end_all()
    world.look()
    world.stop()


@settings(max_examples=300, deadline=None)
@given(
    steps=st.lists(ORDINARY, max_size=25),
    policy=POLICIES,
    late=st.sampled_from([None, 30 * MINUTE, 5 * HOUR]),
    spread=st.sampled_from([timedelta(), timedelta(seconds=20)]),
    jitter=st.sampled_from([timedelta(), 10 * MINUTE]),
)
def test_every_due_time_has_exactly_one_fate(
    steps: list[tuple[Any, ...]],
    policy: str,
    late: timedelta | None,
    spread: timedelta,
    jitter: timedelta,
) -> None:
    """Every match of the calendar is in exactly one row; nothing else is in any."""
    plan = schedule(catch_up=policy, max_lateness=late, jitter=jitter)
    world = World({"a": plan, "b": schedule(priority=1)}, places=1, spread=spread)
    world.trigger("a")  # so that it ran before: of an agent that never did, nothing is missed
    world.end("a")
    for step in steps:
        do(world, step)
    finish(world)
    rows = sorted((row for row in world.rows.values() if row.agent == "a"), key=lambda row: row.due)
    end = max((row.last for row in rows), default=START)
    due, expected = START, [START]
    while (due := due + HOUR) <= end:
        expected.append(due)
    covered = [row.due + n * HOUR for row in rows for n in range(int((row.last - row.due) / HOUR) + 1)]
    assert covered == expected
    assert sum(row.count for row in rows if row.count < 1000) == len(expected)
    assert world.now - end < 2 * HOUR + spread  # nothing is left without a fate
    assert {row.run_id is not None for row in rows if row.fate in (Fate.RUN, Fate.COALESCED)} <= {True}


@settings(max_examples=300, deadline=None)
@given(
    steps=st.lists(ORDINARY | st.tuples(st.just("set"), STEPS) | st.tuples(st.just("event")), max_size=25),
    policy=POLICIES,
    timed=st.sampled_from([HOURLY, Every(HOUR), Every(7 * MINUTE), Cron("*/20 * * * *", UTC)]),
    spread=st.sampled_from([timedelta(), timedelta(seconds=20)]),
)
def test_no_due_time_is_run_twice_and_the_agent_always_runs_again(
    steps: list[tuple[Any, ...]], policy: str, timed: Timed, spread: timedelta
) -> None:
    """`World.end` fails when a due time runs twice."""
    world = World({"a": schedule(timed, catch_up=policy)}, spread=spread)
    for step in steps:
        do(world, step)
        runs = [turn for turn in world.runs if turn.agent == "a"]
        assert len({turn.due for turn in runs}) == len(runs)
    world.end_all()
    world.release("a")
    world.release("a", "wait")
    _release_all(world)
    world.pass_time(HOUR)
    if isinstance(timed, Every):  # real time: the clock has no say in it
        before = len(world.runs)
        world.pass_time(timed.interval + MINUTE)
        assert len(world.runs) > before


@settings(max_examples=200, deadline=None)
@given(steps=st.lists(ORDINARY, max_size=20), policy=POLICIES)
def test_the_rows_of_an_interval_lie_side_by_side(steps: list[tuple[Any, ...]], policy: str) -> None:
    world = World({"a": schedule(Every(HOUR), catch_up=policy)}, spread=timedelta(seconds=5))
    for step in steps:
        do(world, step)
    finish(world)
    rows = sorted((row for row in world.rows.values() if row.agent == "a"), key=lambda row: row.due)
    for earlier, later in pairwise(rows):
        assert timedelta() < later.due - earlier.last <= HOUR + timedelta(seconds=5)
