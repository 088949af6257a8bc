"""The room for series: however many names there are, the lines of a scrape are never more than the limit."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agents.proposal import ProposalStatus
from daemon.events import RunFinished, RunOutcome, RunResult
from daemon.observability.catalogue import METRICS, NAMES, VALUES, Metric
from daemon.observability.metrics import FEWEST_SERIES, Labels, Metrics, Reading
from daemon.observability.metrics.families import _shown
from daemon.observability.metrics.room import EXPECTED, EXPECTED_OF_OTHERS, Room, presentable
from llm.events import BreakerOpened, CacheHit, CallEvent, CallFailed, CallFinished, FirstToken, Retried
from tests.support.prometheus import complaints, samples, tool

BEGAN = datetime(2026, 11, 1, 12, tzinfo=UTC)
CANARY = "sk-canary-1f3a9c"
LIMIT = 200

NASTY = (
    "",
    "\x00\x07\x1b[31m",
    'a"} 1\naskfirst_evil{b="',
    "a\\n",
    "\ud800 lone",
    "\u202e right to left",
    "x" * 1_000_000,
    CANARY,
    "other",
    "{__name__='evil'}",
    "# HELP",
)


def a_run(agent: str, outcome: RunOutcome = RunOutcome.SUCCEEDED, seconds: float = 2.0) -> RunFinished:
    ended = BEGAN + timedelta(seconds=seconds)
    result = RunResult(
        run_id="r1", agent=agent, trigger="schedule", outcome=outcome, started_at=BEGAN, finished_at=ended
    )
    return RunFinished(result=result)


def calls_of(backend: str, model: str, code: str = "timeout") -> list[CallEvent]:
    where: dict[str, Any] = {"backend": backend, "model": model}
    return [
        CallFinished(**where, latency=1.5, prompt_tokens=90, completion_tokens=12, cached_tokens=4),
        CallFinished(**where, operation="embed", latency=0.5, prompt_tokens=9, completion_tokens=0),
        CallFailed(**where, latency=0.5, code=code),
        FirstToken(**where, seconds=0.3),
        CacheHit(**where),
        Retried(**where, attempt=2, delay=0.5, code=code),
        BreakerOpened(**where, failures=5, seconds=30.0),
    ]


async def text_of(metrics: Metrics) -> str:
    return (await metrics.scrape())[0].decode()


async def scraped(metrics: Metrics) -> dict[str, float]:
    return samples(await text_of(metrics))


def total(found: dict[str, float], name: str, part: str = "") -> float:
    return sum(value for series, value in found.items() if series.startswith(name) and part in series)


def everything(name: str, metric: Metric, agents: Iterable[str], place: tuple[str, str]) -> Any:
    """A value for each set of label values of a gauge or a counter that can be read."""
    unit = {"agent": tuple(agents), "backend": (place[0],), "model": (place[1],), "budget": ("5 usd/day",)}
    choices = [
        unit[NAMES[label]] if label in NAMES else VALUES.get(label, ("1.2.3",)) for label in metric.labels
    ]
    sets: list[Labels] = [()]
    for values in choices:
        sets = [(*labels, value) for labels in sets for value in values]
    return {labels: float(1 + sum(map(len, labels))) for labels in sets} if choices else float(len(name))


def a_usual_pi(limit: int = LIMIT) -> Metrics:
    """Three agents, one model with streamed answers, one budget, and everything that there is to tell."""
    agents, place = ("matchmaker", "perishables", "garden"), ("ollama", "qwen2.5:1.5b")
    metrics = Metrics(max_series=limit)
    metrics.set_version("1.2.3")
    metrics.expect_budgets(["5 usd/day"])
    metrics.expect_models([place])
    metrics.expect_agents(agents)
    for name, metric in METRICS.items():
        names = {NAMES.get(label, label) for label in metric.labels}
        if metric.kind == "histogram" and not names:
            metrics.observe(name, (), 1.0)
    gauges: dict[str, Any] = {
        name: everything(name, metric, agents, place)
        for name, metric in METRICS.items()
        if metric.kind == "gauge" and name != "askfirst_build_info" and not name.startswith("process")
    }
    counters = {
        name: everything(name, metric, agents, place)
        for name, metric in METRICS.items()
        if metric.kind == "counter" and not set(metric.labels) & set(NAMES) and "process" not in name
    }
    metrics.read_from(lambda: {**gauges, **counters})
    for agent in agents:
        for outcome in (RunOutcome.SUCCEEDED, RunOutcome.FAILED, RunOutcome.TIMED_OUT):
            metrics.observe_event(a_run(agent, outcome))
    for code in ("timeout", "connection", "server", "rate_limit"):
        metrics.observe_call(CallFailed(backend=place[0], model=place[1], latency=0.5, code=code))
    answered = CallFinished(
        backend=place[0], model=place[1], latency=1.5, prompt_tokens=9, completion_tokens=1
    )
    metrics.observe_call(answered)
    metrics.observe_call(FirstToken(backend=place[0], model=place[1], seconds=0.3))
    return metrics


async def test_a_usual_pi_shows_everything_by_name_within_200_series() -> None:
    metrics = a_usual_pi()
    text = await text_of(metrics)
    found = samples(text)
    assert len(found) <= LIMIT
    assert '"other"' not in text
    shown = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    assert shown == set(METRICS)
    for status in ProposalStatus:  # all thirteen of them, of each of the three agents
        assert f'askfirst_proposals{{agent="garden",status="{status}"}}' in found


async def test_a_second_backend_is_counted_by_name_too() -> None:
    metrics = Metrics()
    metrics.expect_budgets(["5 usd/day"])
    metrics.expect_models([("small", "tiny"), ("big", "large")])
    metrics.expect_agents(["matchmaker", "perishables", "garden"])
    for event in (*calls_of("small", "tiny"), *calls_of("big", "large")):
        metrics.observe_call(event)
    found = await scraped(metrics)
    assert found['askfirst_llm_prompt_tokens_total{backend="big",model="large"}'] == 99
    assert found['askfirst_llm_retries_total{backend="big"}'] == 1
    assert found['askfirst_agent_runs_total{agent="garden",outcome="failed"}'] == 0
    assert total(found, "gen_ai_client_operation_duration_seconds_count") == 4


async def test_promtool_finds_nothing_to_complain_about_in_a_scrape_of_everything() -> None:
    tool("promtool")
    assert complaints(await text_of(a_usual_pi())) == ""


async def test_a_hundred_thousand_hostile_label_values_change_nothing() -> None:
    metrics = a_usual_pi()
    for event in calls_of("stranger", "stranger", "stranger"):
        metrics.observe_call(event)
    for outcome in RunOutcome:
        metrics.observe_event(a_run("stranger", outcome))
    metrics.count("askfirst_agent_missed_total", ("stranger",))
    before, rounds = set(await scraped(metrics)), 100_000 // 24
    for number in range(rounds):
        nasty = f"{NASTY[number % len(NASTY)]}{number}"
        for event in calls_of(nasty, nasty, nasty):
            metrics.observe_call(event)
        for outcome in (RunOutcome.SUCCEEDED, RunOutcome.FAILED):
            metrics.observe_event(a_run(nasty, outcome))
        metrics.count("askfirst_agent_missed_total", (nasty,))
    text = await text_of(metrics)
    assert set(samples(text)) == before
    assert len(before) <= LIMIT
    assert CANARY not in text
    assert "evil" not in text
    found = samples(text)
    assert found['askfirst_llm_prompt_tokens_total{backend="other",model="other"}'] == (rounds + 1) * 99
    assert total(found, "askfirst_llm_errors_total", 'backend="other"') == rounds + 1
    assert total(found, "askfirst_agent_runs_total", 'agent="other"') == rounds * 2 + len(RunOutcome)
    if not complaints(""):  # the tool is here
        assert complaints(text) == ""


async def test_hostile_values_that_are_read_change_nothing_either() -> None:
    metrics = Metrics()
    metrics.expect_agents(["matchmaker"])
    counts: dict[Labels, float] = {("matchmaker", "pending"): 1.0}
    metrics.read_from(lambda: {"askfirst_proposals": counts})
    metrics.read_from(lambda: {"askfirst_agent_quarantined": {labels[:1]: 1.0 for labels in counts}})
    counts["gone", "pending"] = counts["gone", "a status of the future"] = 1.0
    before = set(await scraped(metrics))
    for number in range(20_000):
        counts[f"{NASTY[number % len(NASTY)][:50]}{number}", f"status {number}"] = 1.0
    found = await scraped(metrics)
    assert set(found) == before
    assert found['askfirst_proposals{agent="other",status="other"}'] == 20_001
    assert found['askfirst_proposals{agent="other",status="pending"}'] == 1
    assert 'askfirst_agent_quarantined{agent="other"}' not in found  # nobody waits for what is gone


async def test_a_thousand_agents_stay_within_the_limit_and_all_sums_stay_right() -> None:
    names = [f"agent{number}" for number in range(1000)]
    metrics = Metrics()
    metrics.expect_models([("ollama", "qwen2.5:1.5b")])
    metrics.expect_agents(names)
    outcomes = list(RunOutcome)
    for number, name in enumerate(names):
        metrics.observe_event(a_run(name, outcomes[number % len(outcomes)], 2.0 + number))
    reading: Reading = {
        "askfirst_proposals": {(name, str(status)): 2.0 for name in names for status in ProposalStatus},
        "askfirst_agent_next_run_timestamp_seconds": {(name,): 5000.0 - at for at, name in enumerate(names)},
        "askfirst_agent_intervals_since_success": {(name,): at / 100 for at, name in enumerate(names)},
        "askfirst_agent_quarantined": {(name,): float(name == "agent999") for name in names},
    }
    metrics.read_from(lambda: reading)
    found = await scraped(metrics)
    assert len(found) <= LIMIT
    assert total(found, "askfirst_agent_runs_total") == 1000
    assert total(found, "askfirst_agent_runs_total", 'outcome="succeeded"') == 200
    assert total(found, "askfirst_proposals{") == 2 * 1000 * len(ProposalStatus)
    assert total(found, "askfirst_proposals{", 'status="pending"') == 2000
    assert found['askfirst_agent_next_run_timestamp_seconds{agent="other"}'] == 4001
    assert found['askfirst_agent_intervals_since_success{agent="other"}'] == 9.99
    assert found['askfirst_agent_quarantined{agent="other"}'] == 1
    shown = {name for name in names if any(f'agent="{name}"' in series for series in found)}
    assert shown == set(names[: len(shown)]) != set()  # the first ones of the configuration
    for name in shown:  # each whole
        for metric in reading:
            assert [series for series in found if series.startswith(metric) and f'"{name}"' in series]
    last = "askfirst_agent_last_run_duration_seconds"
    assert f'{last}{{agent="agent0"}}' in found
    assert f'{last}{{agent="other"}}' not in found  # of several it would mean nothing
    oldest = found['askfirst_agent_last_success_timestamp_seconds{agent="other"}']
    succeeded = [number for number in range(len(shown), 1000) if number % len(outcomes) == 0]
    assert oldest == BEGAN.timestamp() + 2 + succeeded[0]


async def test_dozens_of_backends_and_budgets_leave_room_for_agents() -> None:
    metrics = Metrics()
    metrics.expect_budgets([f"{number} usd/day" for number in range(1, 60)])
    metrics.expect_models([(f"backend{number}", f"model{number}") for number in range(60)])
    metrics.expect_agents([f"agent{number}" for number in range(60)])
    metrics.read_from(
        lambda: {
            "askfirst_llm_budget_left": {(f"{number} usd/day",): 1.0 for number in range(1, 60)},
            "askfirst_llm_breaker_open": {(f"backend{number}",): float(number == 59) for number in range(60)},
        }
    )
    found = await scraped(metrics)
    assert 'askfirst_llm_budget_left{budget="1 usd/day"}' in found
    assert 'askfirst_llm_prompt_tokens_total{backend="backend0",model="model0"}' in found
    assert found['askfirst_llm_breaker_open{backend="other"}'] == 1
    assert 'askfirst_agent_runs_total{agent="agent0",outcome="succeeded"}' in found
    assert len(found) <= LIMIT


async def test_with_a_higher_limit_a_thousand_agents_are_shown_by_name() -> None:
    names = [f"agent{number}" for number in range(1000)]
    metrics = Metrics(max_series=12_000)
    metrics.expect_agents(names)
    found = await scraped(metrics)
    assert 'askfirst_agent_runs_total{agent="agent999",outcome="succeeded"}' in found
    assert not [series for series in found if '"other"' in series]


async def test_what_is_not_shown_by_name_is_said_once_with_the_way_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    metrics = Metrics()
    metrics.expect_agents(["a", "b"])
    assert caplog.messages == []
    metrics.expect_agents(map(str, range(100)))
    (message,) = caplog.messages
    assert message.startswith("9")
    assert "of 100 agents" in message
    assert "metrics.max_series" in message


async def test_an_agent_that_is_gone_is_forgotten_and_makes_room_for_another() -> None:
    metrics = Metrics(max_series=FEWEST_SERIES)
    for number in range(50):  # as many new configurations
        name = f"agent{number}"
        metrics.expect_agents([name])
        metrics.observe_event(a_run(name))
        found = await scraped(metrics)
        assert found[f'askfirst_agent_runs_total{{agent="{name}",outcome="succeeded"}}'] == 1
        assert f'askfirst_agent_last_success_timestamp_seconds{{agent="{name}"}}' in found
        assert not [series for series in found if f'"agent{number - 1}"' in series]


async def test_agents_that_come_when_all_room_is_taken_share_places_that_were_kept_for_them() -> None:
    metrics = Metrics()
    metrics.expect_agents(["matchmaker"])
    metrics.expect_models([(f"backend{number}", "model") for number in range(20)])
    for number in range(20):
        for code in VALUES["code"]:
            for event in calls_of(f"backend{number}", "model", code):
                metrics.observe_call(event)
    names = ["matchmaker", *(f"agent{number}" for number in range(20))]
    metrics.expect_agents(names)
    metrics.read_from(lambda: {"askfirst_agent_intervals_since_success": {(name,): 4.0 for name in names}})
    found = await scraped(metrics)
    assert found['askfirst_agent_intervals_since_success{agent="other"}'] == 4.0
    assert len(found) <= LIMIT


async def test_what_seldom_happens_takes_no_place_that_expected_agents_will_need() -> None:
    metrics = Metrics(max_series=FEWEST_SERIES)
    metrics.expect_agents([])
    for number in range(20):
        for code in VALUES["code"]:
            metrics.observe_call(CallFailed(backend=f"b{number}", model="m", latency=0.5, code=code))
        for outcome in RunOutcome:
            metrics.observe_event(a_run("gone", outcome))
    metrics.expect_agents(["matchmaker", "garden"])
    metrics.read_from(lambda: {"askfirst_agent_intervals_since_success": {("garden",): 4.0}})
    assert (await scraped(metrics))['askfirst_agent_intervals_since_success{agent="other"}'] == 4.0


@pytest.mark.parametrize("series", [6, 10, 20, 39, 100])
def test_what_is_read_adds_up_when_there_is_no_room_for_every_status(series: int) -> None:
    room, agents = Room(LIMIT), ("matchmaker", "perishables", "garden")
    room.expect(("agent",), [(agent,) for agent in agents])
    told = everything("askfirst_proposals", METRICS["askfirst_proposals"], agents, ("", ""))
    shown = _shown(room, {"askfirst_proposals": told}, series)["askfirst_proposals"]
    assert sum(shown.values()) == sum(told.values())
    assert len(shown) <= min(series, 39)
    for agent in agents:  # what waits for a person is always told apart
        assert shown[agent, "pending"] == told[agent, "pending"]


def test_even_if_the_room_shrank_while_a_scrape_was_made_it_has_no_line_too_many() -> None:
    values = {
        name: {(): 1.0} for name, metric in METRICS.items() if metric.kind == "gauge" and not metric.labels
    }
    shown = _shown(Room(LIMIT), values, 3)
    assert sum(map(len, shown.values())) == 3


@pytest.mark.parametrize("bad", ["x" * 5000, "line\nbreak", "\ud800", 'quote"'])
async def test_a_configured_name_is_shown_so_that_it_can_be_sent_and_seen(bad: str) -> None:
    metrics = Metrics()
    metrics.expect_models([("ollama", bad)])
    metrics.observe_call(CacheHit(backend="ollama", model=bad))
    text = await text_of(metrics)
    assert total(samples(text), "askfirst_llm_cache_hits_total") == 1
    assert '"other"' not in text
    assert max(map(len, text.splitlines())) < 400
    assert "\ud800" not in presentable(bad)


async def test_two_names_that_look_the_same_are_not_mixed() -> None:
    metrics = Metrics()
    metrics.expect_models([("ollama", "x" * 200), ("ollama", "x" * 300), ("other", "other")])
    metrics.observe_call(CacheHit(backend="ollama", model="x" * 200))
    metrics.observe_call(CacheHit(backend="ollama", model="x" * 300))
    metrics.observe_call(CacheHit(backend="other", model="other"))
    found = await scraped(metrics)
    hits = {series: value for series, value in found.items() if "cache_hits" in series}
    assert sorted(hits.values()) == [1, 2]


def test_too_small_a_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 120"):
        Metrics(max_series=FEWEST_SERIES - 1)
    assert Room(FEWEST_SERIES).free > 0


def test_the_labels_that_are_expected_are_ones_of_the_catalogue() -> None:
    for expected in (EXPECTED, EXPECTED_OF_OTHERS):
        for label, values in expected.items():
            assert set(values) <= {*VALUES[label], "other"}


TEXTS = st.sampled_from([*(each[:9] for each in NASTY), "a", "b", "c", "d", "e"]) | st.text(max_size=4)
NUMBERS = st.floats(min_value=0, max_value=1e9) | st.just(math.nan) | st.just(math.inf)


@st.composite
def labels_of(draw: st.DrawFn, metric: Metric) -> Labels:
    ours = not any(label in NAMES for label in metric.labels)
    known = [VALUES.get(label, ("1.2.3",)) for label in metric.labels]
    return tuple(
        draw(st.sampled_from(values)) if ours else draw(st.sampled_from(values) | TEXTS) for values in known
    )


@st.composite
def deeds(draw: st.DrawFn) -> tuple[str, Any]:
    """Something that the rest of the program can do to the metrics."""
    what = draw(st.sampled_from(["agents", "models", "budgets", "call", "run", "metric", "metric", "read"]))
    if what in ("agents", "budgets"):
        return what, draw(st.lists(TEXTS, max_size=12))
    if what == "models":
        return what, draw(st.lists(st.tuples(TEXTS, TEXTS), max_size=6))
    if what == "call":
        return what, (draw(TEXTS), draw(TEXTS), draw(st.sampled_from(VALUES["code"]) | TEXTS))
    if what == "run":
        return what, (draw(TEXTS), draw(st.sampled_from(list(RunOutcome))))
    metric = draw(
        st.sampled_from([each for each in METRICS.values() if each.kind != "histogram" or what != "read"])
    )
    if what == "metric":
        return what, (metric, draw(labels_of(metric)), draw(NUMBERS))
    values = draw(st.dictionaries(labels_of(metric), NUMBERS, max_size=20))
    return what, {metric.name: values}


def do(metrics: Metrics, what: str, given: Any) -> None:
    match what:
        case "agents":
            metrics.expect_agents(given)
        case "budgets":
            metrics.expect_budgets(given)
        case "models":
            metrics.expect_models(given)
        case "call":
            for event in calls_of(*given):
                metrics.observe_call(event)
        case "run":
            metrics.observe_event(a_run(*given))
        case "read":
            metrics.read_from(lambda: given)
        case _:
            metric, labels, value = given
            ways = {"counter": metrics.count, "gauge": metrics.set, "histogram": metrics.observe}
            ways[metric.kind](metric.name, labels, value)


@given(st.lists(deeds(), max_size=40), st.sampled_from([FEWEST_SERIES, 137, LIMIT]))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_sequence_of_events_exceeds_the_limit(done: list[tuple[str, Any]], limit: int) -> None:
    metrics = Metrics(max_series=limit)
    for what, given_ in done:
        do(metrics, what, given_)
    found = asyncio.run(scraped(metrics))
    assert len(found) <= limit


@given(st.lists(st.tuples(st.sampled_from("abcdefghij"), st.sampled_from(list(RunOutcome))), max_size=60))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_run_is_lost_from_the_sum(runs: list[tuple[str, RunOutcome]]) -> None:
    metrics = Metrics(max_series=FEWEST_SERIES)
    metrics.expect_agents("abcdef")
    for agent, outcome in runs:
        metrics.observe_event(a_run(agent, outcome))
    found = asyncio.run(scraped(metrics))
    assert total(found, "askfirst_agent_runs_total") == len(runs)
    assert found.get("askfirst_agent_run_duration_seconds_count", 0) == len(runs)
    succeeded = sum(outcome is RunOutcome.SUCCEEDED for _, outcome in runs)
    assert total(found, "askfirst_agent_runs_total", 'outcome="succeeded"') == succeeded
