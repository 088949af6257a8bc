"""How the daemon is, on one screen: what `askfirst status` shows."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from agents.proposal import ProposalStatus
from daemon.control.lock import Holder
from daemon.events import AgentStatus
from daemon.observability.health import Health
from daemon.version import own_version

if TYPE_CHECKING:
    from daemon.runtime import Runtime
    from daemon.scheduler import AgentScheduler
    from llm import Selection


async def report(
    runtime: Runtime, scheduler: AgentScheduler, health: Health, own: Holder, address: str | None
) -> dict[str, Any]:
    """Everything as plain data; moments are texts in ISO 8601, UTC.

    Args:
        runtime: what is open.
        scheduler: runs the agents.
        health: asks what is open how it is.
        own: what others see of this daemon.
        address: of the web endpoints, None without them.
    """
    _, answers = await health.check()
    states = await runtime.states.all()
    told: Mapping[str, Any] = scheduler.get_stats()["agents"]
    counts = await runtime.proposals.counts()
    return {
        "running": True,
        "version": await asyncio.to_thread(own_version),
        "pid": own.pid,
        "since": None if own.since is None else own.since.isoformat(),
        "address": address,
        "data_dir": str(runtime.settings.daemon.data_dir),
        "model": model_of(runtime.selection),
        "open": {answer.name: answer.as_json() for answer in answers},
        "agents": [_agent(name, states, told.get(name, {})) for name in told],
        "waiting": {
            status.value: sum(number for (_, each), number in counts.items() if each is status)
            for status in ProposalStatus
            if status.is_open
        },
    }


def model_of(selection: Selection) -> dict[str, Any]:
    """Which model is used and why, as `--json` says it."""
    config = selection.config
    return {
        "backend": None if config is None else config.backend,
        "model": None if config is None else config.model,
        "reason": selection.reason,
        "considered": list(selection.considered),
    }


def _agent(name: str, states: Mapping[str, AgentStatus], told: Mapping[str, Any]) -> dict[str, Any]:
    status = states.get(name, AgentStatus(agent=name))
    last = told.get("last_run") or {}
    return {
        "name": name,
        "state": status.state.value,
        "reason": status.reason,
        "running": bool(told.get("running")),
        "next_run": told.get("next_run"),
        "held_until": told.get("held_until"),
        "last_outcome": last.get("outcome"),
        "problem": told.get("problem"),
    }
