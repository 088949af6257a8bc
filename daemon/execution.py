"""Executor: has an agent carry out what was approved, and records what came of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from agents.base import NAME_PATTERN, BaseAgent
from agents.durations import format_duration
from agents.errors import AgentError, AgentNotFound, InvalidProposal, PreconditionFailed
from agents.proposal import Proposal, ProposalStatus
from daemon.intake import MAX_ERROR, MAX_UNDO_BYTES, json_bytes, storable
from daemon.ledger import Ledger, Page
from daemon.store.locks import FileLock
from daemon.worker.agent import ended
from llm import LLMError, calling

T = TypeVar("T")
MakeAgent = Callable[[str], Awaitable[BaseAgent]]
"""Makes an agent of that name for one decision; raises AgentError."""

APPLY_LIMIT = timedelta(minutes=5)
"""How long one apply or undo may take."""

_S = ProposalStatus
_log = logging.getLogger(__name__)


def agent_lock(folder: Path, agent: str, purpose: str) -> FileLock:
    """The lock between programs for one purpose of one agent, in `folder`/locks.

    Raises:
        AgentNotFound: no agent can have that name.
    """
    if not NAME_PATTERN.fullmatch(agent):
        msg = f"no agent can be called {agent!r}; 'askfirst agents list' shows those there are"
        raise AgentNotFound(msg)
    return FileLock(folder / "locks" / f"{agent}.{purpose}")


def explain(error: BaseException) -> str:
    """What went wrong, for the person who looks at it."""
    text = str(error) if isinstance(error, AgentError | LLMError) else f"{type(error).__name__}: {error}"
    return storable(text.removesuffix(": "), MAX_ERROR)


class Executor:
    """Applies and undoes.

    Args:
        ledger: where the outcome is recorded.
        make_agent: makes the agent.
        folder: the data folder, where the locks are.
        limit: how long one apply or undo may take.
    """

    def __init__(
        self, ledger: Ledger, make_agent: MakeAgent, folder: Path, limit: timedelta = APPLY_LIMIT
    ) -> None:
        self.make_agent = make_agent
        self._ledger = ledger
        self._folder = folder
        self._limit = limit

    @asynccontextmanager
    async def exclusively(self, agent: str, wait: float) -> AsyncIterator[None]:
        """Be the only one, in this program and in others, who carries out something for `agent`.

        Raises:
            LockBusy: somebody else is at it for longer than `wait` seconds.
        """
        async with agent_lock(self._folder, agent, "apply").held(wait):
            yield

    async def apply(self, agent: BaseAgent, proposal: Proposal, *, last_try: bool = False) -> Proposal:
        """Apply a proposal that is APPLYING, and record what came of it.

        Args:
            agent: its agent.
            proposal: the proposal.
            last_try: whether a failure needs attention at once.

        Raises:
            StoreError: the outcome could not be recorded; `ProposalDesk.recover` will find out.
        """
        with calling(agent=proposal.agent):
            undo_data, failure = await self._tried(agent.apply(proposal), f"apply of proposal {proposal.id}")
        if failure is not None:
            return await self.failed(proposal, failure, last_try=last_try)
        undo_data, note = _fit_undo_data(undo_data)
        changes: dict[str, Any] = {"undo_data": undo_data, "error": note}
        return await self._ledger.write(lambda page: page.move(proposal, _S.APPLIED, "applied", **changes))

    async def undo(self, agent: BaseAgent, proposal: Proposal) -> Proposal:
        """Undo a proposal that is UNDOING, and record what came of it: UNDONE, or APPLIED with the error.

        Raises:
            StoreError: the outcome could not be recorded; `ProposalDesk.recover` will find out.
        """
        with calling(agent=proposal.agent):
            _, failure = await self._tried(agent.undo(proposal), f"undo of proposal {proposal.id}")
        if failure is not None:
            return await self.undo_failed(proposal, failure)
        return await self._ledger.write(lambda page: page.move(proposal, _S.UNDONE, "undone", error=None))

    async def finish(self, proposal: Proposal) -> Proposal:
        """Do what a crash interrupted, APPLYING or UNDOING, once more; what fails now needs attention."""
        undoing = proposal.status is _S.UNDOING
        try:
            agent = await self.make_agent(proposal.agent)
        except AgentError as error:
            if undoing:
                return await self.undo_failed(proposal, error)
            return await self.failed(proposal, error, last_try=True)
        async with ended(agent):
            return await (
                self.undo(agent, proposal) if undoing else self.apply(agent, proposal, last_try=True)
            )

    async def failed(self, proposal: Proposal, failure: BaseException, *, last_try: bool) -> Proposal:
        """Record why an apply failed."""
        why = explain(failure)

        async def note(page: Page) -> Proposal:
            if isinstance(failure, PreconditionFailed):
                return await page.move(proposal, _S.WITHDRAWN, "withdraw", comment=why, error=why)
            failed = await page.move(proposal, _S.APPLY_FAILED, "apply_failed", comment=why, error=why)
            return await page.move(failed, _S.NEEDS_ATTENTION, "give_up") if last_try else failed

        return await self._ledger.write(note)

    async def undo_failed(self, proposal: Proposal, failure: BaseException) -> Proposal:
        """Record why an undo failed: it stays applied."""
        words = {"comment": explain(failure)}
        words["error"] = words["comment"]
        return await self._ledger.write(lambda page: page.move(proposal, _S.APPLIED, "undo_failed", **words))

    async def _tried(self, work: Coroutine[Any, Any, T], what: str) -> tuple[T | None, BaseException | None]:
        """The result, or what the agent's code raised, whatever it was."""
        scope = asyncio.timeout(self._limit.total_seconds())
        try:
            async with scope:
                return await work, None
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise  # it is we who are stopped: the outcome is in doubt, and recover() will find out
            return None, error
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - sys.exit() in an agent must not stop us
            if scope.expired():
                limit = format_duration(self._limit)
                return None, AgentError(f"it took longer than {limit} and was stopped")
            if not isinstance(error, AgentError | LLMError):
                _log.error("%s failed unexpectedly", what, exc_info=error)
            return None, error


def _fit_undo_data(data: Any) -> tuple[Mapping[str, Any] | None, str | None]:
    """The undo data if it can be kept, else why not; the change has happened, so it counts as applied."""
    if data is None:
        return None, None
    try:
        fit = dict(data)
        size = json_bytes(fit)
    except (InvalidProposal, TypeError, ValueError) as error:
        return None, f"its undo data cannot be kept: {explain(error)}"
    if size > MAX_UNDO_BYTES:
        return None, f"its undo data is {size:,} bytes, more than the {MAX_UNDO_BYTES:,} that are kept"
    return fit, None
