"""AgentScheduler: runs agents when they are due, or once. The only file that knows APScheduler.

APScheduler is the timer: it wakes the loop at the next due time. When that is, is decided here, because its
own interval trigger falls silent for the length of a backward clock step and blocks for minutes after a large
forward one. An interval here is real time: a clock that is set does not change how long an agent waits, and
what came due while the machine slept is run once afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from apscheduler.events import EVENT_JOB_MAX_INSTANCES
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.base import BaseTrigger

from agents.errors import AgentError
from daemon.clock import ClockChange, ClockWatch, first_due, next_due, spread_of
from daemon.crew import Crew
from daemon.deadlines import AT_LEAST_EVERY, Deadlines, deadlines_of
from daemon.errors import DaemonError
from daemon.events import Event, EventBus, ProposalChanged, RunFinished, RunOutcome, RunResult
from daemon.totals import Totals, iso

if TYPE_CHECKING:
    from agents.base import BaseAgent
    from daemon.runtime import Runtime
    from daemon.settings import Settings
    from llm import LLMConfig, Routes, Selection
    from llm.events import Observer

_log = logging.getLogger(__name__)

LOOK_EVERY_S = 30.0
"""The clocks are compared at least this often: the loop's timers stand still while the machine sleeps."""

RECOVERY_WAIT_S = 5.0
"""So long the start waits for what a crash left half-way."""

LONGEST_INTERVAL = timedelta(days=36_500)

Call = Callable[[], Awaitable[None]]

_DEADLINES = "#deadlines"  # no agent can have this name


class AgentScheduler:
    """Runs agents: once, or on their schedules from `start` until `stop`.

    Args:
        llm_config: how to reach the model, or several; None lets the settings and the environment choose.
        agents: names or classes of the agents to run; None means those that the settings enable.
        settings: the configuration; None reads it from the usual places.
        events: where runs and changes of proposals are told.
        llm_observers: told of every model call.
    """

    def __init__(
        self,
        llm_config: LLMConfig | Routes | None = None,
        agents: Sequence[str | type[BaseAgent]] | None = None,
        settings: Settings | None = None,
        *,
        events: EventBus | None = None,
        llm_observers: Sequence[Observer] = (),
    ) -> None:
        self._llm_config = llm_config
        self._agents = agents
        self._settings = settings
        self._observers = llm_observers
        self.events = EventBus() if events is None else events
        self._totals = Totals()
        self.events.subscribe(self._totals.take_note)
        self.events.subscribe(self._bring_deadlines_forward)
        self.events.subscribe(self._mind_the_model)
        self._stack: AsyncExitStack | None = None
        self._runtime: Runtime | None = None
        self._selection: Selection | None = None
        self._crew = Crew(1)
        self._timer: _Timer | None = None
        self._held = False
        self._held_because = ""
        self._started_at: datetime | None = None
        self._problems: dict[str, str] = {}
        self._recovery: asyncio.Task[Any] | None = None
        self._tending = asyncio.Lock()
        self._deadlines = Deadlines()

    @property
    def runtime(self) -> Runtime | None:
        """What is open between `start` and `stop`, or during `run_once`."""
        return self._runtime

    @property
    def selection(self) -> Selection | None:
        """Which model was chosen and why; None before anything was opened."""
        return self._selection

    @property
    def running(self) -> bool:
        """Whether agents are run on their schedules."""
        return self._timer is not None and not self._held

    @property
    def seconds_since_tick(self) -> float | None:
        """How long ago the timer last looked for what is due; None when it is not running."""
        return None if self._timer is None else time.monotonic() - self._timer.ticked_at

    async def run_once(self, agent: str | None = None) -> list[RunResult]:
        """Run every enabled agent once, or the one that is named, and tell how each run ended.

        A run that fails is a result like any other; nothing is raised for it.

        Raises:
            AgentNotFound: there is no agent of that name.
            DaemonError: the database or the configuration cannot be used, or `stop` came before the end.
        """
        async with self._opened() as runtime:
            trigger = "once" if self._timer is None else "manual"
            if self._timer is None:  # nobody started it: finish what a crash left half-way
                await runtime.desk.recover()
            if agent is not None and agent not in runtime.registry.names():
                runtime.registry.get(agent)  # says which there are
            names = runtime.agent_names if agent is None else (agent,)
            tasks = [self._crew.run(runtime, name, trigger) for name in names]
            try:
                ended = await asyncio.gather(*tasks, return_exceptions=True)
            finally:
                await self._crew.cancel(tasks)
        return _results(ended)

    async def start(self) -> None:
        """Open everything and run agents on their schedules from now on.

        Raises:
            RuntimeError: it was started before.
            DaemonError: the database, the model or the configuration cannot be used.
        """
        if self._stack is not None:
            msg = "this AgentScheduler is started already; stop() it first"
            raise RuntimeError(msg)
        self._stack = AsyncExitStack()
        self._held = False
        self._tending = asyncio.Lock()
        try:
            runtime = await self._stack.enter_async_context(self._opened())
            await self._recover(runtime)
            await self._schedule(runtime)
        except BaseException:
            await self._close()
            raise
        self._started_at = datetime.now(UTC)

    def hold(self) -> None:
        """Begin no new run from now on."""
        self._held = True
        if self._timer is not None:
            self._timer.pause()

    def hold_all(self, reason: str) -> None:
        """Run no agent on schedule until `release_all`, also from the start on; runs under way go on."""
        self._held_because = reason

    def release_all(self) -> None:
        """Run agents on schedule again."""
        self._held_because = ""

    def hurry(self) -> None:
        """Make `stop` wait for no run."""
        self._crew.hurried.set()

    async def stop(self) -> None:
        """Begin no new run, give those under way `daemon.stop_grace`, cancel the rest, close everything."""
        if self._stack is None:
            return
        self.hold()
        settings = await self._read_settings()
        try:
            left = await self._crew.finish(settings.daemon.stop_grace.total_seconds())
            if left:
                _log.warning("runs were left behind: they ignore being cancelled", extra={"agents": left})
        finally:  # an open database would keep the process alive
            await self._close()

    def get_stats(self) -> dict[str, Any]:
        """What the scheduler does and did, as plain data; times are UTC in ISO 8601."""
        runtime = self._runtime
        names = [] if runtime is None else runtime.agent_names
        if runtime is not None and runtime.llm is not None:
            self._totals.llm = runtime.llm.get_stats()
        return {
            "running": self.running,
            "started_at": iso(self._started_at),
            "agents": {name: self._agent_stats(name) for name in (*names, *self._problems)},
            **self._totals.as_json(),
        }

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[Runtime]:
        """The runtime that is open, or one for as long as this lasts."""
        if self._runtime is not None:
            yield self._runtime
            return
        from daemon.runtime import open_runtime  # noqa: PLC0415 - loads the store, which takes its time

        settings = await self._read_settings()
        self._crew = Crew(settings.daemon.max_concurrent_runs)
        async with open_runtime(
            settings,
            llm_config=self._llm_config,
            agents=self._agents,
            events=self.events,
            llm_observers=self._observers,
        ) as runtime:
            self._runtime, self._selection = runtime, runtime.selection
            self._totals.set_proposals(await runtime.proposals.counts())
            try:
                yield runtime
            finally:
                self.get_stats()  # keeps the model's totals
                self._runtime = None

    async def _read_settings(self) -> Settings:
        if self._settings is None:
            from daemon.settings import load_settings  # noqa: PLC0415 - most callers bring their own

            self._settings = await asyncio.to_thread(load_settings)
        return self._settings

    async def _recover(self, runtime: Runtime) -> None:
        """Finish what a crash left half-way; an agent that takes long over it does not hold up the start."""
        self._recovery = asyncio.create_task(self._finish_interrupted(runtime), name="recovery")
        _, unfinished = await asyncio.wait({self._recovery}, timeout=RECOVERY_WAIT_S)
        if unfinished:
            _log.warning("a change that a crash interrupted is still being finished; going on meanwhile")

    @staticmethod
    async def _finish_interrupted(runtime: Runtime) -> None:
        try:
            finished = await runtime.desk.recover()
        except DaemonError as error:
            _log.warning("what a crash interrupted cannot be finished now: %s", error)
            return
        for proposal in finished:
            _log.info("finished what a crash interrupted", extra={"proposal": proposal.id})

    async def _schedule(self, runtime: Runtime) -> None:
        self._timer = timer = _Timer(ClockWatch())
        now = datetime.now(UTC)
        for name in runtime.agent_names:
            try:
                every = runtime.settings.agent_config(name, runtime.registry.get(name)).every
            except AgentError as error:  # the others run nevertheless
                self._problems[name] = str(error)
                _log.error("an agent cannot be scheduled: %s", error, extra={"agent": name})
                continue
            if every is None:
                continue
            every = min(every, LONGEST_INTERVAL)
            spread = spread_of(name, every, len(runtime.agent_names))
            due = first_due(now, every, await self._last_start(runtime, name), spread)
            timer.add_interval(name, partial(self._due, name), every=every, first=due, spread=spread)
        timer.add_deadline(self._tend_deadlines, now)
        timer.start()

    async def _last_start(self, runtime: Runtime, name: str) -> datetime | None:
        for run in await runtime.runs.list(agent=name, limit=1):
            self._totals.last[name] = run
            return run.started_at
        return None

    async def _due(self, name: str) -> None:
        """An agent is due; ends when its run has, so that APScheduler knows that it is still running."""
        if self._held or self._held_because or self._runtime is None:
            return
        await asyncio.wait({self._crew.run(self._runtime, name, "schedule")})

    async def _tend_deadlines(self) -> None:
        async with self._tending:
            runtime, timer = self._runtime, self._timer
            if runtime is None or timer is None or self._held:
                return
            timer.move_deadline(await self._deadlines.tend(runtime))
            with contextlib.suppress(DaemonError):  # what another program decided meanwhile
                self._totals.set_proposals(await runtime.proposals.counts())

    def _bring_deadlines_forward(self, event: Event) -> None:
        if isinstance(event, ProposalChanged) and self._timer is not None and not self._held:
            for moment in deadlines_of(event.proposal):
                self._timer.bring_deadline_forward(moment)

    def _mind_the_model(self, event: Event) -> None:
        """Leave an agent alone until its model may be asked again; a run that succeeds takes it up again."""
        if not isinstance(event, RunFinished) or self._timer is None or self._held:
            return
        result = event.result
        if result.not_before is not None:
            self._timer.hold(result.agent, result.not_before)
            held = {"agent": result.agent, "until": iso(result.not_before)}
            _log.warning("an agent is not run on schedule for a while: its model asks to wait", extra=held)
        elif result.outcome is RunOutcome.SUCCEEDED:
            self._timer.release(result.agent)

    def _agent_stats(self, name: str) -> dict[str, Any]:
        return {
            "running": name in self._crew.names(),
            "next_run": iso(None if self._timer is None else self._timer.next_run(name)),
            "held_until": iso(None if self._timer is None else self._timer.held_until(name)),
            "last_run": self._totals.last_as_json(name),
            "problem": self._problems.get(name),
        }

    async def _close(self) -> None:
        stack, self._stack = self._stack, None
        timer, self._timer = self._timer, None
        self._problems.clear()
        if timer is not None:
            async with self._tending:  # not in the middle of a transaction
                await timer.aclose()
        if self._recovery is not None:
            self._recovery.cancel()
            await asyncio.gather(self._recovery, return_exceptions=True)
        if stack is not None:
            await stack.aclose()


def _results(ended: Sequence[RunResult | BaseException]) -> list[RunResult]:
    """The results if there is nothing but results; else what kept a run from being recorded."""
    results = [each for each in ended if isinstance(each, RunResult)]
    if len(results) < len(ended):
        error = next(each for each in ended if isinstance(each, BaseException))
        if not isinstance(error, asyncio.CancelledError):
            raise error
        msg = f"the scheduler was stopped when {len(results)} of {len(ended)} agents had run"
        raise DaemonError(msg) from error
    return results


class IntervalTrigger(BaseTrigger):  # type: ignore[misc]  # APScheduler has no types
    """Due every so often, never in the past: what was missed is left out, not listed.

    Args:
        every: the interval.
        first: when it is due first.
    """

    def __init__(self, every: timedelta, first: datetime) -> None:
        self.every = every
        self.first = first

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime:
        """The next due time, after `now` unless it is the first."""
        if previous_fire_time is None:
            return self.first
        return next_due(previous_fire_time, self.every, now)


class _Onward(BaseTrigger):  # type: ignore[misc]  # APScheduler has no types
    """Of a job that says itself when it is due next; until it has, a minute later."""

    def get_next_fire_time(self, _previous: datetime | None, now: datetime) -> datetime:
        return now + AT_LEAST_EVERY


class _Clockwork(AsyncIOScheduler):  # type: ignore[misc]  # APScheduler has no types
    """APScheduler that looks at the clocks before it looks for what is due."""

    def __init__(self, before: Callable[[], None], **options: Any) -> None:
        super().__init__(**options)
        self._before = before

    def wakeup(self) -> None:
        self._before()
        super().wakeup()


class _Timer:
    """Calls coroutine functions when they are due, whatever happens to the clock.

    Attributes:
        ticked_at: when it last looked for what is due, seconds of `time.monotonic`.
    """

    def __init__(self, clock: ClockWatch) -> None:
        self.ticked_at = time.monotonic()
        self._clock = clock
        self._spreads: dict[str, timedelta] = {}
        self._every: dict[str, timedelta] = {}
        self._holds: dict[str, datetime] = {}
        self._overlapping: set[str] = set()
        self._watch: asyncio.Task[None] | None = None
        self._closing = False
        timer_log = logging.getLogger(f"{__name__}.timer")
        timer_log.setLevel(logging.ERROR)  # overlapping runs are told once by us, not at each tick by it
        self._aps = _Clockwork(
            self._look,
            timezone=UTC,
            logger=timer_log,
            job_defaults={"misfire_grace_time": None, "coalesce": True, "max_instances": 1},
        )
        self._aps.add_listener(self._overlap, EVENT_JOB_MAX_INSTANCES)

    def add_interval(
        self,
        name: str,
        call: Call,
        every: timedelta,
        first: datetime,
        spread: timedelta,
    ) -> None:
        """Call `call` at `first` and every `every` after it; `spread` delays it after a sleep."""
        self._spreads[name], self._every[name] = spread, every
        self._aps.add_job(self._fire, IntervalTrigger(every, first), args=(name, call), id=name, name=name)

    def add_deadline(self, call: Call, first: datetime) -> None:
        """Call `call` at `first`, and then when it says by `move_deadline`."""
        job = {"id": _DEADLINES, "name": _DEADLINES, "args": (_DEADLINES, call)}
        self._aps.add_job(self._fire, _Onward(), next_run_time=first, **job)

    async def _fire(self, name: str, call: Call) -> None:
        try:
            await call()
        except asyncio.CancelledError:
            if not self._closing:  # APScheduler reports the end of its own shutdown as an error
                raise
        finally:
            self._overlapping.discard(name)

    def move_deadline(self, moment: datetime) -> None:
        """The deadline job is due at `moment`."""
        self._aps.modify_job(_DEADLINES, next_run_time=moment)

    def bring_deadline_forward(self, moment: datetime) -> None:
        """The deadline job is due at `moment` if that is sooner than it was due before."""
        due = self.next_run(_DEADLINES)
        if due is None or moment < due:
            self.move_deadline(moment)

    def hold(self, name: str, until: datetime) -> None:
        """Do not call that job before `until`."""
        due = self.next_run(name)
        if due is not None and due < until:
            self._holds[name] = until
            self._aps.modify_job(name, next_run_time=until)

    def release(self, name: str) -> None:
        """End a hold: the job is due one interval from now."""
        if self._holds.pop(name, None) is not None:
            now = datetime.now(UTC)
            due = self.next_run(name)
            if due is not None and due > now + self._every[name]:
                self._aps.modify_job(name, next_run_time=now + self._every[name])

    def held_until(self, name: str) -> datetime | None:
        """Until when that job is held, None when it is not."""
        until = self._holds.get(name)
        return until if until is not None and until > datetime.now(UTC) else None

    def next_run(self, name: str) -> datetime | None:
        """When that job is due next."""
        job = self._aps.get_job(name)
        due: datetime | None = getattr(job, "next_run_time", None)  # absent until the timer starts
        return due

    def start(self) -> None:
        """Begin."""
        self._aps.start()
        self._watch = asyncio.create_task(self._watch_clock(), name="clock watch")

    def pause(self) -> None:
        """Call nothing any more."""
        if self._aps.running:
            self._aps.pause()

    async def aclose(self) -> None:
        """End for good; what is under way has to be ended before."""
        self._closing = True
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
        if self._aps.running:
            self._aps.shutdown(wait=False)
            await asyncio.sleep(0)  # it ends in the loop's next round

    async def _watch_clock(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            self._aps.wakeup()

    def _look(self) -> None:
        self.ticked_at = time.monotonic()
        change = self._clock.look()
        if change is not None:
            self._adjust(change)

    def _adjust(self, change: ClockChange) -> None:
        """Keep each agent's remaining time after a step; run what came due during a sleep, spread out."""
        seconds = {"step_seconds": change.step.total_seconds(), "slept_seconds": change.slept.total_seconds()}
        _log.warning("the clock was set, or the machine slept", extra=seconds)
        now = datetime.now(UTC)
        for name, spread in self._spreads.items():
            due = self.next_run(name)
            if due is None:
                continue
            with contextlib.suppress(OverflowError):  # a step beyond the year 9999 or 1: due at once
                due += change.step
            self._aps.modify_job(name, next_run_time=due if due > now else now + spread)
        self.move_deadline(now)  # these are moments of the calendar, and have to be looked at anew

    def _overlap(self, event: Any) -> None:
        if event.job_id not in self._overlapping:
            self._overlapping.add(event.job_id)
            _log.info("due again while still running: skipped until it ends", extra={"agent": event.job_id})
