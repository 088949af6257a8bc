"""Controls: what a person may do to agents, whoever carries it out: the daemon, or a command alone."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from daemon.events import AgentStatus, DueTime, RunResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where an agent stands: when it ran, when it runs next, what holds it.

    Attributes:
        status: what is kept about it.
        schedule: when it is due, in words.
        enabled: whether the configuration enables it.
        running_since: when its run that is under way began, None when none is.
        next_due: its next due time by the clock, None when it has none.
        next_run: when that is run at the earliest, what holds it counted in; None when only a person or an
            event can bring a run.
        holds: what keeps it from running now, one sentence each, with the way out.
        last_run: its last run, None when it never ran.
        due_times: what became of its last due times, the newest first.
    """

    status: AgentStatus
    schedule: str
    enabled: bool = True
    running_since: datetime | None = None
    next_due: datetime | None = None
    next_run: datetime | None = None
    holds: tuple[str, ...] = ()
    last_run: RunResult | None = None
    due_times: tuple[DueTime, ...] = ()


class Controls(Protocol):
    """What can be asked of the program about its agents.

    Every method raises `AgentNotFound` for an unknown agent and `DaemonError` when it cannot be done.
    """

    async def pause(self, agent: str, by: str, reason: str = "") -> AgentStatus:
        """Do not run the agent on schedule until it is resumed; a run under way goes on."""

    async def resume(self, agent: str, by: str) -> AgentStatus:
        """Run a paused, quarantined or held agent on schedule again; its failures are forgotten."""

    async def run(self, agent: str, trigger: str = "manual") -> RunResult:
        """Run the agent now, whatever holds it, and tell how the run ended."""

    async def why(self, agent: str) -> Standing:
        """Where the agent stands."""

    async def reload(self) -> tuple[str, ...]:
        """Read the configuration again, whole or not at all; returns what changed, one sentence each.

        Raises:
            SettingsError: it cannot work, or changes what needs a restart; the old one stays in force.
        """

    async def backup(self, to: Path | None = None) -> Path:
        """Make a verified copy of the database and return where it is; `to` None puts it with the others."""
