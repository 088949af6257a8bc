"""Retention: forgets what ended long ago, a little at a time, and nothing that still matters.

What stays however old it is:
- proposals that wait for something, and those that people rejected or undid: dismissed stays dismissed;
- of proposals that are like a rejected one, the one closed last: whether the next one is suppressed depends
  on it;
- each agent's newest run and due time: a restart goes on from there;
- runs that a kept proposal or model call came from, and the model calls behind open proposals.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, Table, and_, delete, exists, func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from agents.proposal import CLOSED, ProposalStatus
from daemon.store.due_times import DueTimeStore
from daemon.store.engine import Database
from daemon.store.tables import model_calls, proposal_events, proposals, runs

AT_ONCE = 200
"""Rows of one transaction, or runs whose model calls go."""

PAUSE_S = 0.05
"""Between two transactions, so that a run or a decision never waits for long."""

_TURNED_DOWN = (ProposalStatus.REJECTED, ProposalStatus.UNDONE)
_FORGETTABLE = tuple(sorted(CLOSED - set(_TURNED_DOWN)))
_OPEN = tuple(status for status in ProposalStatus if status.is_open)


_Drop = Callable[[AsyncConnection, Sequence[Any]], Awaitable[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ages:
    """How long what has ended is kept, by kind."""

    runs: timedelta
    calls: timedelta
    proposals: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgotten:
    """How many of each kind were deleted."""

    proposals: int = 0
    calls: int = 0
    runs: int = 0
    due_times: int = 0

    def as_dict(self) -> dict[str, int]:
        """By kind, for the log."""
        return asdict(self)

    def __bool__(self) -> bool:
        return any(asdict(self).values())


class Retention:
    """Deletes what is older than it has to be kept."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._due_times = DueTimeStore(database)

    async def newest_run(self) -> datetime | None:
        """When the newest run ended, None if there is none."""
        async with self._database.read() as connection:
            moment: datetime | None = await connection.scalar(select(func.max(runs.c.finished_at)))
            return moment

    async def sweep(self, now: datetime, ages: Ages) -> Forgotten:
        """Delete everything that is older, seen from `now`; writes nothing if there is nothing.

        Raises:
            StoreError: the database cannot be written; what was deleted before that stays deleted.
        """
        # In this order, since a run stays as long as something that came from it is kept.
        old_run = _before(now, ages.runs)
        return Forgotten(
            proposals=await self._all_of(_old_proposals(_before(now, ages.proposals)), _drop_proposals),
            calls=await self._all_of(_runs_with_old_calls(_before(now, ages.calls)), _drop_calls),
            runs=await self._all_of(_old_runs(old_run), _drop_runs),
            due_times=await self._forget_due_times(old_run),
        )

    async def _all_of(self, query: Select[Any], drop: _Drop) -> int:
        """Look for keys without holding up any writer, drop their rows, and go on behind the last one."""
        key = query.selected_columns[0]
        ordered, gone = query.order_by(key).limit(AT_ONCE), 0
        keys: Sequence[Any] = ()
        while True:
            behind = ordered.where(key > keys[-1]) if keys else ordered
            async with self._database.read() as connection:
                keys = (await connection.scalars(behind)).all()
            if not keys:
                return gone
            async with self._database.write() as connection:
                gone += await drop(connection, keys)
            await asyncio.sleep(PAUSE_S)

    async def _forget_due_times(self, before: datetime) -> int:
        gone = 0
        while await self._due_times.any_before(before):
            async with self._database.write() as connection:
                count = await self._due_times.forget(connection, before, AT_ONCE)
            gone += count
            if count < AT_ONCE:
                break
            await asyncio.sleep(PAUSE_S)
        return gone


async def _drop_proposals(connection: AsyncConnection, keys: Sequence[Any]) -> int:
    # Looked at again: somebody may be undoing one by now.
    still = select(proposals.c.id).where(proposals.c.id.in_(keys), proposals.c.status.in_(_FORGETTABLE))
    numbers = (await connection.scalars(still)).all()
    await connection.execute(delete(proposal_events).where(proposal_events.c.proposal_id.in_(numbers)))
    return (await connection.execute(delete(proposals).where(proposals.c.id.in_(numbers)))).rowcount


async def _drop_calls(connection: AsyncConnection, keys: Sequence[Any]) -> int:
    return (await connection.execute(delete(model_calls).where(model_calls.c.run_id.in_(keys)))).rowcount


async def _drop_runs(connection: AsyncConnection, keys: Sequence[Any]) -> int:
    return (await connection.execute(delete(runs).where(runs.c.id.in_(keys)))).rowcount


def _before(now: datetime, age: timedelta) -> datetime:
    try:
        return now - age
    except OverflowError:  # kept for longer than there has been a calendar
        return datetime.min.replace(tzinfo=now.tzinfo)


def _old_proposals(before: datetime) -> Select[Any]:
    c, turned, later = proposals.c, proposals.alias(), proposals.alias()
    turned_down = exists().where(_alike(turned), turned.c.status.in_(_TURNED_DOWN))
    closed_later = exists().where(
        _alike(later),
        later.c.status.in_(tuple(CLOSED)),
        or_(later.c.updated_at > c.updated_at, and_(later.c.updated_at == c.updated_at, later.c.id > c.id)),
    )
    old = and_(c.status.in_(_FORGETTABLE), c.updated_at < before)
    return select(c.id).where(old, or_(~turned_down, closed_later))


def _alike(other: Any) -> ColumnElement[bool]:
    return and_(other.c.agent == proposals.c.agent, other.c.fingerprint == proposals.c.fingerprint)


def _runs_with_old_calls(before: datetime) -> Select[Any]:
    # The runs are small and in order: the calls' own pages are not read for the search.
    waits = exists().where(proposals.c.run_id == runs.c.id, proposals.c.status.in_(_OPEN))
    return select(runs.c.id).where(runs.c.finished_at < before, _refers(model_calls), ~waits)


def _old_runs(before: datetime) -> Select[Any]:
    newer = runs.alias()
    return select(runs.c.id).where(
        runs.c.finished_at < before,
        exists().where(newer.c.agent == runs.c.agent, newer.c.id > runs.c.id),
        ~_refers(proposals),
        ~_refers(model_calls),
    )


def _refers(table: Table) -> ColumnElement[bool]:
    return exists().where(table.c.run_id == runs.c.id)
