"""Numbers, moments and states in the words of the status page."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from agents.proposal import ProposalStatus
from daemon.events import AgentState, RunOutcome
from daemon.observability.health import Answer
from daemon.store.history import LastRun, RunSums, WaitingProposal
from daemon.web import words
from daemon.web.facts import Activity, AgentFacts, Disk, Facts, Part, Waiting, edges_of
from daemon.web.view import view_of
from llm.usage import BudgetStatus, Series, Slice, parse_budgets

NOW = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine in Berlin, where the clock goes forward on 29 March 2026 and back on 25 October."""
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (words.number(1234567), "1,234,567"),
        (words.counted(1, "run"), "1 run"),
        (words.counted(0, "run"), "0 runs"),
        (words.counted(2, "query", "queries"), "2 queries"),
        (words.seconds(0.04), "0.0 s"),
        (words.seconds(9.94), "9.9 s"),
        (words.seconds(59.4), "59 s"),
        (words.seconds(59.6), "1 min"),
        (words.seconds(125), "2 min 5 s"),
        (words.money(0), "$0.00"),
        (words.money(1234), "$0.0012"),
        (words.money(1_234_567_890), "$1,234.57"),
        (words.size(999), "999 bytes"),
        (words.size(1500), "1.5 kB"),
        (words.size(73_400_000_000), "73 GB"),
        (words.size(2.5e12), "2.5 TB"),
        (words.relative(NOW, NOW), "now"),
        (words.relative(NOW + timedelta(minutes=12), NOW), "in 12 min"),
        (words.relative(NOW - timedelta(hours=3), NOW), "3 h ago"),
        (words.relative(NOW - timedelta(days=4), NOW), "4 days ago"),
        (words.iso(NOW), "2026-03-01T12:30:00+00:00"),
    ],
)
def test_values_are_said_as_people_say_them(said: str, text: str) -> None:
    assert said.replace("\N{NO-BREAK SPACE}", " ") == text


def test_a_moment_is_told_by_the_clock_on_the_wall(zone: None) -> None:
    assert words.clock(NOW + HOUR, NOW) == "14:30"
    assert words.clock(NOW + 11 * HOUR, NOW) == "Mon 2 Mar, 00:30"
    assert words.clock(NOW - timedelta(days=300), NOW) == "5 May 2025, 14:30"


def test_commands_in_a_sentence_are_set_apart() -> None:
    assert words.pieces("paused by ana; `askfirst agents resume x` ends that") == [
        (False, "paused by ana; "),
        (True, "askfirst agents resume x"),
        (False, " ends that"),
    ]
    assert words.pieces("resume it: askfirst agents resume garden") == [
        (False, "resume it: "),
        (True, "askfirst agents resume garden"),
    ]
    assert words.pieces("nothing to type") == [(False, "nothing to type")]
    assert words.pieces("") == []


@pytest.mark.parametrize(
    ("now", "days", "count", "seconds"),
    [
        (datetime(2026, 3, 29, 10, 17, tzinfo=UTC), 1, 24, 24 * 3600),
        (datetime(2026, 3, 29, 10, 17, tzinfo=UTC), 7, 7, 7 * 86400 - 3600),  # a day of 23 hours
        (datetime(2026, 10, 25, 22, 59, tzinfo=UTC), 30, 30, 30 * 86400 + 3600),  # a day of 25
        (datetime(2026, 10, 25, 1, 30, tzinfo=UTC), 1, 24, 24 * 3600),  # in the second of two hours from 2
    ],
)
def test_stretches_are_whole_hours_and_days_of_the_calendar(
    zone: None, now: datetime, days: int, count: int, seconds: float
) -> None:
    edges = edges_of(days, now)
    assert len(edges) == count + 1
    assert edges[-2] <= now < edges[-1]
    assert (edges[-1] - edges[0]).total_seconds() == seconds
    assert {edge.minute for edge in edges} == {0}
    if days > 1:
        assert {edge.hour for edge in edges} == {0}
    assert all((b - a).total_seconds() > 0 for a, b in pairwise(edges))


def agent(**fields: object) -> AgentFacts:
    known = {"name": "garden", "state": AgentState.ACTIVE, "schedule": "every 2h", "running_since": None}
    return AgentFacts(
        **{**known, "next_run": NOW + HOUR, "holds": (), "broken": False, "last": None, **fields}
    )


def last_run(outcome: RunOutcome, error: str | None = None) -> LastRun:
    return LastRun(run_id="r", agent="garden", outcome=outcome, started_at=NOW, finished_at=NOW, error=error)


def facts(**fields: object) -> Facts:
    series = Series(slices=(Slice(), Slice()), models={}, whole=Slice())
    activity = Activity(
        edges=(NOW - HOUR, NOW, NOW + HOUR),
        runs=Part((RunSums(), RunSums())),
        usage=Part(series),
        budgets=Part(()),
    )
    return Facts(
        **{
            "at": NOW,
            "days": 1,
            "version": "1",
            "uptime_s": 5.0,
            "healthy": True,
            "stopping": False,
            "checks": (Answer("database", ok=True, detail="fine", required=True),),
            "model": None,
            "started": True,
            "config_file": None,
            "agents": (agent(),),
            "waiting": Part(Waiting(count=0, oldest=())),
            "activity": activity,
            "disk": Part(Disk(database=1, free=1, size=1)),
            **fields,
        }
    )


@pytest.mark.parametrize(
    ("fields", "text", "tone"),
    [
        ({}, "ready", "good"),
        ({"running_since": NOW, "state": AgentState.PAUSED}, "running now", "good"),
        ({"broken": True}, "cannot be run", "bad"),
        ({"state": None}, "not known", "warn"),
        ({"state": AgentState.PAUSED}, "paused", "calm"),
        ({"state": AgentState.QUARANTINED}, "stopped after failures", "bad"),
        ({"holds": ("it is quiet time",)}, "held back", "calm"),
    ],
)
def test_an_agents_standing_is_one_short_word(fields: dict[str, object], text: str, tone: str) -> None:
    (row,) = view_of(facts(agents=(agent(**fields),)), str).agents
    assert (row.mark.text, row.mark.tone) == (text, tone)


WAITS = WaitingProposal(
    id=7, agent="garden", title="t", status=ProposalStatus.APPLY_FAILED, created_at=NOW, expires_at=NOW
)
UNREADABLE: Part[object] = Part(None, "no answer")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"agents": (agent(last=last_run(RunOutcome.FAILED, "x")),)}, "garden: the last run failed"),
        ({"agents": (agent(last=last_run(RunOutcome.TIMED_OUT)),)}, "garden: the last run took too long"),
        ({"agents": (agent(state=AgentState.QUARANTINED),)}, "garden: stopped after failures"),
        (
            {"checks": (Answer("model", ok=False, detail="no answer", required=False),)},
            "Language model: no answer",
        ),
        (
            {"waiting": Part(Waiting(count=1, oldest=(WAITS,)))},
            "the approved change 7 could not be carried out",
        ),
        ({"disk": UNREADABLE}, "this page cannot show the disk"),
        (
            {
                "activity": replace(
                    facts().activity,
                    budgets=Part(
                        (
                            BudgetStatus(
                                budget=parse_budgets("10 tokens/day")[0], used=8.0, reserved=0.0, resets=0.0
                            ),
                        )
                    ),
                )
            },
            "the limit 10 tokens/day is nearly used up",
        ),
    ],
)
def test_what_needs_a_look_is_said_at_the_top(fields: dict[str, object], reason: str) -> None:
    view = view_of(facts(**fields), str)
    assert [each.text for each in view.reasons] == [reason]
    assert (view.mark.text, view.mark.tone) == ("Needs a look", "warn")


@pytest.mark.parametrize(
    ("fields", "mark"),
    [
        ({}, "All is well"),
        ({"agents": (agent(last=last_run(RunOutcome.INTERRUPTED)),)}, "All is well"),
        ({"checks": (Answer("model", ok=None, detail="not asked yet", required=False),)}, "All is well"),
        ({"agents": ()}, "No agent yet"),
        ({"started": False}, "Starting"),
        ({"stopping": True}, "Stopping"),
        ({"healthy": False, "stopping": True}, "Not working"),
    ],
)
def test_the_state_of_everything_is_one_short_word(fields: dict[str, object], mark: str) -> None:
    assert view_of(facts(**fields), str).mark.text == mark


def test_runs_are_shown_by_how_they_ended_and_money_of_unknown_price_is_said() -> None:
    sums = RunSums(outcomes={outcome: n for n, outcome in enumerate(RunOutcome, 1)}, calls=9, cached_calls=3)
    used = Slice(calls=3, tokens_in=100, tokens_out=9, cost=2_000_000, unpriced=1, median=1.0, slow=9.5)
    series = Series(slices=(used, Slice()), models={("b", "m"): used}, whole=used)
    activity = replace(facts().activity, runs=Part((RunSums(), sums)), usage=Part(series))
    charts = {chart.id: chart for chart in view_of(facts(activity=activity), str).charts}
    # succeeded 1; failed 2 and timed out 3; cancelled 4 and interrupted 5
    assert [cell.value for cell in charts["runs"].rows[1].cells] == [1, 5, 9]
    assert charts["runs"].summary == "15 runs in the last 24 hours: 1 went well, 5 failed, 9 cut short."
    assert [cell.value for cell in charts["questions"].rows[1].cells] == [6, 3]
    assert "3 (33%) from memory" in charts["questions"].summary
    assert [cell.value for cell in charts["seconds"].rows[1].cells] == [None, None]
    assert charts["cost"].summary.startswith("$2.00 in the last 24 hours. The price of 1 call is not known")
    assert view_of(facts(activity=activity), str).quiet is False
    assert view_of(facts(), str).quiet is True
