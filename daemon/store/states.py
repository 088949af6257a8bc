"""StateStore: what is kept about each agent between its runs: paused, quarantined, held, failures."""

from __future__ import annotations

from sqlalchemy import RowMapping, select
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from daemon.events import AgentState, AgentStatus
from daemon.store.engine import Database
from daemon.store.tables import agent_states

_FIELDS = tuple(AgentStatus.__dataclass_fields__)


class StateStore:
    """Reads and writes the agents' states."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, agent: str, connection: AsyncConnection | None = None) -> AgentStatus:
        """The agent's state; an active one if nothing is known of it.

        Args:
            agent: the agent.
            connection: the transaction in which to look, None for one of its own.
        """
        if connection is None:
            async with self._database.read() as own:
                return await self.get(agent, own)
        query = select(agent_states).where(agent_states.c.agent == agent)
        row = (await connection.execute(query)).mappings().one_or_none()
        return AgentStatus(agent=agent) if row is None else _from_row(row)

    async def all(self) -> dict[str, AgentStatus]:
        """The state of every agent of which one is kept, by name."""
        async with self._database.read() as connection:
            rows = (await connection.execute(select(agent_states))).mappings().all()
        return {row["agent"]: _from_row(row) for row in rows}

    async def save(self, connection: AsyncConnection, status: AgentStatus) -> None:
        """Write an agent's state, in place of what was known of it."""
        row = {name: getattr(status, name) for name in _FIELDS}
        changed = {name: value for name, value in row.items() if name != "agent"}
        statement = insert(agent_states).values(row)
        await connection.execute(statement.on_conflict_do_update(index_elements=["agent"], set_=changed))

    async def set(self, status: AgentStatus) -> None:
        """As `save`, in a transaction of its own."""
        async with self._database.write() as connection:
            await self.save(connection, status)


def _from_row(row: RowMapping) -> AgentStatus:
    return AgentStatus(**{**row, "state": AgentState(row["state"])})
