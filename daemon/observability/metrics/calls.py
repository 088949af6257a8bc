"""What happens to model calls and runs, as counters and histograms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from daemon.events import RunOutcome, RunResult
from llm.events import (
    BreakerClosed,
    BreakerOpened,
    BudgetRefused,
    CacheHit,
    CacheMiss,
    CallEvent,
    CallFailed,
    CallFinished,
    CallPriced,
    Coalesced,
    Escalated,
    FellBack,
    FirstToken,
    Operation,
    Retried,
)

if TYPE_CHECKING:
    from daemon.observability.metrics.families import Families

OPERATIONS: Mapping[Operation, str] = {"chat": "chat", "embed": "embeddings"}
"""What the GenAI conventions call our operations."""

HAPPENED: Mapping[type[CallEvent], str] = {
    Coalesced: "askfirst_llm_coalesced_total",
    Retried: "askfirst_llm_retries_total",
    FellBack: "askfirst_llm_fallbacks_total",
    Escalated: "askfirst_llm_escalations_total",
    BudgetRefused: "askfirst_llm_budget_refusals_total",
}
"""What befalls a call between its caller and the backend."""


def note_call(families: Families, event: CallEvent) -> None:
    """Take note of a model call."""
    place = (event.backend, event.model)
    match event:
        case CallFinished():
            _note_answer(families, event, place)
        case CallPriced():
            exemplar = _of_call(event, event.call_id)
            families.count("askfirst_llm_cost_usd_total", place, event.cost, exemplar)
        case CallFailed():
            labels = (event.backend, event.code)
            families.count("askfirst_llm_errors_total", labels, exemplar=_of_call(event, event.call_id))
        case FirstToken():
            name = "gen_ai_client_operation_time_to_first_chunk_seconds"
            families.observe(name, place, event.seconds, _of_call(event))
        case BreakerOpened() | BreakerClosed():
            is_open = isinstance(event, BreakerOpened)
            families.set("askfirst_llm_breaker_open", (event.backend,), float(is_open))
        case CacheHit():
            families.count("askfirst_llm_cache_hits_total", place)
        case CacheMiss():
            families.count("askfirst_llm_cache_misses_total", place)
        case _ if type(event) in HAPPENED:
            families.count(HAPPENED[type(event)], (event.backend,), exemplar=_of_call(event))


def _note_answer(families: Families, event: CallFinished, place: tuple[str, str]) -> None:
    exemplar = _of_call(event, event.call_id)
    operation = OPERATIONS[event.operation]
    duration = "gen_ai_client_operation_duration_seconds"
    families.observe(duration, (operation, *place), event.latency, exemplar)
    usage = "gen_ai_client_token_usage"
    families.observe(usage, (*place, "input"), event.prompt_tokens, exemplar)
    if event.operation == "chat":
        families.observe(usage, (*place, "output"), event.completion_tokens, exemplar)
    families.count("askfirst_llm_prompt_tokens_total", place, event.prompt_tokens, exemplar)
    families.count("askfirst_llm_completion_tokens_total", place, event.completion_tokens, exemplar)
    if event.cached_tokens:
        families.count("askfirst_llm_cached_prompt_tokens_total", place, event.cached_tokens, exemplar)


def note_run(families: Families, result: RunResult) -> None:
    """Take note of a run that ended."""
    agent, exemplar = (result.agent,), {"run_id": result.run_id}
    seconds = max(0.0, result.seconds)  # below 0 if the clock was set meanwhile
    families.count("askfirst_agent_runs_total", (result.agent, result.outcome.value), exemplar=exemplar)
    families.observe("askfirst_agent_run_duration_seconds", (), seconds, exemplar)
    families.set("askfirst_agent_last_run_duration_seconds", agent, seconds)
    if result.outcome is RunOutcome.SUCCEEDED:
        ended = result.finished_at.timestamp()
        families.set("askfirst_agent_last_success_timestamp_seconds", agent, ended)


def _of_call(event: CallEvent, call_id: str = "") -> dict[str, str]:
    return {"run_id": event.caller.run_id, "call_id": call_id}
