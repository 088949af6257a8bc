"""DueTimeStore: what became of each due time of each agent."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import Select, case, delete, func, select
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from daemon.events import DueTime, Fate
from daemon.store.engine import Database
from daemon.store.tables import due_times

_FIELDS = tuple(DueTime.__dataclass_fields__)


class DueTimeStore:
    """Reads and writes due times. The key is (agent, due): a due time gets one fate and keeps it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def save(self, connection: AsyncConnection, settled: Iterable[DueTime]) -> None:
        """Write what became of due times, in the transaction of the run that they led to, if there is one.

        One that has a fate already keeps it.
        """
        rows = [{name: getattr(each, name) for name in _FIELDS} for each in settled]
        if rows:
            await connection.execute(insert(due_times).on_conflict_do_nothing(), rows)

    async def settle(self, settled: Iterable[DueTime]) -> None:
        """As `save`, in a transaction of its own; writes nothing if there is nothing to settle."""
        rows = tuple(settled)
        if rows:
            async with self._database.write() as connection:
                await self.save(connection, rows)

    async def settled(self, agent: str, due: datetime) -> DueTime | None:
        """What became of that due time, None when it has no row of its own."""
        found = await self._load(select(due_times).where(due_times.c.agent == agent, due_times.c.due == due))
        return found[0] if found else None

    async def last(self, agent: str) -> datetime | None:
        """The agent's newest due time that is settled, None without one."""
        query = select(func.max(due_times.c.last)).where(due_times.c.agent == agent)
        async with self._database.read() as connection:
            moment: datetime | None = (await connection.execute(query)).scalar_one()
            return moment

    async def newest(self, now: datetime) -> dict[str, tuple[datetime | None, datetime]]:
        """Of each agent: its newest settled due time not after `now`, None without one, and its newest.

        They differ where a clock was wrong: it recorded due times that have not come yet.
        """
        last = case((due_times.c.last <= now, due_times.c.last), else_=due_times.c.due)
        past = func.max(case((due_times.c.due <= now, last)))
        query = select(due_times.c.agent, past, func.max(due_times.c.last)).group_by(due_times.c.agent)
        async with self._database.read() as connection:
            return {agent: (before, newest) for agent, before, newest in await connection.execute(query)}

    async def list(
        self, agent: str | None = None, limit: int | None = 50, *, fate: Fate | None = None
    ) -> tuple[DueTime, ...]:
        """Due times, the newest first.

        Args:
            agent: only those of this agent.
            limit: at most so many, None for all.
            fate: only those that this became of.
        """
        query = select(due_times).order_by(due_times.c.due.desc(), due_times.c.agent).limit(limit)
        if agent is not None:
            query = query.where(due_times.c.agent == agent)
        if fate is not None:
            query = query.where(due_times.c.fate == fate.value)
        return await self._load(query)

    async def forget(self, connection: AsyncConnection, before: datetime, limit: int) -> int:
        """Delete up to `limit` that are older than `before`, but each agent's newest; returns how many."""
        keys = (await connection.execute(_older_than(before).limit(limit))).all()
        for agent, due in keys:
            await connection.execute(
                delete(due_times).where(due_times.c.agent == agent, due_times.c.due == due)
            )
        return len(keys)

    async def any_before(self, before: datetime) -> bool:
        """Whether `forget` would find something."""
        async with self._database.read() as connection:
            return (await connection.execute(_older_than(before).limit(1))).first() is not None

    async def _load(self, query: Any) -> tuple[DueTime, ...]:
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).mappings().all()
        return tuple(DueTime(**{**row, "fate": Fate(row["fate"])}) for row in rows)


def _older_than(before: datetime) -> Select[Any]:
    table = due_times.alias()
    latest = select(func.max(table.c.due)).where(table.c.agent == due_times.c.agent).scalar_subquery()
    return select(due_times.c.agent, due_times.c.due).where(
        due_times.c.last < before, due_times.c.due < latest
    )
