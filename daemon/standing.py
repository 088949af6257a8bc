"""Interim controls of this branch."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.controls import Standing
from daemon.errors import DaemonError
from daemon.events import AgentState, AgentStatus, RunResult
from daemon.runner import Runner

if TYPE_CHECKING:
    from daemon.store.states import StateStore


class LocalControls:
    def __init__(self, states: StateStore, runner: Runner) -> None:
        self._states, self._runner = states, runner

    async def pause(self, agent: str, by: str, reason: str = "") -> AgentStatus:
        status = replace(
            await self._states.get(agent),
            state=AgentState.PAUSED,
            by=by,
            reason=reason,
            since=datetime.now(UTC),
        )
        await self._states.set(status)
        return status

    async def resume(self, agent: str, by: str) -> AgentStatus:
        status = AgentStatus(agent=agent, by=by, since=datetime.now(UTC))
        await self._states.set(status)
        return status

    async def run(self, agent: str, trigger: str = "manual") -> RunResult:
        return await self._runner.run(agent, trigger)

    async def why(self, agent: str) -> Standing:
        return Standing(status=await self._states.get(agent), schedule="interim")

    async def reload(self) -> tuple[str, ...]:
        msg = "no daemon is running"
        raise DaemonError(msg)

    async def backup(self, to: Path | None = None) -> Path:
        msg = f"no backups yet: {to}"
        raise DaemonError(msg)
