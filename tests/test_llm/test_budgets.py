"""Budgets as values: what is read, what is refused, and when a window begins and ends."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm import ConfigurationError, LLMConfig
from llm.budgets import Budget, Window, parse_budgets, window_around

ZONES = ("UTC", "Europe/Berlin", "America/Sao_Paulo", "America/Havana", "Pacific/Apia", "Asia/Kolkata")


@pytest.fixture(autouse=True)
def zone_of_the_machine() -> Iterator[None]:
    """Whatever a test makes of the time zone is undone."""
    patch = pytest.MonkeyPatch()
    yield
    patch.undo()
    time.tzset()


def in_zone(monkeypatch: pytest.MonkeyPatch, zone: str) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()


def moment(zone: str, *parts: int) -> float:
    return datetime(*parts, tzinfo=ZoneInfo(zone)).timestamp()  # type: ignore[arg-type,misc]


def test_budgets_are_read_with_their_scope() -> None:
    assert parse_budgets("100_000 tokens/day, 2.50 USD / month,agent matchmaker: 600 seconds/hour") == (
        Budget(limit=Decimal(100000), unit="tokens", window="day"),
        Budget(limit=Decimal("2.5"), unit="usd", window="month"),
        Budget(limit=Decimal(600), unit="seconds", window="hour", scope="agent", name="matchmaker"),
    )


@given(
    st.builds(
        Budget,
        limit=st.decimals("0.000001", "1e12", places=6).filter(lambda d: d > 0),
        unit=st.sampled_from(["tokens", "usd", "seconds"]),
        window=st.sampled_from(["hour", "day", "month"]),
    )
)
def test_what_a_budget_is_shown_as_is_read_as_the_same_budget(budget: Budget) -> None:
    (read,) = parse_budgets(str(budget))
    assert read == budget


def test_a_backends_own_budget_is_its_own_and_leaves_other_scopes_alone() -> None:
    mine, agents = parse_budgets("5 usd/day, agent a: 1 usd/day", backend="cloud")
    assert (mine.scope, mine.name) == ("backend", "cloud")
    assert (agents.scope, agents.name) == ("agent", "a")
    assert mine.covers(agent="a", backend="cloud")
    assert not mine.covers(agent="a", backend="home")
    assert not agents.covers(agent="b", backend="cloud")


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("2 eur/month", "2 eur/month"),
        ("2 usd/week", "2 usd/week"),
        ("usd/month", "usd/month"),
        ("0 tokens/day", "0 tokens/day"),
        ("-1 tokens/day", "-1 tokens/day"),
        ("100 tokens/day; 2 usd/month", "100 tokens/day; 2 usd/month"),
        ("5 usd/day, team x: 2 usd/day", "team x: 2 usd/day"),
        (" , ", " , "),
    ],
)
def test_what_is_no_budget_is_repeated_in_the_error_and_stops_the_configuration(
    text: str, wrong: str
) -> None:
    with pytest.raises(ConfigurationError, match="LLM_BUDGET") as caught:
        LLMConfig(budget=text)
    assert repr(wrong) in str(caught.value)


@pytest.mark.parametrize("zone", ZONES)
def test_a_moment_lies_in_its_window_and_windows_meet(zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    in_zone(monkeypatch, zone)
    first = moment(zone, 2009, 1, 1)
    windows: tuple[Window, ...] = ("hour", "day", "month")
    for window in windows:
        now = first
        for _ in range(1500):
            start, end = window_around(now, window)
            assert start <= now < end
            assert window_around(end, window)[0] == end, (window, now)
            now = end
    assert window_around(first, "day")[0] == first


def test_days_are_as_long_as_the_clocks_make_them(monkeypatch: pytest.MonkeyPatch) -> None:
    in_zone(monkeypatch, "Europe/Berlin")
    hours = [
        (end - start) / 3600
        for start, end in (
            window_around(moment("Europe/Berlin", 2026, month, day, 12), "day")
            for month, day in ((3, 29), (7, 1), (10, 25))
        )
    ]
    assert hours == [23, 24, 25]


def test_a_day_whose_midnight_does_not_exist_begins_with_its_first_hour(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    in_zone(monkeypatch, "America/Sao_Paulo")
    start, end = window_around(moment("America/Sao_Paulo", 2018, 11, 4, 12), "day")
    assert datetime.fromtimestamp(start, ZoneInfo("America/Sao_Paulo")).isoformat()[:16] == "2018-11-04T01:00"
    assert end - start == 23 * 3600
