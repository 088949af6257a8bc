"""RunStore: what each run did, and the model calls it made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Select, func, insert, select
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.ext.asyncio import AsyncConnection

from agents.context import ModelCall
from daemon.errors import DaemonError
from daemon.events import RunOutcome, RunResult
from daemon.store.engine import Database
from daemon.store.proposals import proposals_of_runs
from daemon.store.rows import call_from_row, call_to_row, run_from_row, run_to_row
from daemon.store.tables import model_calls, runs


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """What is known of an agent's runs; None where there is none.

    Attributes:
        began: when the oldest of them began.
        succeeded: when the last one that succeeded ended.
        seconds: how long the last one took.
    """

    began: datetime | None
    succeeded: datetime | None
    seconds: float | None


class RunStore:
    """Reads and writes runs; a run is written once, when it has ended, together with all it made."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def save(
        self, connection: AsyncConnection, result: RunResult, calls: Sequence[ModelCall] = ()
    ) -> None:
        """Write a run and its model calls, in one transaction with its proposals.

        Args:
            connection: the run's transaction.
            result: the run as it ended.
            calls: its model calls; of two with the same id the first one is kept.
        """
        await connection.execute(insert(runs).values(run_to_row(result)))
        if calls:
            rows = [call_to_row(call, result.run_id, result.agent) for call in calls]
            await connection.execute(sqlite_insert(model_calls).on_conflict_do_nothing(), rows)

    async def get(self, run_id: str) -> RunResult:
        """The run of that name, with its proposals as they stand now.

        Raises:
            DaemonError: there is none.
        """
        found = await self.find(run_id)
        if found is None:
            msg = f"there is no run {run_id!r}; 'askfirst runs list' shows those there are"
            raise DaemonError(msg)
        return found

    async def find(self, run_id: str) -> RunResult | None:
        """As `get`, but None if there is none."""
        found = await self._load(select(runs).where(runs.c.id == run_id))
        return found[0] if found else None

    async def list(self, agent: str | None = None, limit: int | None = 50) -> tuple[RunResult, ...]:
        """Runs with their proposals as they stand now, the newest first.

        Args:
            agent: only those of this agent.
            limit: at most so many, None for all.
        """
        query = select(runs).order_by(runs.c.id.desc()).limit(limit)
        return await self._load(query if agent is None else query.where(runs.c.agent == agent))

    async def newest(self) -> dict[str, RunResult]:
        """The newest run of each agent."""
        newest = select(func.max(runs.c.id)).group_by(runs.c.agent)
        return {run.agent: run for run in await self._load(select(runs).where(runs.c.id.in_(newest)))}

    async def past(self, agent: str) -> Past:
        """What is known of the agent's runs."""
        c = runs.c
        times = select(c.started_at, c.finished_at).where(c.agent == agent).limit(1)
        latest = times.order_by(c.id.desc())  # each goes by the index of the agents, from one of its ends
        async with self._database.read() as connection:
            first = (await connection.execute(times.order_by(c.id))).one_or_none()
            last = (await connection.execute(latest)).one_or_none()
            good = (await connection.execute(latest.where(c.outcome == RunOutcome.SUCCEEDED))).one_or_none()
        return Past(
            began=None if first is None else first.started_at,
            succeeded=None if good is None else good.finished_at,
            seconds=None if last is None else (last.finished_at - last.started_at).total_seconds(),
        )

    async def calls_of(self, run_id: str) -> tuple[ModelCall, ...]:
        """The model calls of a run, the first one first."""
        return await self._calls(select(model_calls).where(model_calls.c.run_id == run_id))

    async def calls_by_id(self, call_ids: Iterable[str]) -> tuple[ModelCall, ...]:
        """The model calls of these ids, such as `Proposal.call_ids`; ids that are not there are left out."""
        return await self._calls(select(model_calls).where(model_calls.c.id.in_(tuple(call_ids))))

    async def _calls(self, query: Select[Any]) -> tuple[ModelCall, ...]:
        async with self._database.read() as connection:
            rows = await connection.execute(query.order_by(model_calls.c.at, model_calls.c.id))
            return tuple(call_from_row(row) for row in rows.mappings())

    async def _load(self, query: Select[Any]) -> tuple[RunResult, ...]:
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).mappings().all()
            made = await proposals_of_runs(connection, [row["id"] for row in rows])
            return tuple(run_from_row(row, made[row["id"]]) for row in rows)
