"""Metrics: named by the conventions, clean for tool, and of a bounded number of series."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from agents.proposal import Proposal, ProposalStatus
from daemon.events import EventBus, ProposalChanged, RunFinished, RunOutcome, RunResult
from daemon.observability.metrics import Metrics
from llm.errors import ERROR_CODES
from llm.events import (
    BreakerClosed,
    BreakerOpened,
    BudgetRefused,
    CacheHit,
    CacheMiss,
    CallEvent,
    CallFailed,
    CallFinished,
    CallStarted,
    Coalesced,
    Escalated,
    FellBack,
    FirstToken,
    Retried,
)
from tests.support.prometheus import complaints, samples, tool

BEGAN = datetime(2026, 11, 1, 12, tzinfo=UTC)


def a_run(agent: str = "matchmaker", outcome: RunOutcome = RunOutcome.SUCCEEDED) -> RunFinished:
    ended = BEGAN + timedelta(seconds=2)
    result = RunResult(
        run_id="r1", agent=agent, trigger="schedule", outcome=outcome, started_at=BEGAN, finished_at=ended
    )
    return RunFinished(result=result)


def a_call(backend: str = "ollama", model: str = "qwen2.5:1.5b", latency: float = 1.5) -> CallFinished:
    return CallFinished(backend=backend, model=model, latency=latency, prompt_tokens=90, completion_tokens=12)


@pytest.fixture
def metrics() -> Metrics:
    made = Metrics()
    made.set_version("1.2.3")
    made.expect_agents(["matchmaker", "perishables"])
    made.expect_models([("ollama", "qwen2.5:1.5b")])
    return made


async def scraped(metrics: Metrics) -> dict[str, float]:
    body, _ = await metrics.scrape()
    return samples(body.decode())


MODEL = 'gen_ai_provider_name="ollama",gen_ai_request_model="qwen2.5:1.5b"'
CALL = f'gen_ai_operation_name="chat",{MODEL}'
PLACE = '{backend="ollama",model="qwen2.5:1.5b"}'


async def test_a_call_is_counted_by_duration_and_tokens_under_the_conventional_names(
    metrics: Metrics,
) -> None:
    metrics.observe_call(CallStarted(backend="ollama", model="qwen2.5:1.5b"))
    metrics.observe_call(a_call(latency=100.0))
    found = await scraped(metrics)
    duration = "gen_ai_client_operation_duration_seconds"
    assert found[f"{duration}_sum{{{CALL}}}"] == 100.0
    assert found[f'{duration}_bucket{{{CALL},le="120.0"}}'] == 1
    assert found[f'{duration}_bucket{{{CALL},le="60.0"}}'] == 0
    assert found[f'gen_ai_client_token_usage_sum{{{MODEL},gen_ai_token_type="input"}}'] == 90
    assert found[f'gen_ai_client_token_usage_sum{{{MODEL},gen_ai_token_type="output"}}'] == 12
    assert found[f"askfirst_llm_prompt_tokens_total{PLACE}"] == 90
    assert found[f"askfirst_llm_completion_tokens_total{PLACE}"] == 12


async def test_the_duration_has_buckets_for_a_slow_machine(metrics: Metrics) -> None:
    metrics.observe_call(a_call())
    found = await scraped(metrics)
    for bound in ("0.5", "2.0", "60.0", "330.0"):
        assert f'gen_ai_client_operation_duration_seconds_bucket{{{CALL},le="{bound}"}}' in found


async def test_cache_hits_and_misses_are_counted_apart_and_begin_at_zero(metrics: Metrics) -> None:
    before = await scraped(metrics)
    assert before[f"askfirst_llm_cache_hits_total{PLACE}"] == 0
    metrics.observe_call(CacheMiss(backend="ollama", model="qwen2.5:1.5b"))
    metrics.observe_call(CacheHit(backend="ollama", model="qwen2.5:1.5b"))
    metrics.observe_call(CacheHit(backend="ollama", model="qwen2.5:1.5b"))
    after = await scraped(metrics)
    assert after[f"askfirst_llm_cache_hits_total{PLACE}"] == 2
    assert after[f"askfirst_llm_cache_misses_total{PLACE}"] == 1


async def test_vectors_are_an_operation_of_their_own_without_tokens_out(metrics: Metrics) -> None:
    metrics.observe_call(
        CallFinished(
            **WHERE, operation="embed", latency=1.0, prompt_tokens=9, completion_tokens=0, cached_tokens=4
        )
    )
    found = await scraped(metrics)
    embeddings = CALL.replace("chat", "embeddings")
    assert found[f"gen_ai_client_operation_duration_seconds_sum{{{embeddings}}}"] == 1.0
    assert found[f'gen_ai_client_token_usage_sum{{{MODEL},gen_ai_token_type="input"}}'] == 9
    assert f'gen_ai_client_token_usage_sum{{{MODEL},gen_ai_token_type="output"}}' not in found
    assert found[f"askfirst_llm_cached_prompt_tokens_total{PLACE}"] == 4


WHERE = {"backend": "ollama", "model": "qwen2.5:1.5b"}


@pytest.mark.parametrize(
    ("event", "name"),
    [
        (Coalesced(**WHERE), "coalesced"),
        (Retried(**WHERE, attempt=2, delay=0.5, code="server"), "retries"),
        (FellBack(**WHERE, to="big", code="server"), "fallbacks"),
        (Escalated(**WHERE, to="big", why="unsure"), "escalations"),
        (BudgetRefused(**WHERE, budget="5 usd/day"), "budget_refusals"),
    ],
)
async def test_what_befell_a_call_on_its_way_is_counted_by_backend(
    metrics: Metrics, event: CallEvent, name: str
) -> None:
    metrics.observe_call(event)
    assert (await scraped(metrics))[f'askfirst_llm_{name}_total{{backend="ollama"}}'] == 1


async def test_a_breaker_shows_while_it_is_open(metrics: Metrics) -> None:
    metrics.observe_call(BreakerOpened(**WHERE, failures=5, seconds=30.0))
    assert (await scraped(metrics))['askfirst_llm_breaker_open{backend="ollama"}'] == 1
    metrics.observe_call(BreakerClosed(**WHERE))
    assert (await scraped(metrics))['askfirst_llm_breaker_open{backend="ollama"}'] == 0


async def test_the_time_to_the_first_piece_is_a_histogram(metrics: Metrics) -> None:
    metrics.observe_call(FirstToken(**WHERE, seconds=0.5))
    found = await scraped(metrics)
    assert found[f"gen_ai_client_operation_time_to_first_chunk_seconds_sum{{{MODEL}}}"] == 0.5


@pytest.mark.parametrize("code", ERROR_CODES)
async def test_a_failed_call_is_counted_by_the_code_of_its_error(metrics: Metrics, code: str) -> None:
    metrics.observe_call(CallFailed(backend="ollama", model="qwen2.5:1.5b", latency=0.5, code=code))
    found = await scraped(metrics)
    assert found[f'askfirst_llm_errors_total{{backend="ollama",code="{code}"}}'] == 1
    assert not [name for name in found if "operation_duration" in name]  # a failure is no slow answer


async def test_a_run_is_counted_by_outcome_and_only_success_moves_the_last_success(metrics: Metrics) -> None:
    metrics.observe_event(a_run(outcome=RunOutcome.FAILED))
    failed = await scraped(metrics)
    assert failed['askfirst_agent_runs_total{agent="matchmaker",outcome="failed"}'] == 1
    assert failed['askfirst_agent_runs_total{agent="matchmaker",outcome="succeeded"}'] == 0
    assert 'askfirst_agent_last_success_timestamp_seconds{agent="matchmaker"}' not in failed
    metrics.observe_event(a_run())
    succeeded = await scraped(metrics)
    last = succeeded['askfirst_agent_last_success_timestamp_seconds{agent="matchmaker"}']
    assert last == (BEGAN + timedelta(seconds=2)).timestamp()
    assert succeeded['askfirst_agent_last_run_duration_seconds{agent="matchmaker"}'] == 2
    assert succeeded["askfirst_agent_run_duration_seconds_sum"] == 4


async def test_hostile_names_do_not_grow_the_number_of_series(metrics: Metrics) -> None:
    for agent in ("matchmaker", "stranger"):
        metrics.observe_event(a_run(agent))
    metrics.observe_call(a_call())
    metrics.observe_call(a_call("backend", "model"))
    metrics.observe_call(CallFailed(backend="b", model="m", latency=1.0, code="c"))
    before = await scraped(metrics)
    for n in range(2_000):
        metrics.observe_event(a_run(f"stranger {n}\n"))
        metrics.observe_call(a_call(f"backend {n}", f"model {n}"))
        metrics.observe_call(CallFailed(backend=f"b{n}", model=f"m{n}", latency=1.0, code=f"c{n}"))
    after = await scraped(metrics)
    assert set(after) == set(before)
    assert after['askfirst_llm_errors_total{backend="other",code="other"}'] == 2_001
    assert len(after) <= 200


async def test_proposals_are_counted_by_agent_and_status_as_the_store_has_them(metrics: Metrics) -> None:
    pending, applied = ProposalStatus.PENDING, ProposalStatus.APPLIED
    counts = {("matchmaker", pending): 3, ("matchmaker", applied): 1, ("unknown", pending): 2}

    async def read() -> dict[tuple[str, ProposalStatus], int]:
        return counts

    metrics.read_proposals_from(read)
    found = await scraped(metrics)
    assert found['askfirst_proposals{agent="matchmaker",status="pending"}'] == 3
    assert found['askfirst_proposals{agent="matchmaker",status="applied"}'] == 1
    assert found['askfirst_proposals{agent="other",status="pending"}'] == 2
    assert found['askfirst_proposals{agent="perishables",status="pending"}'] == 0


async def test_the_store_is_asked_again_only_after_a_change(metrics: Metrics) -> None:
    asked = []

    async def read() -> dict[tuple[str, ProposalStatus], int]:
        asked.append(1)
        return {("matchmaker", ProposalStatus.PENDING): len(asked)} if len(asked) < 3 else {}

    bus = EventBus()
    bus.subscribe(metrics.observe_event)
    metrics.read_proposals_from(read)
    await metrics.scrape()
    await metrics.scrape()
    assert len(asked) == 1
    proposal = Proposal(
        agent="matchmaker", kind="match", title="t", explanation="", payload={}, fingerprint="f"
    )
    bus.publish(ProposalChanged(proposal=proposal, before=None))
    assert (await scraped(metrics))['askfirst_proposals{agent="matchmaker",status="pending"}'] == 2
    bus.publish(ProposalChanged(proposal=proposal, before=ProposalStatus.PENDING))
    gone = await scraped(metrics)
    assert gone['askfirst_proposals{agent="matchmaker",status="pending"}'] == 0


async def test_a_store_that_fails_or_hangs_does_not_fail_the_scrape(metrics: Metrics) -> None:
    async def broken() -> dict[tuple[str, ProposalStatus], int]:
        raise OSError("disk on fire")

    async def hanging() -> dict[tuple[str, ProposalStatus], int]:
        await asyncio.sleep(3600)
        return {}

    for reader in (broken, hanging):
        metrics.read_proposals_from(reader)
        async with asyncio.timeout(30):
            found = await scraped(metrics)
        assert found["process_cpu_seconds_total"] > 0


async def test_the_process_and_the_build_describe_themselves(metrics: Metrics) -> None:
    found = await scraped(metrics)
    assert found["process_cpu_seconds_total"] > 0
    assert found["process_resident_memory_bytes"] > 1_000_000
    assert found["process_open_fds"] > 0
    assert [name for name in found if name.startswith("askfirst_build_info") and '"1.2.3"' in name]


async def test_lost_log_lines_show(metrics: Metrics) -> None:
    assert (await scraped(metrics))["askfirst_log_lines_dropped_total"] == 0
    assert (await scraped(Metrics(dropped_lines=lambda: 7)))["askfirst_log_lines_dropped_total"] == 7


async def test_many_metrics_live_side_by_side(metrics: Metrics) -> None:
    other = Metrics()
    other.expect_agents(["matchmaker"])
    other.observe_event(a_run())
    mine = await scraped(metrics)
    assert mine['askfirst_agent_runs_total{agent="matchmaker",outcome="succeeded"}'] == 0


async def test_a_scraper_that_asks_for_openmetrics_gets_it(metrics: Metrics) -> None:
    body, content_type = await metrics.scrape("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")
    _, plain = await metrics.scrape("*/*")
    assert plain.startswith("text/plain; version=0.0.4")


async def test_promtool_finds_nothing_to_complain_about(metrics: Metrics) -> None:
    tool("promtool")
    metrics.observe_call(a_call())
    metrics.observe_call(CallFailed(backend="ollama", model="m", latency=1.0, code="timeout"))
    metrics.observe_call(FirstToken(**WHERE, seconds=0.5))
    metrics.observe_call(BreakerOpened(**WHERE, failures=5, seconds=30.0))
    metrics.observe_call(Coalesced(**WHERE))
    metrics.observe_event(a_run())
    body, _ = await metrics.scrape()
    assert complaints(body.decode()) == ""


def test_promtool_does_complain_about_bad_metrics() -> None:
    tool("promtool")
    assert complaints("# TYPE badName counter\nbadName 1\n")
