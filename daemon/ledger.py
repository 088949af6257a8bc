"""Ledger: moves proposals along their life cycle, each move with its event, and tells everybody of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

from agents.proposal import Proposal, ProposalStatus
from daemon.errors import DecisionRefused, StoreFull
from daemon.events import EventBus, ProposalChanged
from daemon.intake import MAX_SENTENCE, storable
from daemon.observability.context import about_nothing
from daemon.store.rows import DAEMON, ProposalEvent

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from daemon.store.engine import Database
    from daemon.store.proposals import ProposalStore

T = TypeVar("T")


@dataclass(slots=True)
class Page:
    """One transaction's moves.

    Attributes:
        store: where they are recorded.
        connection: the transaction.
        now: the time of day of all of them.
        changes: what to tell once it is committed.
    """

    store: ProposalStore
    connection: AsyncConnection
    now: datetime
    changes: list[ProposalChanged] = field(default_factory=list)

    async def get(self, proposal_id: int) -> Proposal:
        """The proposal as it stands in this transaction.

        Raises:
            ProposalNotFound: there is none of that number.
        """
        return await self.store.get_in(self.connection, proposal_id)

    async def move(
        self,
        proposal: Proposal,
        to: ProposalStatus,
        action: str,
        *,
        by: str = DAEMON,
        via: str = "daemon",
        comment: str = "",
        **changes: Any,
    ) -> Proposal:
        """Record that `action` brought the proposal to the status `to`, perhaps with other changes.

        Raises:
            DecisionRefused: the life cycle has no such arrow.
        """
        if to is not proposal.status and not proposal.status.may_become(to):
            msg = f"proposal {proposal.id} is {proposal.status}; it cannot become {to}"
            raise DecisionRefused(msg)
        changed = proposal.with_changes(status=to, updated_at=self.now, **changes)
        edited = "payload" in changes
        event = ProposalEvent(
            proposal_id=int(proposal.id or 0),
            at=self.now,
            action=action,
            before=proposal.status,
            after=to,
            by=by,
            via=storable(via, MAX_SENTENCE),
            comment=storable(comment, MAX_SENTENCE),
            digest=proposal.digest,
            payload_before=proposal.payload if edited else None,
            payload_after=changed.payload if edited else None,
        )
        recorded = await self.store.record(self.connection, changed, event)
        self.changes.append(ProposalChanged(proposal=recorded, before=proposal.status, action=action))
        return recorded


class Ledger:
    """Opens pages: one transaction each, whose changes are published once they are committed."""

    def __init__(
        self,
        store: ProposalStore,
        database: Database,
        events: EventBus,
        now: Callable[[], datetime],
    ) -> None:
        self.store = store
        self.now = now
        self._database = database
        self._events = events

    @asynccontextmanager
    async def page(self) -> AsyncIterator[Page]:
        """One transaction; nothing is recorded or published if the body raises.

        Raises:
            StoreError: the database cannot be written.
        """
        async with self._database.write() as connection:
            page = Page(self.store, connection, self.now())
            yield page
        self.publish(page)

    async def write(self, work: Callable[[Page], Awaitable[T]]) -> T:
        """Do `work` on a page of its own; once more if the disk was full, since room is kept for that.

        Raises:
            StoreError: the database cannot be written.
        """
        try:
            async with self.page() as page:
                return await work(page)
        except StoreFull:
            async with self.page() as page:
                return await work(page)

    def publish(self, page: Page) -> None:
        """Tell everybody what happened on a page that was committed."""
        with about_nothing():
            for change in page.changes:
                self._events.publish(change)
