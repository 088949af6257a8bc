"""ProposalDesk: approve, reject, edit, snooze, apply, undo, expire: the only writer of a proposal once kept.

How one is applied exactly once, through a crash at any moment:

    APPROVED --commit--> APPLYING -> agent.apply() -> --commit--> APPLIED with undo data

A crash before the second commit leaves APPLYING. `recover` then calls `apply()` again, which notices by the
proposal's number what is already done. While it is applied, a lock of the agent is held that dies with the
process, so that nobody takes a proposal for stuck that another program is working on.

An apply that fails leaves APPLY_FAILED, and a person may try again; when it fails again, or fails after a
crash, NEEDS_ATTENTION. One whose precondition fails is WITHDRAWN: what it is about has changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from agents.base import BaseAgent
from agents.context import utc_now
from agents.proposal import Proposal, ProposalStatus
from daemon import decisions
from daemon.errors import DecisionRefused
from daemon.events import EventBus, ProposalChanged
from daemon.execution import APPLY_LIMIT, Executor, MakeAgent
from daemon.ledger import Ledger, Page
from daemon.observability.context import about
from daemon.store.locks import LockBusy
from daemon.worker.agent import ready

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from daemon.store.engine import Database
    from daemon.store.proposals import ProposalStore

T = TypeVar("T")
_S = ProposalStatus
_BUSY_WAIT = 30.0
_CANCEL_WAIT = 1.0


@dataclass(frozen=True, slots=True)
class _Ask:
    """Who wants something done about which proposal, through what, why, and having seen what."""

    proposal_id: int
    by: str
    via: str
    comment: str
    digest: str | None = None

    def words(self, name: str) -> dict[str, str]:
        return {"by": name, "via": self.via, "comment": self.comment}


_Change = Callable[[Page, Proposal, dict[str, str]], Awaitable[Proposal]]
"""What to do with a proposal on an open page; the words say by whom, through what and why."""
_DueChange = Callable[[Page, Proposal], Awaitable[Proposal | None]]


class ProposalDesk:
    """Takes decisions. Each one is carried to its end even if whoever asked for it is cancelled.

    Every method that decides raises these:
        DecisionRefused: the life cycle, the person, the digest or the time does not allow it.
        ProposalNotFound: there is none of that number.
        AgentError: its agent cannot be loaded; nothing was recorded.
        StoreError: the database cannot be written.

    Args:
        proposals: the store.
        database: its database.
        make_agent: makes the agent of that name for one decision.
        events: where each change is published.
        now: the clock, UTC.
        apply_limit: how long one apply or undo may take.
    """

    def __init__(
        self,
        proposals: ProposalStore,
        database: Database,
        make_agent: MakeAgent,
        events: EventBus,
        now: Callable[[], datetime] = utc_now,
        *,
        apply_limit: timedelta = APPLY_LIMIT,
    ) -> None:
        self._store = proposals
        self._now = now
        self._ledger = Ledger(proposals, database, events, now)
        self._executor = Executor(self._ledger, make_agent, database.path.parent, apply_limit)
        self._under_way: set[asyncio.Task[Any]] = set()
        self._closed = False

    async def approve(
        self,
        proposal_id: int,
        by: str,
        via: str,
        comment: str = "",
        digest: str | None = None,
        *,
        apply: bool = True,
    ) -> Proposal:
        """Approve what stands there now; the last approval that is needed also applies it.

        Args:
            proposal_id: the proposal.
            by: who approves.
            via: through what: "cli", "web".
            comment: why.
            digest: `Proposal.digest` of what the person saw; refused if it is another one by now.
            apply: False leaves it approved, to be applied later.

        Returns:
            The proposal: applied, or waiting for more approvals, or failed with the reason in `error`.
        """
        ask = _Ask(proposal_id, by, via, comment, digest)
        if not apply:
            return await self._through(self._record_approval(ask, begin=False))
        return await self._through(self._approve_and_apply(ask))

    async def reject(
        self, proposal_id: int, by: str, via: str, comment: str = "", digest: str | None = None
    ) -> Proposal:
        """Turn a proposal down; it comes back only when its evidence changes."""

        async def change(page: Page, proposal: Proposal, words: dict[str, str]) -> Proposal:
            return await page.move(proposal, _S.REJECTED, "reject", **words)

        ask = _Ask(proposal_id, by, via, comment, digest)
        return await self._through(self._decide(ask, "reject", decisions.REJECTABLE, change))

    async def edit(
        self,
        proposal_id: int,
        changes: Mapping[str, Any],
        by: str,
        via: str,
        comment: str = "",
        *,
        digest: str | None = None,
    ) -> Proposal:
        """Change parts of a waiting proposal's payload; what was approved before no longer counts.

        Args:
            proposal_id: the proposal.
            changes: new values of the payload's keys; the others stay. The agent's payload model checks them.
            by: who edits.
            via: through what.
            comment: why.
            digest: `Proposal.digest` of what the person saw.
        """
        return await self._through(self._edit(_Ask(proposal_id, by, via, comment, digest), changes))

    async def snooze(
        self, proposal_id: int, until: datetime, by: str, via: str, comment: str = ""
    ) -> Proposal:
        """Put a waiting proposal aside until then; refused if it expires before."""

        async def change(page: Page, proposal: Proposal, words: dict[str, str]) -> Proposal:
            decisions.check_snooze(proposal, until, page.now)
            return await page.move(proposal, _S.SNOOZED, "snooze", **words, snoozed_until=until)

        ask = _Ask(proposal_id, by, via, comment)
        return await self._through(self._decide(ask, "snooze", decisions.WAITING, change))

    async def apply(self, proposal_id: int, by: str, via: str, comment: str = "") -> Proposal:
        """Apply an approved proposal, or try again where it failed or where a crash left it half-way.

        Returns:
            The proposal: applied, or failed with the reason in `error`.
        """
        return await self._through(self._apply(_Ask(proposal_id, by, via, comment)))

    async def undo(self, proposal_id: int, by: str, via: str, comment: str = "") -> Proposal:
        """Take back what was applied.

        Returns:
            The proposal: undone, or still applied with the reason in `error`.
        """
        return await self._through(self._undo(_Ask(proposal_id, by, via, comment)))

    async def expire_due(self) -> tuple[Proposal, ...]:
        """Do what time brings: expire what waited too long, wake what was snoozed; never approves.

        Writes nothing if nothing is due. Returns what was changed.
        """
        return await self._through(self._each_due(_time_brings))

    async def wake_due(self) -> tuple[Proposal, ...]:
        """Only wake what was snoozed."""
        return await self._through(self._each_due(_wake))

    async def recover(self) -> tuple[Proposal, ...]:
        """Finish what a crash left half-way: call it once when the program starts. Returns what was finished.

        Those that another program is working on are left alone.
        """
        stuck = await self._store.list(status=(_S.APPLYING, _S.UNDOING), limit=None)
        found = [await self._through(self._resume(proposal)) for proposal in reversed(stuck)]
        return tuple(proposal for proposal in found if proposal is not None)

    async def withdraw_in(
        self, connection: AsyncConnection, proposal_id: int, why: str
    ) -> tuple[ProposalChanged, ...]:
        """Withdraw a proposal within a run's transaction, if it still waits for something.

        Returns:
            What to publish after the commit; nothing if the proposal was left as it is.
        """
        page = Page(self._store, connection, self._now())
        proposal = await page.get(proposal_id)
        if proposal.status in decisions.WITHDRAWABLE:
            await page.move(proposal, _S.WITHDRAWN, "withdraw", comment=why, error=why)
        return tuple(page.changes)

    async def aclose(self, grace: float = 0.0) -> None:
        """Take no more decisions, and wait for those under way.

        Args:
            grace: seconds to wait; what is applied longer than that is cut off and finished by `recover`.
        """
        self._closed = True
        tasks = set(self._under_way)
        if tasks:
            _, tasks = await asyncio.wait(tasks, timeout=grace)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_CANCEL_WAIT)

    async def _through(self, work: Coroutine[Any, Any, T]) -> T:
        """Carry `work` to its end in a task of its own, whatever happens to the caller."""
        if self._closed:
            work.close()
            msg = "the program is stopping and takes no more decisions; try again when it runs"
            raise DecisionRefused(msg)
        task = asyncio.ensure_future(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return await asyncio.shield(task)

    async def _decide(
        self, ask: _Ask, action: str, allowed: frozenset[ProposalStatus], change: _Change
    ) -> Proposal:
        await self._each_due(_time_brings)

        async def decide(page: Page) -> Proposal:
            proposal = await page.get(ask.proposal_id)
            decisions.check_status(proposal, action, allowed)
            name = decisions.check_person(proposal, ask.by)
            decisions.check_digest(proposal, ask.digest)
            return await change(page, proposal, ask.words(name))

        return await self._ledger.write(decide)

    async def _each_due(self, change: _DueChange) -> tuple[Proposal, ...]:
        due = await self._store.due(self._now())
        if not due:
            return ()

        async def change_all(page: Page) -> list[Proposal | None]:
            # Read again: between the look and this transaction somebody may have decided.
            return [await change(page, await page.get(int(p.id or 0))) for p in due]

        changed = await self._ledger.write(change_all)
        return tuple(proposal for proposal in changed if proposal is not None)

    async def _approve_and_apply(self, ask: _Ask) -> Proposal:
        async with self._with_agent(ask.proposal_id) as agent:
            proposal = await self._record_approval(ask, begin=True)
            if proposal.status is not _S.APPLYING:
                return proposal
            return await self._executor.apply(agent, proposal)

    async def _record_approval(self, ask: _Ask, *, begin: bool) -> Proposal:
        """Record one approval; with `begin`, the last one needed begins to apply in the same transaction."""

        async def change(page: Page, proposal: Proposal, words: dict[str, str]) -> Proposal:
            decisions.check_time(proposal, page.now)
            decisions.check_approval_is_new(proposal, words["by"])
            enough = proposal.approvers.satisfied_by({*proposal.approved_by, words["by"]})
            to = _S.APPROVED if enough else proposal.status
            proposal = await page.move(proposal, to, "approve", **words)
            if enough and begin:
                proposal = await page.move(proposal, _S.APPLYING, "apply", by=words["by"], via=ask.via)
            return proposal

        return await self._decide(ask, "approve", decisions.WAITING, change)

    async def _edit(self, ask: _Ask, changes: Mapping[str, Any]) -> Proposal:
        seen = await self._store.get(ask.proposal_id)
        agent = await self._executor.make_agent(seen.agent)
        # Before the transaction: a plugin's payload is checked in another process.
        edited = await asyncio.to_thread(_edited, agent, seen, changes)

        async def change(page: Page, proposal: Proposal, words: dict[str, str]) -> Proposal:
            payload = edited if proposal.digest == seen.digest else _changed_meanwhile(proposal)
            if isinstance(payload, DecisionRefused):
                raise payload
            original = proposal.payload if proposal.original_payload is None else proposal.original_payload
            return await page.move(
                proposal, proposal.status, "edit", **words, payload=payload, original_payload=original
            )

        return await self._decide(ask, "edit", decisions.WAITING, change)

    async def _apply(self, ask: _Ask) -> Proposal:
        # One that is APPLYING or UNDOING was left so by a crash: we hold the lock of whoever works on it.
        async def change(page: Page, proposal: Proposal, words: dict[str, str]) -> Proposal:
            decisions.check_approved(proposal)
            decisions.check_time(proposal, page.now)
            return await page.move(proposal, _S.APPLYING, "apply", **words)

        async with self._with_agent(ask.proposal_id) as agent:
            events = await self._store.events(ask.proposal_id)
            failed_before = any(event.after is _S.APPLY_FAILED for event in events)
            proposal = await self._decide(ask, "apply", decisions.APPLICABLE | {_S.APPLYING}, change)
            return await self._executor.apply(agent, proposal, last_try=failed_before)

    async def _undo(self, ask: _Ask) -> Proposal:
        async def change(page: Page, proposal: Proposal, words: dict[str, str]) -> Proposal:
            decisions.check_undoable(proposal)
            return await page.move(proposal, _S.UNDOING, "undo", **words)

        async with self._with_agent(ask.proposal_id) as agent:
            proposal = await self._decide(ask, "undo", decisions.UNDOABLE, change)
            return await self._executor.undo(agent, proposal)

    async def _resume(self, stuck: Proposal) -> Proposal | None:
        """Finish what a crash left, None if somebody else is at it or has finished it."""
        try:
            async with self._executor.exclusively(stuck.agent, 0):
                proposal = await self._store.get(int(stuck.id or 0))
                if proposal.status not in {_S.APPLYING, _S.UNDOING}:
                    return None
                with _about(proposal):
                    return await self._executor.finish(proposal)
        except LockBusy:
            return None

    @asynccontextmanager
    async def _with_agent(self, proposal_id: int) -> AsyncIterator[BaseAgent]:
        """The proposal's agent, while nobody else carries out anything for it."""
        proposal = await self._store.get(proposal_id)
        name = proposal.agent
        with _about(proposal):
            agent = await self._executor.make_agent(name)
            try:
                async with self._executor.exclusively(name, _BUSY_WAIT), ready(agent):
                    yield agent
            except LockBusy as error:
                msg = f"another decision about {name} is being carried out; try again in a moment"
                raise DecisionRefused(msg) from error


def _about(proposal: Proposal) -> AbstractContextManager[None]:
    """Lines that are logged meanwhile say which proposal it is, whose, and of which run."""
    return about(proposal=proposal.id, agent=proposal.agent, run_id=proposal.run_id)


def _edited(
    agent: BaseAgent, proposal: Proposal, changes: Mapping[str, Any]
) -> Mapping[str, Any] | DecisionRefused:
    """The changed payload, or why there is none; that is said only after what else speaks against it."""
    try:
        return decisions.edited_payload(agent, proposal, changes)
    except DecisionRefused as error:
        return error


def _changed_meanwhile(proposal: Proposal) -> DecisionRefused:
    return DecisionRefused(f"proposal {proposal.id} was changed meanwhile; look at it again")


async def _time_brings(page: Page, proposal: Proposal) -> Proposal | None:
    if not decisions.has_expired(proposal, page.now):
        return await _wake(page, proposal)
    if proposal.status is _S.APPROVED:
        why = "approved, but its time was over before it was applied"
        return await page.move(proposal, _S.WITHDRAWN, "expire", comment=why, error=why)
    return await page.move(proposal, _S.EXPIRED, "expire")


async def _wake(page: Page, proposal: Proposal) -> Proposal | None:
    until = proposal.snoozed_until
    if proposal.status is not _S.SNOOZED or until is None or until > page.now:
        return None
    return await page.move(proposal, _S.PENDING, "wake", snoozed_until=None)
