"""ProposalStore: proposals and everything that ever happened to them, as rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Float, Select, func, insert, literal, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from agents.proposal import CLOSED, Proposal, ProposalStatus
from daemon.errors import ProposalNotFound, StoreError
from daemon.store.engine import Database
from daemon.store.rows import (
    ProposalEvent,
    event_from_row,
    event_to_row,
    proposal_from_row,
    proposal_to_row,
)
from daemon.store.tables import UTCDateTime, proposal_events, proposals

_OPEN = tuple(status for status in ProposalStatus if status.is_open)
_TURNED_DOWN = frozenset({ProposalStatus.REJECTED, ProposalStatus.UNDONE})
T = TypeVar("T")

_MANY = 500
"""Most values of one IN (...): SQLite allows 999 in its older builds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Census:
    """What there is at one moment.

    Attributes:
        counts: how many proposals there are of each agent in each status; pairs without any are left out.
        oldest: when the pending proposal was made that has waited longest, None when none is pending.
        late: how many pending ones have waited over half the time until they expire.
    """

    counts: Mapping[tuple[str, ProposalStatus], int]
    oldest: datetime | None
    late: int


class Verdict(StrEnum):
    """What became of a proposal that a run came up with."""

    KEPT = "kept"
    DUPLICATE = "duplicate"
    SUPPRESSED = "suppressed"
    OVER_CAP = "over_cap"


class ProposalStore:
    """Reads proposals, keeps new ones, and records changes that `daemon.proposals` has decided on."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, proposal_id: int) -> Proposal:
        """The proposal of that number.

        Raises:
            ProposalNotFound: there is none.
        """
        async with self._database.read() as connection:
            return await self.get_in(connection, proposal_id)

    async def get_in(self, connection: AsyncConnection, proposal_id: int) -> Proposal:
        """As `get`, inside a transaction.

        Raises:
            ProposalNotFound: there is none.
        """
        found = await _load(connection, select(proposals).where(proposals.c.id == proposal_id))
        if not found:
            msg = f"there is no proposal {proposal_id}; 'askfirst proposals list' shows those there are"
            raise ProposalNotFound(msg)
        return found[0]

    async def list(
        self,
        status: ProposalStatus | Iterable[ProposalStatus] | None = None,
        agent: str | None = None,
        limit: int | None = 100,
    ) -> tuple[Proposal, ...]:
        """Proposals, the newest first.

        Args:
            status: only those that stand there, or in one of several statuses.
            agent: only those of this agent.
            limit: at most so many, None for all.
        """
        query = select(proposals).order_by(proposals.c.id.desc()).limit(limit)
        if status is not None:
            wanted = [status] if isinstance(status, ProposalStatus) else list(status)
            query = query.where(proposals.c.status.in_(wanted))
        if agent is not None:
            query = query.where(proposals.c.agent == agent)
        async with self._database.read() as connection:
            return await _load(connection, query)

    async def open_for(self, agent: str) -> tuple[Proposal, ...]:
        """The agent's proposals that may still change something, the oldest first."""
        return await self._where(_is_open(agent))

    async def counts(self) -> dict[tuple[str, ProposalStatus], int]:
        """How many proposals there are of each agent in each status; pairs without any are left out."""
        async with self._database.read() as connection:
            return await _counts(connection)

    async def census(self, now: datetime) -> Census:
        """How many there are of each kind, and how long those wait that wait for a decision, at `now`."""
        c = proposals.c
        halfway = func.julianday(c.created_at, type_=Float) + func.julianday(c.expires_at, type_=Float)
        is_late = halfway < 2 * func.julianday(literal(now, UTCDateTime), type_=Float)
        waits = c.status == ProposalStatus.PENDING
        query = select(func.min(c.created_at), func.count().filter(is_late)).where(waits)
        async with self._database.read() as connection:  # one snapshot; both go by the index of the statuses
            counts = await _counts(connection)
            oldest, late = (await connection.execute(query)).one()
        return Census(counts=counts, oldest=oldest, late=late)

    async def events(self, proposal_id: int) -> tuple[ProposalEvent, ...]:
        """Everything that happened to a proposal, the oldest first.

        Raises:
            ProposalNotFound: there is none of that number.
        """
        async with self._database.read() as connection:
            await self.get_in(connection, proposal_id)
            return (await _events(connection, [proposal_id])).get(proposal_id, ())

    async def due(self, moment: datetime) -> tuple[Proposal, ...]:
        """Proposals whose expiry (while they wait, or before they are applied) or snooze is over by then."""
        c = proposals.c
        waiting = (ProposalStatus.PENDING, ProposalStatus.SNOOZED, ProposalStatus.APPROVED)
        expired = c.status.in_(waiting) & (c.expires_at <= moment)
        awake = (c.status == ProposalStatus.SNOOZED) & (c.snoozed_until <= moment)
        return await self._where(expired | awake)

    async def save_new(
        self,
        connection: AsyncConnection,
        candidates: Sequence[Proposal],
        *,
        agent: str,
        run_id: str,
        now: datetime,
        max_new: int,
        max_open: int,
    ) -> tuple[tuple[Verdict, Proposal], ...]:
        """Keep what a run of one agent came up with, inside the run's transaction.

        One that is like an open one is a duplicate, and the open one stays as it is. One that is like the
        last closed one is suppressed if a person turned that down and the agent has seen nothing new since.

        Args:
            connection: the run's transaction.
            candidates: the proposals, their texts and `expires_at` already fit to keep.
            agent: the agent's name.
            run_id: the run.
            now: the time of day.
            max_new: keep at most so many of these.
            max_open: keep no more while the agent has so many open ones.

        Returns:
            Each candidate's verdict, with the proposal as it was kept or the candidate.
        """
        taken = set(await connection.scalars(select(proposals.c.fingerprint).where(_is_open(agent))))
        room = min(max_new, max_open - len(taken))
        last = await _last_closed(connection, agent, [c.fingerprint for c in candidates])
        results: list[tuple[Verdict, Proposal]] = []
        for candidate in candidates:
            verdict = _verdict(candidate, taken, last, room)
            kept = candidate
            if verdict is Verdict.KEPT:
                kept = await _keep(connection, candidate, run_id, now)
                taken.add(candidate.fingerprint)
                room -= 1
            results.append((verdict, kept))
        return tuple(results)

    async def record(self, connection: AsyncConnection, changed: Proposal, event: ProposalEvent) -> Proposal:
        """Write a change of one proposal and its event; returns the proposal with the decision added.

        Raises:
            StoreError: it stands no longer where the event says it stood; nothing was written.
        """
        values = proposal_to_row(changed)
        still = (proposals.c.id == event.proposal_id) & (proposals.c.status == event.before)
        result = await connection.execute(update(proposals).where(still).values(values))
        if result.rowcount != 1:
            msg = f"proposal {event.proposal_id} was changed by another program meanwhile; look at it again"
            raise StoreError(msg)
        await connection.execute(insert(proposal_events).values(event_to_row(event)))
        return (
            changed
            if event.decision is None
            else changed.with_changes(decisions=(*changed.decisions, event.decision))
        )

    async def turned_down(self, agent: str) -> dict[str, str]:
        """What people rejected or undid of an agent: fingerprint -> evidence hash of the one closed last."""
        c = proposals.c
        asked = select(c.fingerprint).where(c.agent == agent, c.status.in_(tuple(_TURNED_DOWN)))
        async with self._database.read() as connection:
            last = await _last_of_each(connection, agent, c.fingerprint.in_(asked))
        return {name: evidence for name, (status, evidence) in last.items() if status in _TURNED_DOWN}

    async def _where(self, condition: ColumnElement[bool]) -> tuple[Proposal, ...]:
        async with self._database.read() as connection:
            return await _load(connection, select(proposals).where(condition).order_by(proposals.c.id))


async def _counts(connection: AsyncConnection) -> dict[tuple[str, ProposalStatus], int]:
    kind = (proposals.c.agent, proposals.c.status)
    rows = await connection.execute(select(*kind, func.count()).group_by(*kind))
    return {(agent, ProposalStatus(status)): number for agent, status, number in rows}


async def proposals_of_runs(
    connection: AsyncConnection, run_ids: Sequence[str]
) -> dict[str, tuple[Proposal, ...]]:
    """The proposals that each run made, as they stand now."""
    found: dict[str, tuple[Proposal, ...]] = dict.fromkeys(run_ids, ())
    for chunk in _chunks(run_ids):
        query = select(proposals).where(proposals.c.run_id.in_(chunk)).order_by(proposals.c.id)
        for proposal in await _load(connection, query):
            found[str(proposal.run_id)] += (proposal,)
    return found


async def _load(connection: AsyncConnection, query: Select[Any]) -> tuple[Proposal, ...]:
    rows = (await connection.execute(query)).mappings().all()
    events = await _events(connection, [row["id"] for row in rows])
    return tuple(proposal_from_row(row, events.get(row["id"], ())) for row in rows)


def _is_open(agent: str) -> ColumnElement[bool]:
    return (proposals.c.agent == agent) & proposals.c.status.in_(_OPEN)


def _verdict(
    candidate: Proposal,
    taken: set[str],
    last: Mapping[str, tuple[ProposalStatus, str]],
    room: int,
) -> Verdict:
    if candidate.fingerprint in taken:
        return Verdict.DUPLICATE
    status, evidence_hash = last.get(candidate.fingerprint, (None, ""))
    if status in _TURNED_DOWN and evidence_hash == candidate.evidence_hash:
        return Verdict.SUPPRESSED
    return Verdict.KEPT if room > 0 else Verdict.OVER_CAP


async def _last_closed(
    connection: AsyncConnection, agent: str, fingerprints: Sequence[str]
) -> dict[str, tuple[ProposalStatus, str]]:
    """Status and evidence of the one of each fingerprint that was closed last."""
    c = proposals.c
    found: dict[str, tuple[ProposalStatus, str]] = {}
    for chunk in _chunks(tuple(dict.fromkeys(fingerprints))):
        found |= await _last_of_each(connection, agent, c.fingerprint.in_(chunk))
    return found


async def _last_of_each(
    connection: AsyncConnection, agent: str, condition: ColumnElement[bool]
) -> dict[str, tuple[ProposalStatus, str]]:
    c = proposals.c
    query = (
        select(c.fingerprint, c.status, c.evidence_hash)
        .where(c.agent == agent, c.status.in_(tuple(CLOSED)), condition)
        .order_by(c.updated_at, c.id)  # the last one wins
    )
    return {
        fingerprint: (ProposalStatus(status), evidence_hash)
        for fingerprint, status, evidence_hash in await connection.execute(query)
    }


async def _keep(connection: AsyncConnection, candidate: Proposal, run_id: str, now: datetime) -> Proposal:
    kept = candidate.with_changes(run_id=run_id, created_at=now, updated_at=now)
    query = insert(proposals).values(proposal_to_row(kept)).returning(proposals.c.id)
    number = (await connection.execute(query)).scalar_one()
    event = ProposalEvent(
        proposal_id=number, at=now, action="keep", before=None, after=kept.status, digest=kept.digest
    )
    await connection.execute(insert(proposal_events).values(event_to_row(event)))
    return kept.with_changes(id=number)


async def _events(
    connection: AsyncConnection, proposal_ids: Sequence[int]
) -> dict[int, tuple[ProposalEvent, ...]]:
    found: dict[int, tuple[ProposalEvent, ...]] = {}
    for chunk in _chunks(proposal_ids):
        query = select(proposal_events).where(proposal_events.c.proposal_id.in_(chunk))
        for row in (await connection.execute(query.order_by(proposal_events.c.id))).mappings():
            event = event_from_row(row)
            found[event.proposal_id] = (*found.get(event.proposal_id, ()), event)
    return found


def _chunks(values: Sequence[T]) -> Iterable[Sequence[T]]:
    return (values[start : start + _MANY] for start in range(0, len(values), _MANY))
