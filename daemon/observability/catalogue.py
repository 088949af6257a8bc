"""The catalogue: every metric there is, with its type, unit, labels and meaning, as plain values.

The registry, `askfirst metrics list`, docs/metrics.md, the dashboards and the alert rules are made from it or
held against it, so no name can mean two things.

Names and units follow Prometheus' conventions (https://prometheus.io/docs/practices/naming/); those that
begin with `gen_ai_` OpenTelemetry's (https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from agents.proposal import ProposalStatus
from daemon.events import RunOutcome
from llm.errors import ERROR_CODES

Kind = Literal["counter", "gauge", "histogram"]

Together = Literal["sum", "largest", "smallest", "left out"]

OTHER = "other"
"""Label value of everything that has no place of its own."""

CALL_BUCKETS = (0.5, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 330.0)
"""Seconds. On a Raspberry Pi a call can take minutes; 330 is above the longest time limit of a call."""

FIRST_CHUNK_BUCKETS = (0.5, 2.0, 10.0, 60.0, 330.0)
"""Seconds: a cold model of 1.5 billion parameters takes half a minute to its first token on a Pi."""

TOKEN_BUCKETS = (16.0, 64.0, 256.0, 1024.0, 4096.0)
"""The GenAI conventions' buckets, from those that small models reach."""

RUN_BUCKETS = (0.25, 1.0, 5.0, 30.0, 120.0, 330.0)
"""Seconds."""

LATENESS_BUCKETS = (1.0, 10.0, 60.0, 600.0, 3600.0)
"""Seconds: of a run that began on time, to one that was caught up after the machine was off."""

DECISION_BUCKETS = (60.0, 600.0, 3600.0, 21600.0, 86400.0)
"""Seconds: a minute to a day; after three a proposal usually expires."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric.

    Attributes:
        name: as it is exposed and queried, a counter's `_total` included.
        kind: what it is.
        help: what it says, one sentence.
        unit: of its value; empty where it counts things that the name says, or is a yes or no.
        labels: their names; what each one can be is told by `LABELS`.
        buckets: upper bounds of a histogram's, infinity left out.
        together: how the values of those that share the label value `other` become one.
    """

    name: str
    kind: Kind
    help: str
    unit: str = ""
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    together: Together = "sum"

    @property
    def series(self) -> int:
        """How many series one set of label values makes: a histogram has one for each bucket, and three."""
        return len(self.buckets) + 3 if self.kind == "histogram" else 1


_RARE = "; a rare one is `other` when there is no room"

LABELS = MappingProxyType(
    {
        "agent": "an agent that the configuration enables; `other` for those beyond the limit, and any other",
        "outcome": "how a run ended: `succeeded`, `failed`, `timed_out`, `cancelled`, `interrupted`" + _RARE,
        "status": "where a proposal stands in its life: `pending`, `applied`, ..." + _RARE,
        "action": "what a person did: `approve`, `edit`, `reject`, `snooze`, `undo`",
        "backend": "a backend of the configuration; `other` for those beyond the limit, and any other",
        "model": "a model of the configuration; `other` for those beyond the limit, and any other",
        "code": "the kind of error: `timeout`, `connection`, `rate_limit`, ..." + _RARE,
        "budget": "a budget as the configuration writes it, as long as there is room",
        "queue": "what waits: `runs` for a free place, `log` lines to be written",
        "task": "`backup` or `retention`",
        "version": "of Askfirst",
        "python": "version of Python",
        "gen_ai_provider_name": "as `backend`",
        "gen_ai_request_model": "as `model`",
        "gen_ai_operation_name": "`chat` or `embeddings`; `other` for models beyond the limit",
        "gen_ai_token_type": "`input` or `output`; `other` for models beyond the limit",
    }
)
"""What the values of each label can be: always one of a closed set, never a text from outside."""

VALUES = MappingProxyType(
    {
        "outcome": tuple(str(each) for each in RunOutcome),
        "status": tuple(str(each) for each in ProposalStatus),
        "action": ("approve", "edit", "reject", "snooze", "undo"),
        "code": ERROR_CODES,
        "queue": ("runs", "log"),
        "task": ("backup", "retention"),
        "gen_ai_operation_name": ("chat", "embeddings"),
        "gen_ai_token_type": ("input", "output"),
    }
)
"""The labels whose values this program makes itself, with all of them."""

NAMES = MappingProxyType(
    {
        "agent": "agent",
        "backend": "backend",
        "model": "model",
        "budget": "budget",
        "gen_ai_provider_name": "backend",
        "gen_ai_request_model": "model",
    }
)
"""The labels whose values the configuration gives, with what they name."""

_CALL = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")
_PLACE = ("backend", "model")

LLM = (
    Metric(
        name="gen_ai_client_operation_duration_seconds",
        kind="histogram",
        help="Duration of model calls that were answered, retries not included.",
        unit="seconds",
        labels=_CALL,
        buckets=CALL_BUCKETS,
    ),
    Metric(
        name="gen_ai_client_operation_time_to_first_chunk_seconds",
        kind="histogram",
        help="Time from a streamed request to the first piece of its answer.",
        unit="seconds",
        labels=("gen_ai_provider_name", "gen_ai_request_model"),
        buckets=FIRST_CHUNK_BUCKETS,
    ),
    Metric(
        name="gen_ai_client_token_usage",
        kind="histogram",
        help="Tokens of one model call.",
        unit="tokens",
        labels=(*_CALL[1:], "gen_ai_token_type"),
        buckets=TOKEN_BUCKETS,
    ),
    Metric(
        name="askfirst_llm_prompt_tokens_total",
        kind="counter",
        help="Tokens sent to models.",
        unit="tokens",
        labels=_PLACE,
    ),
    Metric(
        name="askfirst_llm_cached_prompt_tokens_total",
        kind="counter",
        help="Tokens sent to models that these had in a prefix cache of their own.",
        unit="tokens",
        labels=_PLACE,
    ),
    Metric(
        name="askfirst_llm_completion_tokens_total",
        kind="counter",
        help="Tokens generated by models.",
        unit="tokens",
        labels=_PLACE,
    ),
    Metric(
        name="askfirst_llm_cost_usd_total",
        kind="counter",
        help="What calls cost at list prices or your own; 0 for a local model, nothing for unknown prices.",
        unit="US dollars",
        labels=_PLACE,
    ),
    Metric(
        name="askfirst_llm_cache_hits_total",
        kind="counter",
        help="Calls answered by the response cache.",
        labels=_PLACE,
    ),
    Metric(
        name="askfirst_llm_cache_misses_total",
        kind="counter",
        help="Calls that the response cache could not answer.",
        labels=_PLACE,
    ),
    Metric(name="askfirst_llm_cache_entries", kind="gauge", help="Answers in the response cache's file."),
    Metric(
        name="askfirst_llm_cache_size_bytes",
        kind="gauge",
        help="Room that the answers in the response cache's file take.",
        unit="bytes",
    ),
    Metric(
        name="askfirst_llm_cache_evictions_total",
        kind="counter",
        help="Answers that this program removed from the response cache's file to make room.",
    ),
    Metric(
        name="askfirst_llm_coalesced_total",
        kind="counter",
        help="Calls that shared the answer of an identical one.",
        labels=("backend",),
    ),
    Metric(
        name="askfirst_llm_errors_total",
        kind="counter",
        help="Failed model calls by kind of error.",
        labels=("backend", "code"),
    ),
    Metric(
        name="askfirst_llm_retries_total",
        kind="counter",
        help="Calls made again after a failure.",
        labels=("backend",),
    ),
    Metric(
        name="askfirst_llm_fallbacks_total",
        kind="counter",
        help="Calls that another backend took over after this one failed.",
        labels=("backend",),
    ),
    Metric(
        name="askfirst_llm_escalations_total",
        kind="counter",
        help="Answers that a larger model was asked to better.",
        labels=("backend",),
    ),
    Metric(
        name="askfirst_llm_breaker_open",
        kind="gauge",
        help="1 while the backend is left alone after failures.",
        labels=("backend",),
        together="largest",
    ),
    Metric(
        name="askfirst_llm_budget_used",
        kind="gauge",
        help="What of the budget is spent since its window began, in its own unit.",
        labels=("budget",),
        together="left out",
    ),
    Metric(
        name="askfirst_llm_budget_left",
        kind="gauge",
        help="What of the budget is left until its window ends, in its own unit.",
        labels=("budget",),
        together="left out",
    ),
    Metric(
        name="askfirst_llm_budget_refusals_total",
        kind="counter",
        help="Calls refused because a budget is used up.",
        labels=("backend",),
    ),
)

AGENTS = (
    Metric(
        name="askfirst_agent_runs_total",
        kind="counter",
        help="Runs of agents by how they ended.",
        labels=("agent", "outcome"),
    ),
    Metric(
        name="askfirst_agent_run_duration_seconds",
        kind="histogram",
        help="Duration of runs of agents, model calls included.",
        unit="seconds",
        buckets=RUN_BUCKETS,
    ),
    Metric(
        name="askfirst_agent_run_lateness_seconds",
        kind="histogram",
        help="Time from when a run was due to when it began.",
        unit="seconds",
        buckets=LATENESS_BUCKETS,
    ),
    Metric(
        name="askfirst_agent_last_run_duration_seconds",
        kind="gauge",
        help="Duration of the agent's last run.",
        unit="seconds",
        labels=("agent",),
        together="left out",
    ),
    Metric(
        name="askfirst_agent_last_success_timestamp_seconds",
        kind="gauge",
        help="When a run of the agent last succeeded; survives a restart.",
        unit="seconds since 1970",
        labels=("agent",),
        together="smallest",
    ),
    Metric(
        name="askfirst_agent_next_run_timestamp_seconds",
        kind="gauge",
        help="When the agent runs next; absent while only a person or an event can bring a run.",
        unit="seconds since 1970",
        labels=("agent",),
        together="smallest",
    ),
    Metric(
        name="askfirst_agent_intervals_since_success",
        kind="gauge",
        help="Time since the agent last succeeded, or first ran, in intervals of its schedule.",
        unit="intervals",
        labels=("agent",),
        together="largest",
    ),
    Metric(
        name="askfirst_agent_missed_total",
        kind="counter",
        help="Due times that could not be run: the program was off, or the machine slept.",
        labels=("agent",),
    ),
    Metric(
        name="askfirst_agent_quarantined",
        kind="gauge",
        help="1 while the agent is not run because it failed too often.",
        labels=("agent",),
        together="largest",
    ),
)

PROPOSALS = (
    Metric(
        name="askfirst_proposals",
        kind="gauge",
        help="Proposals in the database.",
        labels=("agent", "status"),
    ),
    Metric(
        name="askfirst_proposal_oldest_pending_age_seconds",
        kind="gauge",
        help="Age of the proposal that has waited longest for a decision; 0 when none waits.",
        unit="seconds",
    ),
    Metric(
        name="askfirst_proposals_late",
        kind="gauge",
        help="Proposals that have waited over half the time until they expire.",
    ),
    Metric(
        name="askfirst_proposal_decision_duration_seconds",
        kind="histogram",
        help="Time from a proposal to its approval or rejection.",
        unit="seconds",
        buckets=DECISION_BUCKETS,
    ),
    Metric(
        name="askfirst_proposal_decisions_total",
        kind="counter",
        help="What people did with proposals.",
        labels=("action",),
    ),
    Metric(
        name="askfirst_proposal_apply_failures_total",
        kind="counter",
        help="Tries to carry out an approved change that failed; one that is no longer of use is withdrawn.",
    ),
)

PROGRAM = (
    Metric(
        name="askfirst_build_info", kind="gauge", help="The running program.", labels=("version", "python")
    ),
    Metric(
        name="askfirst_loop_lag_seconds",
        kind="gauge",
        help="The longest that the event loop kept others waiting in the last minute, as far as it was seen.",
        unit="seconds",
    ),
    Metric(
        name="askfirst_loop_stalls_total",
        kind="counter",
        help="How often an agent kept the event loop from all other work for longer than daemon.stall_after.",
    ),
    Metric(
        name="askfirst_loop_stalled_seconds_total",
        kind="counter",
        help="How long those stalls were together.",
        unit="seconds",
    ),
    Metric(
        name="askfirst_queue_length",
        kind="gauge",
        help="What waits to be worked on.",
        labels=("queue",),
    ),
    Metric(
        name="askfirst_log_lines_dropped_total",
        kind="counter",
        help="Log lines lost because nobody read them fast enough.",
    ),
    Metric(
        name="askfirst_database_size_bytes",
        kind="gauge",
        help="Size of the database with its write-ahead log.",
        unit="bytes",
    ),
    Metric(
        name="askfirst_database_writes_total",
        kind="counter",
        help="Transactions that this program committed.",
    ),
    Metric(
        name="askfirst_disk_free_bytes",
        kind="gauge",
        help="Free room on the disk of the data folder.",
        unit="bytes",
    ),
    Metric(
        name="askfirst_disk_size_bytes",
        kind="gauge",
        help="Size of the disk of the data folder.",
        unit="bytes",
    ),
    Metric(
        name="askfirst_storage_full",
        kind="gauge",
        help="1 while no agent is run because the disk is nearly full.",
    ),
    Metric(
        name="askfirst_housekeeping_failing",
        kind="gauge",
        help="1 while the last try of the job failed; it is tried again each hour.",
        labels=("task",),
    ),
    Metric(
        name="askfirst_clock_steps_total",
        kind="counter",
        help="How often the clock was set, or the machine slept.",
    ),
    Metric(
        name="process_cpu_seconds_total",
        kind="counter",
        help="User and system CPU time used.",
        unit="seconds",
    ),
    Metric(
        name="process_start_time_seconds",
        kind="gauge",
        help="When the process began.",
        unit="seconds since 1970",
    ),
    Metric(name="process_resident_memory_bytes", kind="gauge", help="Resident memory.", unit="bytes"),
    Metric(name="process_open_fds", kind="gauge", help="Open file descriptors."),
)

GROUPS = MappingProxyType({"Models": LLM, "Agents": AGENTS, "Proposals": PROPOSALS, "The program": PROGRAM})
"""All metrics by what they are about, in the order in which people read them."""

METRICS = MappingProxyType({metric.name: metric for group in GROUPS.values() for metric in group})
"""All metrics by name."""
