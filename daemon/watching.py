"""Watching: connects the metrics with what is open: whatever they read at a scrape, and what events say.

It asks the scheduler for what is open each time, since another configuration puts another runtime in the
place of the one before. Whoever does that says so by `follow`; else the next event or scrape notices it.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from agents.context import utc_now
from agents.proposal import ProposalStatus
from daemon.events import (
    AgentState,
    AgentStateChanged,
    DueTimesSettled,
    Event,
    Fate,
    ProposalChanged,
    RunFinished,
    RunOutcome,
    RunResult,
)
from daemon.intervals import Intervals
from daemon.observability.catalogue import VALUES
from daemon.observability.logging import waiting_lines
from daemon.observability.metrics import Labels, Metrics, Reading
from llm.budgets import parse_budgets

if TYPE_CHECKING:
    from agents.schedule import Schedule
    from daemon.housekeeping import Housekeeping
    from daemon.observability.stalls import StallWatch
    from daemon.runtime import Runtime
    from daemon.scheduler import AgentScheduler
    from daemon.store.proposals import Census
    from daemon.store.space import SpaceGuard
    from llm import LLMConfig
    from llm.events import CallEvent

AGENTS_AGE_S = 5.0
BUDGETS_AGE_S = 1.0
CACHE_AGE_S = 30.0
DISK_AGE_S = 15.0
"""So old what was read may be at a scrape, in seconds; each of it costs the more to read."""

REMEMBERED_AT_ONCE = 10
"""Of so many agents the past is looked up at one scrape, those first that are shown by name."""

_SLICE = 20  # agents that are asked for their next run before the loop turns to its other work
_DECISIONS = frozenset(VALUES["action"])


class Watching:
    """Tells and feeds the metrics of one process.

    Args:
        metrics: the metrics.
        now: the clock, UTC.
    """

    def __init__(self, metrics: Metrics, now: Callable[[], datetime] = utc_now) -> None:
        self.metrics = metrics
        self._now = now
        self._scheduler: AgentScheduler | None = None
        self._followed: Runtime | None = None
        self._census: Census | None = None
        self._since: dict[str, datetime] = {}
        self._intervals: dict[str, Intervals] = {}
        self._agents_changed: Callable[[], None] = lambda: None
        self._model_changed: Callable[[], None] = lambda: None
        for action in VALUES["action"]:
            metrics.count("askfirst_proposal_decisions_total", (action,), 0)
        metrics.count("askfirst_proposal_apply_failures_total", (), 0)

    def watch(self, scheduler: AgentScheduler) -> None:
        """Tell what happens to its agents, proposals and model calls; whose observer is `note_call`."""
        self._scheduler = scheduler
        scheduler.events.subscribe(self.note)
        slowly = self.metrics.read_slowly_from
        slowly(self._look, 0.0)
        self._agents_changed = slowly(self._read_agents, AGENTS_AGE_S)
        self._model_changed = slowly(self._read_budgets, BUDGETS_AGE_S)
        slowly(self._read_cache, CACHE_AGE_S)
        slowly(self._read_database, DISK_AGE_S)
        self.metrics.read_proposals_from(self._count_proposals)
        self.metrics.read_from(self._waiting_proposals)

    def watch_program(
        self, folder: Path, space: SpaceGuard, house: Callable[[], Housekeeping | None]
    ) -> None:
        """Tell how a program that goes on running is, too.

        Args:
            folder: the data folder, on whose disk there should be room.
            space: looks after that room.
            house: makes backups and forgets what is old, None before that is known.
        """

        def failing(task: str) -> float:
            found = house()
            return float(found is not None and found.failing(task))

        self.metrics.read_from(
            lambda: {
                "askfirst_storage_full": float(bool(space.trouble)),
                "askfirst_housekeeping_failing": {(task,): failing(task) for task in VALUES["task"]},
            }
        )
        self.metrics.read_from(self._read_program)
        self.metrics.read_slowly_from(partial(_read_disk, folder), DISK_AGE_S)

    def watch_stalls(self, stalls: StallWatch) -> None:
        """Tell how often the event loop stood still."""
        self.metrics.read_from(
            lambda: {
                "askfirst_loop_stalls_total": float(stalls.stalls),
                "askfirst_loop_stalled_seconds_total": stalls.seconds,
            }
        )

    # what happens

    def note_call(self, event: CallEvent, /) -> None:
        """Take note of a model call: an `llm.events.Observer`."""
        self.follow()
        self.metrics.observe_call(event)

    def note(self, event: Event) -> None:
        """Take note of what happened: a subscriber of the event bus."""
        self.follow()
        self.metrics.observe_event(event)
        match event:
            case RunFinished(result=result):
                self._note_run(result)
            case ProposalChanged():
                self._note_change(event)
            case DueTimesSettled(due_times=settled):
                for each in settled:
                    if each.fate is Fate.MISSED:
                        self.metrics.count("askfirst_agent_missed_total", (each.agent,), each.count)
            case AgentStateChanged():
                self._agents_changed()
            case _:
                pass

    def _note_run(self, result: RunResult) -> None:
        if result.outcome is RunOutcome.SUCCEEDED:
            self._since[result.agent] = result.finished_at
            self._agents_changed()
        if result.due is not None:
            late = max(0.0, (result.started_at - result.due).total_seconds())
            name = "askfirst_agent_run_lateness_seconds"
            self.metrics.observe(name, (), late, {"run_id": result.run_id})

    def _note_change(self, event: ProposalChanged) -> None:
        proposal, exemplar = event.proposal, {"run_id": event.proposal.run_id or ""}
        if event.action == "apply_failed":
            self.metrics.count("askfirst_proposal_apply_failures_total", (), exemplar=exemplar)
        if event.action not in _DECISIONS:
            return
        self.metrics.count("askfirst_proposal_decisions_total", (event.action,), exemplar=exemplar)
        decided = event.action == "reject" or proposal.status is ProposalStatus.APPROVED
        if decided and proposal.created_at is not None and proposal.updated_at is not None:
            waited = max(0.0, (proposal.updated_at - proposal.created_at).total_seconds())
            self.metrics.observe("askfirst_proposal_decision_duration_seconds", (), waited, exemplar)

    # what is open

    def follow(self) -> Runtime | None:
        """What is open now; if it is new, expect its agents and models, and read everything anew."""
        runtime = None if self._scheduler is None else self._scheduler.runtime
        if runtime is None or runtime is self._followed:
            return runtime
        same_model = self._followed is not None and self._followed.llm is runtime.llm
        self._followed = runtime
        # In this order, since there may not be room for all: budgets are few, and alerts look at them.
        self.metrics.expect_budgets(_budgets_of(runtime))
        models = _models_of(runtime)
        self.metrics.expect_models((name, config.model) for name, config in models.items())
        self.metrics.expect_agents(runtime.agent_names)
        for name in () if same_model else models:  # the breakers of a new client are closed
            self.metrics.set("askfirst_llm_breaker_open", (name,), 0.0)
        self._since = {name: each for name, each in self._since.items() if name in runtime.agent_names}
        self._agents_changed()
        self._model_changed()
        return runtime

    # what is read

    async def _look(self) -> Reading:
        """Notice what is new, and how long the loop takes to come round now that somebody looks."""
        self.follow()
        began = time.perf_counter()
        await asyncio.sleep(0)
        if self._scheduler is not None:
            self._scheduler.lag.note(time.perf_counter() - began)
        return {}

    async def _read_agents(self) -> Reading:
        runtime, scheduler = self.follow(), self._scheduler
        if runtime is None or scheduler is None:
            return {}
        await self._remember(runtime)
        next_runs: dict[Labels, float] = {}
        for number, name in enumerate(runtime.agent_names, start=1):
            if number % _SLICE == 0:
                await asyncio.sleep(0)
            moment = scheduler.next_run(name)
            if moment is not None:
                next_runs[name,] = moment.timestamp()
        states = await runtime.states.all()
        out = {name for name, status in states.items() if status.state is AgentState.QUARANTINED}
        due = self._due_since(scheduler.schedules)
        # In a thread: a cron expression is followed step by step, and time zones are read from the disk.
        passed = await asyncio.to_thread(_passed, due, self._now())
        return {
            "askfirst_agent_next_run_timestamp_seconds": next_runs,
            "askfirst_agent_quarantined": {(name,): float(name in out) for name in runtime.agent_names},
            "askfirst_agent_intervals_since_success": passed,
        }

    async def _remember(self, runtime: Runtime) -> None:
        """Look up what agents did before this start, or before they were enabled again."""
        new = [name for name in runtime.agent_names if name not in self._since]
        for name in new[:REMEMBERED_AT_ONCE]:
            past = await runtime.runs.past(name)
            if name in self._since:  # it has succeeded meanwhile
                continue
            if past.succeeded is not None:
                self.metrics.set_last_success(name, past.succeeded.timestamp())
            if past.seconds is not None:
                seconds = max(0.0, past.seconds)
                self.metrics.set("askfirst_agent_last_run_duration_seconds", (name,), seconds)
            self._since[name] = past.succeeded or past.began or self._now()

    def _due_since(self, schedules: Mapping[str, Schedule]) -> dict[str, Intervals]:
        """What counts the intervals of each agent since its last success."""
        known = self._intervals
        self._intervals = {}
        for name, schedule in schedules.items():
            since, counted = self._since.get(name), known.get(name)
            if since is None or not schedule.timed:  # only events bring it
                continue
            same = counted is not None and (counted.schedule, counted.since) == (schedule, since)
            self._intervals[name] = counted if counted and same else Intervals(schedule, since)
        return self._intervals

    async def _count_proposals(self) -> Mapping[tuple[str, ProposalStatus], int]:
        runtime = self.follow()
        if runtime is None:
            return {}
        self._census = await runtime.proposals.census(self._now())
        return self._census.counts

    def _waiting_proposals(self) -> Reading:
        if self._census is None:
            return {}
        oldest = self._census.oldest
        age = timedelta() if oldest is None else self._now() - oldest
        return {
            "askfirst_proposal_oldest_pending_age_seconds": max(0.0, age.total_seconds()),
            "askfirst_proposals_late": float(self._census.late),
        }

    async def _read_budgets(self) -> Reading:
        runtime = self.follow()
        found = () if runtime is None or runtime.llm is None else await runtime.llm.budgets()
        return {
            "askfirst_llm_budget_used": {(str(each.budget),): each.used for each in found},
            "askfirst_llm_budget_left": {(str(each.budget),): each.left for each in found},
        }

    async def _read_cache(self) -> Reading:
        runtime = self.follow()
        stats = None if runtime is None or runtime.llm is None else await runtime.llm.cache_stats()
        if stats is None:
            return {}
        return {
            "askfirst_llm_cache_entries": float(stats.entries),
            "askfirst_llm_cache_size_bytes": float(stats.bytes),
            "askfirst_llm_cache_evictions_total": float(stats.evicted),
        }

    async def _read_database(self) -> Reading:
        runtime = self.follow()
        if runtime is None:
            return {}
        return {"askfirst_database_size_bytes": float(await asyncio.to_thread(runtime.db.size))}

    def _read_program(self) -> Reading:
        runtime, scheduler = self.follow(), self._scheduler
        if scheduler is None:
            return {}
        written = {} if runtime is None else {"askfirst_database_writes_total": float(runtime.db.writes)}
        return {
            **written,
            "askfirst_loop_lag_seconds": scheduler.lag.largest,
            "askfirst_clock_steps_total": float(scheduler.clock_changes),
            "askfirst_queue_length": {
                ("runs",): float(scheduler.waiting),
                ("log",): float(waiting_lines()),
            },
        }


def _models_of(runtime: Runtime) -> Mapping[str, LLMConfig]:
    """The backends that are asked, by name."""
    routes, llm = runtime.selection.routes, runtime.llm
    if llm is None:
        return {}
    return {llm.name: llm.config} if routes is None else routes.backends


def _budgets_of(runtime: Runtime) -> list[str]:
    """The budgets of the configuration, as they are named where they are used."""
    routes, config = runtime.selection.routes, runtime.selection.config
    if runtime.llm is None or config is None:
        return []
    shared = config.budget if routes is None else routes.budget
    own = {} if routes is None else {name: each.budget for name, each in routes.backends.items()}
    found = [each for name, text in {"": shared, **own}.items() if text for each in _parsed(text, name)]
    return list(dict.fromkeys(found))


def _parsed(text: str, backend: str) -> list[str]:
    return [str(budget) for budget in parse_budgets(text, backend=backend)]


async def _read_disk(folder: Path) -> Reading:
    """How much room the disk of a folder has; nothing before the folder is made."""
    try:
        usage = await asyncio.to_thread(shutil.disk_usage, folder)
    except FileNotFoundError:
        return {}
    return {"askfirst_disk_free_bytes": float(usage.free), "askfirst_disk_size_bytes": float(usage.total)}


def _passed(due: Mapping[str, Intervals], now: datetime) -> dict[Labels, float]:
    found = {name: intervals.passed(now) for name, intervals in due.items()}
    return {(name,): value for name, value in found.items() if value is not None}
