"""Runner: one run of one agent, from the look at what is due to the record of what came of it.

    expire and wake -> alone with the agent -> recheck open proposals -> analyze -> one transaction -> events

It is the one place that catches: whatever an agent's code raises becomes the outcome of its run. The
transaction holds the run, its model calls, what it withdraws, its new proposals, what became of its due times
and what its end makes of the agent's state, or nothing of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from agents.base import BaseAgent
from agents.config import AgentConfig
from agents.context import ModelCall, utc_now
from agents.durations import format_duration
from agents.errors import AgentError, AgentNotFound, InvalidProposal
from agents.proposal import Approvers, Proposal
from daemon.decisions import WITHDRAWABLE
from daemon.discipline import after_run, config_digest, resumed_by_configuration
from daemon.events import (
    AgentState,
    AgentStatus,
    DueTime,
    DueTimesSettled,
    Event,
    EventBus,
    ProposalChanged,
    RunBegun,
    RunFinished,
    RunOutcome,
    RunResult,
)
from daemon.execution import explain
from daemon.intake import fit_call, fit_proposal, fit_returned
from daemon.interruptions import Interruptions, announce
from daemon.maker import AgentMaker
from daemon.observability.context import about, about_nothing
from daemon.outcome import RunUnderWay
from daemon.proposals import ProposalDesk
from daemon.store.locks import LockBusy
from daemon.store.uncancelled import finished
from llm import LLMError, calling

if TYPE_CHECKING:
    from daemon.store.due_times import DueTimeStore
    from daemon.store.engine import Database
    from daemon.store.proposals import ProposalStore
    from daemon.store.runs import RunStore
    from daemon.store.states import StateStore

STOP_SECONDS = 2.0
"""How long an agent may take to end after it was told to stop; then it is left behind."""

_PROBLEMS_SHOWN = 3
_log = logging.getLogger(__name__)


class Runner:
    """Runs agents, each one at a time.

    Args:
        maker: makes the agents.
        database: where everything is recorded.
        proposals: its proposals.
        runs: its runs.
        desk: expires, wakes and withdraws proposals.
        due_times: what became of its due times.
        states: what is kept about the agents between their runs.
        events: where the run and its proposals are told.
        now: the clock, UTC.
    """

    def __init__(
        self,
        maker: AgentMaker,
        database: Database,
        proposals: ProposalStore,
        runs: RunStore,
        desk: ProposalDesk,
        *,
        due_times: DueTimeStore,
        states: StateStore,
        events: EventBus,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._maker = maker
        self._database = database
        self._proposals = proposals
        self._runs = runs
        self._due_times = due_times
        self._states = states
        self._desk = desk
        self._events = events
        self._now = now
        self._interruptions = Interruptions(maker, database, runs, due_times, states, events=events, now=now)
        self._turns: dict[str, asyncio.Lock] = {}
        self._left_behind: set[asyncio.Task[Any]] = set()

    async def run(
        self,
        agent_name: str,
        trigger: str = "manual",
        *,
        due: datetime | None = None,
        settled: Iterable[DueTime] = (),
    ) -> RunResult:
        """Run an agent once and record how it ended; a run that fails is a result, not an exception.

        Args:
            agent_name: the agent.
            trigger: why it runs: "once" or "manual" by hand, else "schedule", "after NAME", "file" and so on.
            due: the due time that it is for, None of a run by hand.
            settled: earlier due times of the agent that were not run, recorded together with the run; those
                that are coalesced get its name.

        Raises:
            StoreError: the database cannot be used; nothing of the run was kept.
            asyncio.CancelledError: it was cancelled, and is recorded as cancelled if it had begun. Its due
                times stay open.
        """
        async with self._turns.setdefault(agent_name, asyncio.Lock()):
            await self._desk.expire_due()
            run = RunUnderWay.of(agent_name, trigger, self._now(), due, settled)
            with about(agent=run.agent, run_id=run.run_id):
                return await self._carry_out(agent_name, run)

    async def _carry_out(self, agent_name: str, run: RunUnderWay) -> RunResult:
        config = AgentConfig(name=agent_name)
        try:
            config = await self._maker.config(agent_name)
            async with self._interruptions.alone(run, config):
                self._tell(RunBegun(agent=run.agent, run_id=run.run_id, trigger=run.trigger))
                await self._work(run, config)
                return await finished(self._record(run, config))
        except (AgentError, LockBusy) as error:
            run.end(RunOutcome.FAILED, explain(error))
            run.blameless = isinstance(error, AgentNotFound | LockBusy)
        return await finished(self._record(run, config))

    def _tell(self, *events: Event) -> None:
        with about_nothing():
            for event in events:
                self._events.publish(event)

    async def config(self, agent_name: str) -> AgentConfig:
        """How an agent is run.

        Raises:
            AgentError: there is no such agent, it cannot be loaded, or its table cannot work.
        """
        return await self._maker.config(agent_name)

    async def recover(self, names: Iterable[str]) -> tuple[RunResult, ...]:
        """Record which runs of these agents ended with the whole program; call it before any of them is run.

        Returns:
            The interrupted runs. Their due times are open, except of an agent that was quarantined for it.

        Raises:
            StoreError: the database or a lock file cannot be used.
        """
        return await self._interruptions.recover(names)

    async def reconsider(self, names: Iterable[str]) -> tuple[AgentStatus, ...]:
        """Resume those of these agents that are quarantined and have another configuration now.

        Returns:
            The statuses of those that were resumed.

        Raises:
            StoreError: the database cannot be used.
        """
        kept = await self._states.all()
        found: list[AgentStatus] = []
        for name in names:
            if name not in kept or kept[name].state is not AgentState.QUARANTINED:
                continue
            try:
                digest = config_digest(await self._maker.config(name))
            except AgentError:  # it cannot be run with this one either
                continue
            found += await finished(self._reconsider(name, digest))
        return tuple(found)

    async def _reconsider(self, name: str, digest: str) -> list[AgentStatus]:
        async with self._database.write() as connection:
            before = await self._states.get(name, connection)  # a person may have been quicker
            status = resumed_by_configuration(before, digest, self._now())
            if status is not None:
                await self._states.save(connection, status)
        if status is None:
            return []
        announce(self._events, status, before.state)
        return [status]

    async def _work(self, run: RunUnderWay, config: AgentConfig) -> None:
        """Let the agent look and think, within its time; what comes of it is in `run`."""
        async with self._maker.lent(
            run.agent,
            run_id=run.run_id,
            open_proposals=await self._proposals.open_for(run.agent),
            turned_down=await self._proposals.turned_down(run.agent),
            calls=run.calls,
            notes=run.notes,
        ) as agent:
            await self._let_look(agent, run, config)

    async def _let_look(self, agent: BaseAgent, run: RunUnderWay, config: AgentConfig) -> None:
        with calling(agent=run.agent, run_id=run.run_id):
            task = asyncio.create_task(_caught(_look(agent, run)), name=f"run of {run.agent}")
        try:
            await asyncio.wait({task}, timeout=config.timeout.total_seconds())
        except asyncio.CancelledError:
            run.end(RunOutcome.CANCELLED, "it was stopped before it had finished")
            await self._stop(task, run)
            await finished(self._record(run, config))
            raise
        if not task.done():
            limit = format_duration(config.timeout)
            run.end(RunOutcome.TIMED_OUT, f"it took longer than {limit}: raise agents.{run.agent}.timeout")
            await self._stop(task, run)
            run.blame_the_time()
        elif (failure := task.result()) is not None:
            self._note_failure(run, failure)

    async def _stop(self, task: asyncio.Task[Any], run: RunUnderWay) -> None:
        task.cancel()
        await finished(_wait(task))
        if not task.done():
            self._left_behind.add(task)
            task.add_done_callback(self._left_behind.discard)
            run.notes.append("it ignores being stopped and may still be working")
            _log.warning("a run ignores being stopped", extra={"agent": run.agent, "run_id": run.run_id})

    def _note_failure(self, run: RunUnderWay, failure: BaseException) -> None:
        run.end(RunOutcome.FAILED, explain(failure))
        run.blame(failure)
        if isinstance(failure, LLMError):
            run.hold(failure.retry_after, self._now())
        if not isinstance(failure, AgentError | LLMError):
            known = {"agent": run.agent, "run_id": run.run_id}
            _log.error("a run failed unexpectedly", exc_info=failure, extra=known)

    async def _record(self, run: RunUnderWay, config: AgentConfig) -> RunResult:
        """Write down everything in one transaction, then tell everybody."""
        now = self._now()
        run.calls = _fit_calls(run.calls)
        candidates, left_out = await self._candidates(run, config, now)
        settled = run.due_times()
        changes: list[Event] = []
        async with self._database.write() as connection:
            for proposal_id, why in run.withdrawn.items():
                changes += await self._desk.withdraw_in(connection, proposal_id, why)
            withdrawn = len(changes)
            verdicts = await self._proposals.save_new(
                connection,
                candidates,
                agent=run.agent,
                run_id=run.run_id,
                now=now,
                max_new=config.max_proposals,
                max_open=config.max_open,
            )
            result = run.result(config, verdicts, now=now, left_out=left_out, withdrawn=withdrawn)
            await self._runs.save(connection, result, run.calls)
            await self._due_times.save(connection, settled)
            before = status = await self._states.get(run.agent, connection)
            if not run.blameless:
                status = after_run(before, result, config)
            if status != before:
                await self._states.save(connection, status)
        changes += [ProposalChanged(proposal=each, before=None, action="keep") for each in result.proposals]
        changes += [DueTimesSettled(due_times=settled)] if settled else []
        self._tell(*changes)
        if status.state is not before.state:
            with about_nothing():
                announce(self._events, status, before.state)
        self._tell(RunFinished(result=result, status=status))
        return result

    async def _candidates(
        self, run: RunUnderWay, config: AgentConfig, now: datetime
    ) -> tuple[list[Proposal], int]:
        """The proposals that can be kept, and how many were not even looked at; faults end up in `run`."""
        try:
            returned, left_out = fit_returned(run.returned)
        except InvalidProposal as error:
            run.end(RunOutcome.FAILED, str(error))
            return [], 0
        candidates: list[Proposal] = []
        problems: list[str] = []
        for number, item in enumerate(returned, start=1):
            await asyncio.sleep(0)  # checking thousands of them must not keep the loop from its other work
            try:
                candidates.append(_completed(fit_proposal(item, run.agent), config, now))
            except InvalidProposal as error:
                problems.append(f"number {number}: {error}")
        if problems:
            shown = "; ".join(problems[:_PROBLEMS_SHOWN])
            run.end(
                RunOutcome.FAILED,
                f"{len(problems)} of its {len(returned)} proposals cannot be kept: {shown}",
            )
        return candidates, left_out


async def _look(agent: BaseAgent, run: RunUnderWay) -> None:
    """Recheck what still waits, then analyze; an exception keeps what was found before it."""
    still: list[Proposal] = []
    for proposal in agent.context.open_proposals:
        why = await agent.recheck(proposal) if proposal.status in WITHDRAWABLE else None
        if why is None:
            still.append(proposal)
        else:
            run.withdrawn[int(proposal.id or 0)] = str(why)
    agent.context.open_proposals = tuple(still)
    run.returned = await agent.analyze()


async def _caught(work: Coroutine[Any, Any, None]) -> BaseException | None:
    """What `work` raised, whatever it was; only the user's own Ctrl-C goes on."""
    try:
        await work
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - an agent that calls sys.exit() must not stop the daemon
        return error
    return None


async def _wait(task: asyncio.Task[Any]) -> None:
    await asyncio.wait({task}, timeout=STOP_SECONDS)


def _fit_calls(calls: Iterable[Any]) -> list[ModelCall]:
    """Those that can be kept: the agent's code could have put anything there."""
    return [fit_call(call) for call in calls if isinstance(call, ModelCall)]


def _completed(proposal: Proposal, config: AgentConfig, now: datetime) -> Proposal:
    """With the configuration's expiry and approvers where the agent leaves them open or goes beyond."""
    latest = _later(now, config.expires_after)
    wanted = latest if proposal.expires_at is None else proposal.expires_at
    approvers = config.approvers if proposal.approvers == Approvers() else proposal.approvers
    return proposal.with_changes(expires_at=max(now, min(wanted, latest)), approvers=approvers)


def _later(now: datetime, by: timedelta) -> datetime:
    try:
        return now + by
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC)
