"""What the end of a run, a person or a new configuration makes of an agent's status."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.config import BACKOFF, AgentConfig
from agents.proposal import Approvers
from daemon.discipline import (
    after_crashes,
    after_run,
    config_digest,
    held_until,
    paused,
    resumed,
    resumed_by_configuration,
)
from daemon.events import AgentState, AgentStatus, RunOutcome, RunResult
from daemon.outcome import LONGEST_HOLD
from tests.support.stores import START, run_result

A = AgentState
O = RunOutcome  # noqa: E741 - the table below is read by its columns
MINUTE = timedelta(minutes=1)
CONFIG = AgentConfig(name="quick", backoff=(MINUTE, 5 * MINUTE), quarantine_after=3)
ACTIVE = AgentStatus(agent="quick")
PAUSED = AgentStatus(agent="quick", state=A.PAUSED, by="ana", since=START)
QUARANTINED = AgentStatus(agent="quick", state=A.QUARANTINED, by="askfirst", since=START, config_digest="d")


def ended(outcome: RunOutcome = O.FAILED, **fields: Any) -> RunResult:
    return run_result(agent="quick", outcome=outcome, error="no file", **fields)


def own(failures: int, **fields: Any) -> AgentStatus:
    return replace(ACTIVE, failures=failures, **fields)


# before, outcome, whether the model failed -> state, failures, of the model, minutes held
TABLE = [
    (ACTIVE, O.SUCCEEDED, False, A.ACTIVE, 0, 0, None),
    (ACTIVE, O.CANCELLED, False, A.ACTIVE, 0, 0, None),
    (ACTIVE, O.INTERRUPTED, False, A.ACTIVE, 0, 0, None),
    (ACTIVE, O.FAILED, False, A.ACTIVE, 1, 0, 1),
    (ACTIVE, O.TIMED_OUT, False, A.ACTIVE, 1, 0, 1),
    (ACTIVE, O.FAILED, True, A.ACTIVE, 1, 1, 1),
    (own(1), O.FAILED, False, A.ACTIVE, 2, 0, 5),
    (own(2), O.FAILED, False, A.QUARANTINED, 3, 0, None),
    (own(2), O.TIMED_OUT, False, A.QUARANTINED, 3, 0, None),
    (own(2), O.FAILED, True, A.ACTIVE, 3, 1, 5),
    (own(2), O.CANCELLED, False, A.ACTIVE, 2, 0, None),
    (own(2), O.INTERRUPTED, False, A.ACTIVE, 2, 0, None),
    (own(2), O.SUCCEEDED, False, A.ACTIVE, 0, 0, None),
    (own(3, model_failures=1), O.FAILED, False, A.QUARANTINED, 4, 1, None),
    (own(90, model_failures=89), O.FAILED, False, A.ACTIVE, 91, 89, 5),
    (PAUSED, O.FAILED, False, A.PAUSED, 1, 0, 1),
    (replace(PAUSED, failures=8), O.FAILED, False, A.PAUSED, 9, 0, 5),
    (replace(PAUSED, failures=8), O.SUCCEEDED, False, A.PAUSED, 0, 0, None),
    (QUARANTINED, O.FAILED, False, A.QUARANTINED, 0, 0, None),
    (QUARANTINED, O.CANCELLED, False, A.QUARANTINED, 0, 0, None),
    (QUARANTINED, O.SUCCEEDED, False, A.ACTIVE, 0, 0, None),
]


@pytest.mark.parametrize(("before", "outcome", "model", "state", "failures", "of_model", "minutes"), TABLE)
def test_the_status_after_a_run(
    before: AgentStatus,
    outcome: RunOutcome,
    model: bool,
    state: AgentState,
    failures: int,
    of_model: int,
    minutes: int | None,
) -> None:
    after = after_run(before, ended(outcome, model_failed=model), CONFIG)
    assert (after.state, after.failures, after.model_failures) == (state, failures, of_model)
    assert after.held_until == (None if minutes is None else START + minutes * MINUTE)
    assert bool(after.held_because) == (minutes is not None)
    assert (after is before) == (after == before)  # what did not change is not written


def test_the_hold_and_the_quarantine_say_why() -> None:
    first = after_run(ACTIVE, ended(), CONFIG)
    second = after_run(first, ended(model_failed=True), CONFIG)
    third = after_run(second, ended(), CONFIG)
    last = after_run(third, ended(), CONFIG)
    assert first.held_because == "it failed: no file"
    assert second.held_because == "its model failed: no file; failure number 2 in a row"
    assert last.reason == "it failed 3 times in a row, at last with: no file"
    assert (last.by, last.since, last.config_digest) == ("askfirst", START, config_digest(CONFIG))
    at_once = after_run(ACTIVE, ended(), replace(CONFIG, quarantine_after=1))
    assert at_once.reason == "it failed once, at last with: no file"


def test_a_long_error_of_many_lines_becomes_one_short_line() -> None:
    held = after_run(ACTIVE, replace(ended(), error="no\nfile " * 1000), CONFIG)
    assert "\n" not in held.held_because
    assert len(held.held_because) < 400


def test_without_back_off_nothing_is_held_but_what_the_model_asks_for() -> None:
    config = replace(CONFIG, backoff=())
    assert after_run(ACTIVE, ended(), config).held_until is None
    wish = START + timedelta(hours=2)
    held = after_run(ACTIVE, ended(model_failed=True, not_before=wish), config)
    assert (held.held_until, held.held_because) == (wish, "its model cannot be asked until then")


def test_the_later_of_back_off_and_the_models_wish_holds() -> None:
    for seconds, wanted in ((30, MINUTE), (7200, timedelta(hours=2))):
        wish = START + timedelta(seconds=seconds)
        assert (
            after_run(ACTIVE, ended(model_failed=True, not_before=wish), CONFIG).held_until == START + wanted
        )


def test_an_own_failure_does_not_shorten_what_the_model_asked_for_but_the_models_next_word_does() -> None:
    held = after_run(ACTIVE, ended(model_failed=True, not_before=START + timedelta(hours=2)), CONFIG)
    later = START + timedelta(hours=1)
    assert after_run(held, ended(finished_at=later), CONFIG).held_until == held.held_until
    again = after_run(held, ended(finished_at=later, model_failed=True), CONFIG)
    assert again.held_until == later + 5 * MINUTE


@pytest.mark.parametrize(
    ("distance", "holds"),
    [
        (timedelta(seconds=-1), False),
        (timedelta(), False),
        (timedelta(seconds=1), True),
        (LONGEST_HOLD, True),
        (LONGEST_HOLD + timedelta(seconds=1), False),
        (timedelta(days=20_000), False),
    ],
)
def test_a_hold_that_a_wrong_clock_made_is_ignored(distance: timedelta, holds: bool) -> None:
    status = replace(ACTIVE, failures=1, held_until=START + distance, held_because="it failed")
    assert held_until(status, START) == (START + distance if holds else None)
    next_one = after_run(status, ended(), CONFIG)
    assert next_one.held_until == START + max(distance if holds else MINUTE, 5 * MINUTE)


def test_a_back_off_longer_than_any_model_can_ask_for_is_believed() -> None:
    month = timedelta(days=30)
    status = after_run(ACTIVE, ended(), replace(CONFIG, backoff=(month,)))
    assert held_until(status, START + timedelta(days=1), (month,)) == START + month


def test_a_back_off_beyond_the_end_of_time_is_the_end_of_time() -> None:
    late = datetime.max.replace(tzinfo=UTC)
    assert after_run(ACTIVE, ended(finished_at=late), CONFIG).held_until == late


# --- people, crashes, configurations


def test_pausing_and_resuming() -> None:
    status = paused(own(2), "ana", "on\nholiday", START)
    assert status == replace(PAUSED, reason="on holiday")
    assert paused(status, "ana", "on holiday", START + MINUTE) is status
    again = paused(status, "luis", "no water", START + MINUTE)
    assert (again.by, again.reason, again.since) == ("luis", "no water", START)
    for before in (again, QUARANTINED, own(2), own(0, held_until=START)):
        active = resumed(before, "ana", START + MINUTE)
        assert active == replace(ACTIVE, by="ana", since=START + MINUTE)
        assert resumed(active, "luis", START) is active
    assert (
        paused(QUARANTINED, "ana", "", START).config_digest == ""
    )  # no configuration ends what a person began


def test_crashes_quarantine_an_active_agent_and_leave_every_other_as_it_is() -> None:
    status = after_crashes(own(1, held_until=START), 3, "d", START + MINUTE)
    assert (status.state, status.since, status.config_digest) == (A.QUARANTINED, START + MINUTE, "d")
    assert (status.reason, status.held_until) == ("its last 3 runs ended with the whole program", None)
    assert after_crashes(PAUSED, 3, "d", START) is PAUSED
    assert after_crashes(QUARANTINED, 3, "e", START) is QUARANTINED


def test_only_a_quarantined_agent_with_another_configuration_is_resumed() -> None:
    assert resumed_by_configuration(QUARANTINED, "d") is None
    for status in (ACTIVE, PAUSED, own(9)):
        assert resumed_by_configuration(status, "e") is None
    status = resumed_by_configuration(QUARANTINED, "e", START + MINUTE)
    assert status == replace(ACTIVE, by="askfirst", since=START + MINUTE)


def test_the_digest_changes_with_what_matters_and_with_nothing_else() -> None:
    base = AgentConfig.from_table("quick", {"every": "1h"})
    same: list[Mapping[str, Any]] = [{"every": "60m"}, {"every": 3600, "ping_url": "https://hc.example/1"}]
    for table in same:
        assert config_digest(AgentConfig.from_table("quick", table)) == config_digest(base)
    tables: list[Mapping[str, Any]] = [
        {"every": "1h"},
        {"every": "2h"},
        {"cron": "0 7 * * *"},
        {"every": "1h", "schedule_timezone": "Europe/Berlin"},
        {"every": "1h", "timeout": "1m"},
        {"every": "1h", "file": "offers.csv"},
        {"every": "1h", "file": "Offers.csv"},
        {"every": "1h", "quiet": "22:00-07:00"},
        {"every": "1h", "quiet": "22:00-06:00"},
        {"every": "1h", "approvers": Approvers(people=("ana",))},
        {"every": "1h", "before": {"calendar": "events.ics", "lead": "2h"}},
        {"every": "1h", "limits": {"a": 1}},
        {"every": "1h", "limits": {"a": "1"}},
        {"every": "1h", "limits": {"a": [1, None, START]}},
    ]
    digests = {config_digest(AgentConfig.from_table("quick", table)) for table in tables}
    assert len(digests) == len(tables)
    assert {len(digest) for digest in digests} == {64}


def test_the_digest_knows_no_order_and_survives_any_value() -> None:
    first = {"b": 1, "a": MappingProxyType({"y": {3, 1}, "x": "\ud800"})}
    second = {"a": {"x": "\ud800", "y": frozenset({1, 3})}, "b": 1}
    digests = {config_digest(AgentConfig(name="quick", settings=each)) for each in (first, second)}
    assert len(digests) == 1
    config_digest(AgentConfig(name="quick", settings={"odd": {1: object(), "1": float("nan")}}))


# --- sequences

outcomes = st.tuples(st.sampled_from(list(O)), st.booleans(), st.none() | st.integers(61, 10**6))
sequences = st.lists(outcomes, max_size=60)
configs = st.builds(
    lambda after, waits: replace(CONFIG, quarantine_after=after, backoff=tuple(sorted(waits))),
    st.integers(1, 6),
    st.lists(st.sampled_from(BACKOFF), max_size=4),
)


def played(sequence: list[tuple[RunOutcome, bool, int | None]], config: AgentConfig) -> list[AgentStatus]:
    """The status after each run; the runs are an hour apart, and a model that fails may ask to wait."""
    statuses = [ACTIVE]
    for number, (outcome, model, seconds) in enumerate(sequence):
        now = START + number * timedelta(hours=1)
        wish = None if seconds is None or not model else now + timedelta(seconds=min(seconds, 7 * 86_400))
        result = ended(outcome, finished_at=now, model_failed=model, not_before=wish)
        statuses.append(after_run(statuses[-1], result, config))
    return statuses


@given(sequences, configs)
def test_quarantine_comes_exactly_when_enough_own_failures_came_in_a_row(
    sequence: list[tuple[RunOutcome, bool, int | None]], config: AgentConfig
) -> None:
    statuses, in_a_row, quarantined = played(sequence, config), 0, False
    for (outcome, model, _), before, after in zip(sequence, statuses, statuses[1:], strict=False):
        if outcome is O.SUCCEEDED:
            in_a_row, quarantined = 0, False
            assert (after.failures, after.model_failures, after.held_until) == (0, 0, None)
        elif outcome in {O.FAILED, O.TIMED_OUT} and not model and not quarantined:
            in_a_row += 1
            quarantined = in_a_row >= config.quarantine_after
        assert (after.state is A.QUARANTINED) == quarantined
        if before.state is A.QUARANTINED and quarantined:
            assert after is before  # one notification, whatever comes after it


@given(sequences, configs)
def test_a_model_that_fails_never_quarantines(
    sequence: list[tuple[RunOutcome, bool, int | None]], config: AgentConfig
) -> None:
    for status in played([(outcome, True, seconds) for outcome, _, seconds in sequence], config):
        assert status.state is A.ACTIVE
        assert status.failures == status.model_failures


@given(sequences, configs)
def test_back_off_never_becomes_shorter_as_long_as_nothing_succeeds(
    sequence: list[tuple[RunOutcome, bool, int | None]], config: AgentConfig
) -> None:
    never = replace(config, quarantine_after=10**6)
    streak = [(O.FAILED, model, None) for _, model, _ in sequence]
    waits = [
        (status.held_until or START) - (START + number * timedelta(hours=1))
        for number, status in enumerate(played(streak, never)[1:])
        if status.held_until is not None
    ]
    assert waits == sorted(waits)
    assert len(waits) == (len(streak) if config.backoff else 0)


@given(sequences, configs)
def test_no_hold_is_longer_than_the_longest_possible_one(
    sequence: list[tuple[RunOutcome, bool, int | None]], config: AgentConfig
) -> None:
    for number, status in enumerate(played(sequence, config)):
        if status.held_until is not None:
            assert status.held_until <= START + number * timedelta(hours=1) + LONGEST_HOLD
            assert status.held_because
