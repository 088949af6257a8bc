"""AgentScheduler: runs agents when they are due, or once.

An interval here is real time: a clock that is set does not change how long an agent waits, and what came due
while the machine slept is run once afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from daemon.crew import Crew, all_done
from daemon.deadlines import Deadlines, deadlines_of
from daemon.errors import DaemonError
from daemon.events import DueTime, DueTimesSettled, Event, EventBus, ProposalChanged, RunResult
from daemon.observability.lag import LoopLag
from daemon.roster import History, Roster
from daemon.timer import Timer
from daemon.timing import Timing
from daemon.totals import Totals, iso
from daemon.turns import Hold, Turn

if TYPE_CHECKING:
    from agents.base import BaseAgent
    from agents.schedule import Schedule
    from daemon.reloading import Prepared
    from daemon.runtime import Runtime
    from daemon.settings import Settings
    from llm import LLMConfig, Routes, Selection
    from llm.events import Observer

_log = logging.getLogger(__name__)

RECOVERY_WAIT_S = 5.0
"""So long the start waits for what a crash left half-way."""


class AgentScheduler:
    """Runs agents: once, or on their schedules from `start` until `stop`.

    Args:
        llm_config: how to reach the model, or several; None lets the settings and the environment choose.
        agents: names or classes of the agents to run; None means those that the settings enable.
        settings: the configuration; None reads it from the usual places.
        events: where runs and changes of proposals are told.
        llm_observers: told of every model call.

    Attributes:
        events: as above.
        lag: how long the event loop kept it waiting, and whoever else tells it.
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
        self.lag = LoopLag()
        self._totals = Totals()
        self.events.subscribe(self._totals.take_note)
        self.events.subscribe(self._take_note)
        self._stack: AsyncExitStack | None = None
        self._runtime: Runtime | None = None
        self._selection: Selection | None = None
        self._crew = Crew(1)
        self._timer: Timer | None = None
        self._timing: Timing | None = None
        self._roster: Roster | None = None
        self._held = False
        self._refused: str | None = None
        self._started_at: datetime | None = None
        self._recovery: asyncio.Task[Any] | None = None
        self._retiring: set[asyncio.Task[None]] = set()
        self._tending = asyncio.Lock()
        self._reloading = asyncio.Lock()
        self._deadlines = Deadlines()

    @property
    def runtime(self) -> Runtime | None:
        """What is open between `start` and `stop`, or during `run_once`; another one after a `reload`."""
        return self._runtime

    @property
    def selection(self) -> Selection | None:
        """Which model was chosen and why; None before anything was opened."""
        return self._selection

    @property
    def running(self) -> bool:
        """Whether agents are run on their schedules."""
        return self._timing is not None and not self._held

    @property
    def seconds_since_tick(self) -> float | None:
        """How long ago it last looked for what is due; None when it is not running."""
        return None if self._timing is None else time.monotonic() - self._timing.looked_at

    @property
    def clock_changes(self) -> int:
        """How often the clock was set or the machine slept since the start."""
        return 0 if self._timing is None else self._timing.clock_changes

    @property
    def waiting(self) -> int:
        """How many runs wait for a place."""
        return self._crew.waiting

    @property
    def schedules(self) -> dict[str, Schedule]:
        """When each agent is due, of those that are run on schedule."""
        return {} if self._roster is None else {n: each.schedule for n, each in self._roster.entries.items()}

    async def run_once(self, agent: str | None = None) -> list[RunResult]:
        """Run every enabled agent once, or the one that is named, and tell how each run ended.

        A run that fails is a result like any other; nothing is raised for it. Runs by hand do not wait for
        those on schedule, but for the one of the same agent that is under way.

        Raises:
            AgentNotFound: there is no agent of that name.
            DaemonError: the database or the configuration cannot be used, nothing may run now, or `stop` came
                before the end.
        """
        async with self.opened() as runtime:
            if self._refused is not None:
                msg = f"no agent is run: {self._refused}"
                raise DaemonError(msg)
            trigger = "once" if self._timing is None else "manual"
            if self._timing is None:  # nobody started it: finish what a crash left half-way
                await runtime.desk.recover()
            if agent is not None and agent not in runtime.registry.names():
                runtime.registry.get(agent)  # says which there are
            names = runtime.agent_names if agent is None else (agent,)
            by_hand = self._crew.run if self._timing is None else self._timing.by_hand
            tasks = [by_hand(name, partial(self._run, name, trigger)) for name in names]
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
            runtime = await self._stack.enter_async_context(self.opened())
            await self._recover(runtime)
            await self._schedule(runtime)
        except BaseException:
            await self._close()
            raise
        self._started_at = datetime.now(UTC)

    def hold(self) -> None:
        """Begin no new run from now on."""
        self._held = True
        if self._timing is not None:
            self._timing.stop()
        if self._timer is not None:
            self._timer.pause()

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
            if self._roster is not None:
                await self._roster.stop_triggers()
            left = await self._crew.finish(settings.daemon.stop_grace.total_seconds())
            if left:
                _log.warning("runs were left behind: they ignore being cancelled", extra={"agents": left})
        finally:  # an open database would keep the process alive
            await self._close()

    async def reload(self, settings: Settings) -> tuple[str, ...]:
        """Go on with another configuration, whole or not at all.

        Runs under way end with the old one. Schedules keep their last due times; agents that are gone are
        not run any more, and new ones come spread out.

        Returns:
            What is different, one sentence each; never a secret.

        Raises:
            DaemonError: it is not started.
            SettingsError: it cannot work, or changes what needs a restart; the old one stays in force.
        """
        async with self._reloading:
            if self._runtime is None or self._timing is None or self._held:
                msg = "there is nothing to reload: the scheduler is not started; the next start reads it"
                raise DaemonError(msg)
            from daemon.reloading import prepare  # noqa: PLC0415 - loads the configuration's explanations

            new = await prepare(
                self._runtime,
                settings,
                llm_config=self._llm_config,
                agents=self._agents,
            )
            await self._switch(new)
            return new.differences

    # what a person or the program does to agents

    def trigger(self, agent: str, trigger: str, due: datetime | None = None) -> bool:
        """Something happened that makes an agent due: a file changed, a webhook, an event of a calendar.

        Args:
            agent: the agent.
            trigger: what it was, as it stands in the run.
            due: the due time, None for now.

        Returns:
            Whether it was taken up; several before a run can begin lead to one.
        """
        if self._timing is None or self._held:
            return False
        return self._timing.trigger(agent, trigger, due)

    def next_due(self, agent: str) -> datetime | None:
        """The agent's next due time by the clock, UTC; None when it has none."""
        return None if self._timing is None else self._timing.next_due(agent)

    def next_run(self, agent: str) -> datetime | None:
        """When it is run at the earliest, what holds it counted in; None when only a person can say."""
        return None if self._timing is None else self._timing.next_run(agent)

    def schedule_of(self, agent: str) -> str:
        """When the agent is due, in words; empty when it is not scheduled."""
        entry = None if self._roster is None else self._roster.entries.get(agent)
        return "" if entry is None else str(entry.schedule)

    def running_since(self, agent: str) -> datetime | None:
        """When the agent's run that is under way began, UTC; None when none is."""
        return self._crew.running_since(agent)

    def holds(self, agent: str) -> tuple[str, ...]:
        """What keeps the agent from running now, one sentence each, with the way out."""
        if self._roster is None:
            return ("the program that runs agents is not running: start it with `askfirst run`",)
        refused = [] if self._refused is None else [f"no agent is run: {self._refused}"]
        return (*refused, *self._roster.holds(agent))

    def hold_all(self, reason: str) -> None:
        """Run no agent until `release_all`, neither on schedule nor by hand; what comes due meanwhile waits.

        Args:
            reason: why, with the way out, as the end of a sentence.
        """
        self._refused = reason
        if self._timing is not None:
            self._timing.hold_all(Hold(reason=reason))

    def release_all(self) -> None:
        """End that; agents catch up, spread out."""
        self._refused = None
        if self._timing is not None:
            self._timing.release_all()

    def get_stats(self) -> dict[str, Any]:
        """What the scheduler does and did, as plain data; times are UTC in ISO 8601."""
        runtime = self._runtime
        names = () if runtime is None else runtime.agent_names
        if runtime is not None and runtime.llm is not None:
            self._totals.llm = runtime.llm.get_stats()
        return {
            "running": self.running,
            "started_at": iso(self._started_at),
            "agents": {name: self._agent_stats(name) for name in names},
            **self._totals.as_json(),
        }

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    # opening and closing

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Runtime]:
        """The runtime that is open, or one for as long as this lasts, which `run_once` uses, too."""
        if self._runtime is not None:
            yield self._runtime
            return
        from daemon.runtime import open_runtime  # noqa: PLC0415 - loads the store, which takes its time

        settings = await self._read_settings()
        self._crew = Crew(settings.daemon.max_concurrent_runs, settings.daemon.max_runs_per_backend)
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
        self._timer = timer = Timer(self.lag.note)
        self._timing = timing = Timing(
            self._take_turn, timer, self._crew, settle=self._settle, known=self._is_settled
        )
        self._roster = roster = Roster(timing)
        timing.on_clock_change = self._clock_changed
        if self._refused is not None:
            timing.hold_all(Hold(reason=self._refused))
        await runtime.runner.recover(runtime.agent_names)
        await runtime.runner.reconsider(runtime.agent_names)
        history = await History.read(runtime)
        self._totals.last.update(history.runs)
        await roster.enter(runtime, history)
        timer.add_deadline(self._tend_deadlines, datetime.now(UTC))
        timer.start(timing.look)
        timing.start()
        await roster.start_triggers(runtime, history)

    async def _switch(self, new: Prepared) -> None:
        """Go on with a new runtime over the same database."""
        from daemon.runtime import close_parts  # noqa: PLC0415 - loads the store

        try:
            history = await History.read(new.runtime)
        except DaemonError:
            await close_parts(new.runtime, self._runtime)
            raise
        old, roster = self._runtime, self._roster
        if old is None or roster is None or self._held:
            await close_parts(new.runtime, old)
            msg = "the program is stopping; the next start reads the configuration"
            raise DaemonError(msg)
        settings = new.runtime.settings
        self._runtime, self._selection, self._settings = new.runtime, new.runtime.selection, settings
        self._crew.size = settings.daemon.max_concurrent_runs
        self._crew.per_backend = settings.daemon.max_runs_per_backend
        self._retire(old, new.runtime)
        await roster.change(new.runtime, history, new.entries)
        await new.runtime.runner.reconsider(new.runtime.agent_names)

    def _retire(self, old: Runtime, new: Runtime) -> None:
        """Close what only the old configuration needs when the runs that are under way have ended."""
        from daemon.execution import APPLY_LIMIT  # noqa: PLC0415 - loads the agents
        from daemon.runtime import close_parts  # noqa: PLC0415 - loads the store

        runs = self._crew.tasks()

        async def retire() -> None:
            try:
                await all_done(runs)
                # A change that is being carried out is not cut off by another configuration, only by the end.
                await old.desk.aclose(APPLY_LIMIT.total_seconds())
            finally:
                await close_parts(old, new)

        task = asyncio.create_task(retire(), name="old configuration")
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _close(self) -> None:
        stack, self._stack = self._stack, None
        timer, timing = self._timer, self._timing
        self._timer = None
        if timer is not None:
            async with self._tending:  # not in the middle of a transaction
                await timer.aclose()
        if timing is not None:
            try:
                await timing.aclose()
            except DaemonError as error:
                _log.warning("what became of the last due times cannot be recorded: %s", error)
        self._timing = self._roster = None
        await self._end_tasks()
        if stack is not None:
            await stack.aclose()

    async def _end_tasks(self) -> None:
        """What a crash left half-way is finished by the next start; old configurations are closed now."""
        from daemon.runtime import close_parts  # noqa: PLC0415 - loads the store

        recovery = [] if self._recovery is None else [self._recovery]
        retiring = tuple(self._retiring)
        for task in (*recovery, *retiring):
            task.cancel()
        await asyncio.gather(*recovery, *retiring, return_exceptions=True)
        if self._runtime is not None:
            await close_parts(self._runtime)

    # what is due

    async def _take_turn(self, turn: Turn) -> RunResult:
        return await self._run(turn.agent, turn.trigger, turn)

    async def _run(self, name: str, trigger: str, turn: Turn | None = None) -> RunResult:
        """One run, with the runtime of its beginning; the due times that it settles are written with it."""
        runtime = self._runtime
        if runtime is None:
            raise asyncio.CancelledError
        if turn is None:
            return await runtime.runner.run(name, trigger)
        return await runtime.runner.run(name, trigger, due=turn.due, settled=turn.settled)

    async def _settle(self, rows: Sequence[DueTime]) -> None:
        runtime = self._runtime
        if runtime is not None:
            await runtime.due_times.settle(rows)
            self.events.publish(DueTimesSettled(due_times=tuple(rows)))

    async def _is_settled(self, name: str, due: datetime) -> bool:
        runtime = self._runtime
        return runtime is not None and await runtime.due_times.settled(name, due) is not None

    def _take_note(self, event: Event) -> None:
        if self._roster is None or self._timer is None or self._held:
            return
        if isinstance(event, ProposalChanged):
            for moment in deadlines_of(event.proposal):
                self._timer.bring_deadline_forward(moment)
        self._roster.take_note(event)

    def _clock_changed(self) -> None:
        """Deadlines and calendars are moments of the calendar, and have to be looked at anew."""
        if self._timer is not None and self._roster is not None:
            self._timer.move_deadline(datetime.now(UTC))
            self._roster.clock_changed()

    async def _tend_deadlines(self) -> None:
        async with self._tending:
            runtime, timer = self._runtime, self._timer
            if runtime is None or timer is None or self._held:
                return
            timer.move_deadline(await self._deadlines.tend(runtime))
            with contextlib.suppress(DaemonError):  # what another program decided meanwhile
                self._totals.set_proposals(await runtime.proposals.counts())

    def _agent_stats(self, name: str) -> dict[str, Any]:
        roster = self._roster
        return {
            "running": self.running_since(name) is not None,
            "next_run": iso(self.next_run(name)),
            "held_until": iso(None if roster is None else roster.held_until(name)),
            "last_run": self._totals.last_as_json(name),
            "problem": None if roster is None else roster.problems.get(name),
        }


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
