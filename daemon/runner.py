"""Runner: one run of one agent, from the look at what is due to the record of what came of it.

    expire and wake -> alone with the agent -> recheck open proposals -> analyze -> one transaction -> events

It is the one place that catches: whatever an agent's code raises becomes the outcome of its run. The
transaction holds the run, its model calls, what it withdraws and its new proposals, or nothing of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from agents.base import BaseAgent
from agents.config import AgentConfig
from agents.context import ModelCall, utc_now
from agents.durations import format_duration
from agents.errors import AgentError, InvalidProposal
from agents.proposal import Approvers, Proposal
from daemon.decisions import WITHDRAWABLE
from daemon.events import Event, EventBus, ProposalChanged, RunBegun, RunFinished, RunOutcome, RunResult
from daemon.execution import agent_lock, explain
from daemon.intake import fit_call, fit_proposal, fit_returned
from daemon.maker import AgentMaker
from daemon.outcome import RunUnderWay
from daemon.proposals import ProposalDesk
from daemon.store.locks import LockBusy
from daemon.store.uncancelled import finished
from llm import LLMError, calling

if TYPE_CHECKING:
    from daemon.store.engine import Database
    from daemon.store.proposals import ProposalStore
    from daemon.store.runs import RunStore

MAX_CRASHES = 3
"""After so many runs in a row that ended with the whole program, an agent is no longer run on schedule."""

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
        events: EventBus,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._maker = maker
        self._database = database
        self._proposals = proposals
        self._runs = runs
        self._desk = desk
        self._events = events
        self._now = now
        self._turns: dict[str, asyncio.Lock] = {}
        self._left_behind: set[asyncio.Task[Any]] = set()

    async def run(self, agent_name: str, trigger: str = "manual") -> RunResult:
        """Run an agent once and record how it ended; a run that fails is a result, not an exception.

        Args:
            agent_name: the agent.
            trigger: why it runs: "once", "schedule" or "manual".

        Raises:
            StoreError: the database cannot be used; nothing of the run was kept.
            asyncio.CancelledError: it was cancelled, and is recorded as cancelled if it had begun.
        """
        async with self._turns.setdefault(agent_name, asyncio.Lock()):
            await self._desk.expire_due()
            run = RunUnderWay.of(agent_name, trigger, self._now())
            try:
                config = await self._maker.config(agent_name)
                async with self._alone(run, config):
                    self._events.publish(RunBegun(agent=run.agent, run_id=run.run_id, trigger=run.trigger))
                    await self._work(run, config)
                    return await finished(self._record(run, config))
            except (AgentError, LockBusy) as error:
                run.end(RunOutcome.FAILED, explain(error))
            return await finished(self._record(run, AgentConfig(name=agent_name)))

    @asynccontextmanager
    async def _alone(self, run: RunUnderWay, config: AgentConfig) -> AsyncIterator[None]:
        """No other program runs the agent meanwhile; runs that take the program down with them are counted.

        Raises:
            AgentError: too many of them did.
            LockBusy: another program runs it for longer than a run may take.
        """
        lock = agent_lock(self._database.path.parent, run.agent, "run")
        async with lock.held(config.timeout.total_seconds()) as mark:
            crashes = await asyncio.to_thread(_read_crashes, mark)
            if crashes >= MAX_CRASHES and run.trigger == "schedule":
                msg = (
                    f"not run: its last {crashes} runs ended with the whole program; read the log, mend it, "
                    f"then run it by hand: askfirst --once --agent {run.agent}"
                )
                raise AgentError(msg)
            try:
                await asyncio.to_thread(_write_crashes, mark, crashes + 1)
                yield
            finally:
                await finished(asyncio.to_thread(_write_crashes, mark, 0))

    async def _work(self, run: RunUnderWay, config: AgentConfig) -> None:
        """Let the agent look and think, within its time; what comes of it is in `run`."""
        agent = await self._maker.make(
            run.agent,
            run_id=run.run_id,
            open_proposals=await self._proposals.open_for(run.agent),
            turned_down=await self._proposals.turned_down(run.agent),
            calls=run.calls,
            notes=run.notes,
        )
        with calling(agent=run.agent, run_id=run.run_id):
            task = asyncio.ensure_future(_caught(_look(agent, run)))
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
        elif (failure := task.result()) is not None:
            self._note_failure(run, failure)
            if isinstance(failure, LLMError):
                run.hold(failure.retry_after, self._now())

    async def _stop(self, task: asyncio.Task[Any], run: RunUnderWay) -> None:
        task.cancel()
        await finished(_wait(task))
        if not task.done():
            self._left_behind.add(task)
            task.add_done_callback(self._left_behind.discard)
            run.notes.append("it ignores being stopped and may still be working")
            _log.warning("a run ignores being stopped", extra={"agent": run.agent, "run_id": run.run_id})

    @staticmethod
    def _note_failure(run: RunUnderWay, failure: BaseException) -> None:
        run.end(RunOutcome.FAILED, explain(failure))
        if not isinstance(failure, AgentError | LLMError):
            known = {"agent": run.agent, "run_id": run.run_id}
            _log.error("a run failed unexpectedly", exc_info=failure, extra=known)

    async def _record(self, run: RunUnderWay, config: AgentConfig) -> RunResult:
        """Write down everything in one transaction, then tell everybody."""
        now = self._now()
        run.calls = _fit_calls(run.calls)
        candidates, left_out = await self._candidates(run, config, now)
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
        changes += [ProposalChanged(proposal=proposal, before=None) for proposal in result.proposals]
        for change in (*changes, RunFinished(result=result)):
            self._events.publish(change)
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


def _read_crashes(mark: int) -> int:
    with contextlib.suppress(OSError):  # a failing disk; the run will be told by the database
        digit = os.pread(mark, 1, 0)
        return int(digit) if digit.isdigit() else 0
    return 0


def _write_crashes(mark: int, number: int) -> None:
    # One byte in place and not flushed: it need not survive a power cut, and costs the disk next to nothing.
    with contextlib.suppress(OSError):  # a full disk: the run goes on, and the database says what is wrong
        os.pwrite(mark, b"%d" % min(number, 9), 0)
