"""History: what happened over time, in sums, and what waits: for pages that show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise

from sqlalchemy import Integer, Text, column, func, select, values

from agents.proposal import ProposalStatus
from daemon.events import RunOutcome, first_run_id
from daemon.store.engine import Database
from daemon.store.tables import proposals, runs

FOR_A_PERSON = (
    ProposalStatus.PENDING,
    ProposalStatus.APPLY_FAILED,
    ProposalStatus.NEEDS_ATTENTION,
)
"""Statuses in which a proposal waits for a person."""

_AT_ONCE = 100
"""Agents of one query."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSums:
    """The runs that began in a stretch of time.

    Attributes:
        outcomes: how many ended how.
        calls: their model calls, those included that the response cache answered.
        cached_calls: model calls that the response cache answered.
    """

    outcomes: dict[RunOutcome, int] = field(default_factory=dict)
    calls: int = 0
    cached_calls: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LastRun:
    """How a run ended."""

    run_id: str
    agent: str
    outcome: RunOutcome
    started_at: datetime
    finished_at: datetime
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingProposal:
    """A proposal that waits for a person."""

    id: int
    agent: str
    title: str
    status: ProposalStatus
    created_at: datetime
    expires_at: datetime


class History:
    """Reads sums. Names of runs sort by time, so a stretch of time is a stretch of the table."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def runs(self, edges: Sequence[datetime]) -> tuple[RunSums, ...]:
        """The runs that began between each moment and the next.

        Args:
            edges: aware moments in order; one more than there are stretches.
        """
        stretches = [
            (number, first_run_id(since), first_run_id(until))
            for number, (since, until) in enumerate(pairwise(edges))
        ]
        part = (
            values(column("number", Integer), column("since", Text), column("until", Text), name="stretches")
            .data(stretches)
            .cte("stretches")
        )
        query = (
            select(
                part.c.number,
                runs.c.outcome,
                func.count(),
                func.sum(runs.c.calls),
                func.sum(runs.c.cached_calls),
            )
            .join_from(part, runs, (runs.c.id >= part.c.since) & (runs.c.id < part.c.until))
            .group_by(part.c.number, runs.c.outcome)
        )
        outcomes: list[dict[RunOutcome, int]] = [{} for _ in stretches]
        calls, cached = [0] * len(stretches), [0] * len(stretches)
        async with self._database.read() as connection:
            for number, outcome, count, made, from_cache in await connection.execute(query):
                outcomes[number][RunOutcome(outcome)] = count
                calls[number] += made
                cached[number] += from_cache
        return tuple(
            RunSums(outcomes=each, calls=made, cached_calls=from_cache)
            for each, made, from_cache in zip(outcomes, calls, cached, strict=True)
        )

    async def last_runs(self, agents: Sequence[str]) -> dict[str, LastRun]:
        """The newest run of each of these agents, by its name; agents that never ran are left out."""
        c, last = runs.c, dict[str, LastRun]()
        columns = (c.id, c.agent, c.outcome, c.started_at, c.finished_at, c.error)
        async with self._database.read() as connection:
            for start in range(0, len(agents), _AT_ONCE):
                some = agents[start : start + _AT_ONCE]
                # One step in the index for each: a GROUP BY would read all of their runs.
                newest = [select(func.max(c.id)).where(c.agent == agent).scalar_subquery() for agent in some]
                for row in await connection.execute(select(*columns).where(c.id.in_(newest))):
                    run_id, agent, outcome, started_at, finished_at, error = row
                    last[agent] = LastRun(
                        run_id=run_id,
                        agent=agent,
                        outcome=RunOutcome(outcome),
                        started_at=started_at,
                        finished_at=finished_at,
                        error=error,
                    )
        return last

    async def waiting(self, limit: int) -> tuple[WaitingProposal, ...]:
        """At most so many of the proposals that wait for a person, the oldest first."""
        c = proposals.c
        query = (
            select(c.id, c.agent, c.title, c.status, c.created_at, c.expires_at)
            .where(c.status.in_(FOR_A_PERSON))
            .order_by(c.id)
            .limit(limit)
        )
        async with self._database.read() as connection:
            return tuple(
                WaitingProposal(
                    id=number,
                    agent=agent,
                    title=title,
                    status=ProposalStatus(status),
                    created_at=created_at,
                    expires_at=expires_at,
                )
                for number, agent, title, status, created_at, expires_at in await connection.execute(query)
            )
