"""RemoteRuntime: what a command holds while the daemon runs. The same methods as a `Runtime`, asked of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from agents.context import ModelCall
from agents.proposal import Proposal, ProposalStatus
from daemon.control.client import Connection
from daemon.controls import Standing
from daemon.errors import ControlError
from daemon.events import AgentStatus, DueTime, Fate, RunResult
from daemon.store.rows import ProposalEvent

if TYPE_CHECKING:
    from agents.registry import AgentRegistry
    from daemon.settings import Settings


class RemoteRuntime:
    """A daemon that runs, as far as commands need it.

    Args:
        settings: the configuration as the command read it.
        connection: the way to the daemon.

    Attributes:
        proposals, runs, due_times, states: read what the daemon has.
        desk: has it decide.
        controls: has it change how its agents are run.
        logs: has it show and change what it logs.
    """

    def __init__(self, settings: Settings, connection: Connection) -> None:
        self.settings = settings
        self.connection = connection
        self.proposals = RemoteProposals(connection)
        self.runs = RemoteRuns(connection)
        self.due_times = RemoteDueTimes(connection)
        self.states = RemoteStates(connection)
        self.desk = RemoteDesk(connection)
        self.controls = RemoteControls(connection)
        self.logs = RemoteLogs(connection)

    @property
    def agent_names(self) -> tuple[str, ...]:
        """The agents that the configuration enables."""
        return self.settings.enabled_agents

    @cached_property
    def registry(self) -> AgentRegistry:
        """The agents there are, as this process finds them."""
        from agents.registry import AgentRegistry  # noqa: PLC0415 - loads the agents, which few commands need

        return AgentRegistry(self.settings.daemon.plugin_dir, apart=True)

    def __getattr__(self, name: str) -> Any:
        """Say what is wrong with a command that takes more for granted."""
        msg = f"{name} is the daemon's own while it runs; a command reaches it through the methods there are"
        raise AttributeError(msg)

    async def once(self, agents: Sequence[str] = ()) -> AsyncIterator[Any]:
        """Have agents run once; yields the model as a mapping, then each `RunResult` as its run ends."""
        async for part in self.connection.parts("once", agents=tuple(agents)):
            yield part

    async def status(self) -> dict[str, Any]:
        """How the daemon is."""
        return cast("dict[str, Any]", await self.connection.ask("status"))


class _Remote:
    def __init__(self, connection: Connection) -> None:
        self._ask = connection.ask


class RemoteProposals(_Remote):
    """As `ProposalStore`, to read."""

    async def get(self, proposal_id: int) -> Proposal:
        """The proposal of that number."""
        return cast("Proposal", await self._ask("proposals.get", proposal_id=proposal_id))

    async def list(
        self,
        status: ProposalStatus | Iterable[ProposalStatus] | None = None,
        agent: str | None = None,
        limit: int | None = 100,
    ) -> tuple[Proposal, ...]:
        """Proposals, the newest first."""
        wanted = status if status is None or isinstance(status, ProposalStatus) else tuple(status)
        found = await self._ask("proposals.list", status=wanted, agent=agent, limit=limit)
        return cast("tuple[Proposal, ...]", found)

    async def open_for(self, agent: str) -> tuple[Proposal, ...]:
        """The agent's proposals that may still change something, the oldest first."""
        return cast("tuple[Proposal, ...]", await self._ask("proposals.open_for", agent=agent))

    async def counts(self) -> dict[tuple[str, ProposalStatus], int]:
        """How many proposals there are of each agent in each status."""
        return cast("dict[tuple[str, ProposalStatus], int]", await self._ask("proposals.counts"))

    async def events(self, proposal_id: int) -> tuple[ProposalEvent, ...]:
        """Everything that happened to a proposal, the oldest first."""
        return cast("tuple[ProposalEvent, ...]", await self._ask("proposals.events", proposal_id=proposal_id))

    async def turned_down(self, agent: str) -> dict[str, str]:
        """What people turned down: fingerprint -> evidence hash."""
        return cast("dict[str, str]", await self._ask("proposals.turned_down", agent=agent))


class RemoteRuns(_Remote):
    """As `RunStore`, to read."""

    async def get(self, run_id: str) -> RunResult:
        """The run of that name."""
        return cast("RunResult", await self._ask("runs.get", run_id=run_id))

    async def list(self, agent: str | None = None, limit: int | None = 50) -> tuple[RunResult, ...]:
        """Runs, the newest first."""
        return cast("tuple[RunResult, ...]", await self._ask("runs.list", agent=agent, limit=limit))

    async def calls_of(self, run_id: str) -> tuple[ModelCall, ...]:
        """The model calls of a run."""
        return cast("tuple[ModelCall, ...]", await self._ask("runs.calls_of", run_id=run_id))

    async def calls_by_id(self, call_ids: Iterable[str]) -> tuple[ModelCall, ...]:
        """The model calls of these ids."""
        return cast("tuple[ModelCall, ...]", await self._ask("runs.calls_by_id", call_ids=tuple(call_ids)))


class RemoteDueTimes(_Remote):
    """As `DueTimeStore`, to read."""

    async def list(
        self, agent: str | None = None, limit: int | None = 50, *, fate: Fate | None = None
    ) -> tuple[DueTime, ...]:
        """Due times, the newest first."""
        found = await self._ask("due_times.list", agent=agent, limit=limit, fate=fate)
        return cast("tuple[DueTime, ...]", found)

    async def last(self, agent: str) -> datetime | None:
        """The agent's newest due time that is settled."""
        return cast("datetime | None", await self._ask("due_times.last", agent=agent))

    async def settled(self, agent: str, due: datetime) -> DueTime | None:
        """What became of that due time."""
        return cast("DueTime | None", await self._ask("due_times.settled", agent=agent, due=due))


class RemoteStates(_Remote):
    """As `StateStore`, to read."""

    async def get(self, agent: str) -> AgentStatus:
        """The agent's state."""
        return cast("AgentStatus", await self._ask("states.get", agent=agent))

    async def all(self) -> dict[str, AgentStatus]:
        """The state of every agent of which one is kept."""
        return cast("dict[str, AgentStatus]", await self._ask("states.all"))


class RemoteDesk(_Remote):
    """As `ProposalDesk`, to decide. `via` is what the daemon says it is, and so is `by` of others' users."""

    async def approve(
        self,
        proposal_id: int,
        by: str,
        via: str,
        comment: str = "",
        digest: str | None = None,
        *,
        apply: bool = True,
    ) -> Proposal:
        """Approve what stands there now; the last approval that is needed also applies it."""
        words = {"by": by, "via": via, "comment": comment, "digest": digest}
        return await self._decide("approve", proposal_id, apply=apply, **words)

    async def reject(
        self, proposal_id: int, by: str, via: str, comment: str = "", digest: str | None = None
    ) -> Proposal:
        """Turn a proposal down."""
        return await self._decide("reject", proposal_id, by=by, via=via, comment=comment, digest=digest)

    async def edit(
        self,
        proposal_id: int,
        changes: Mapping[str, Any],
        by: str,
        via: str,
        comment: str = "",
        *,
        digest: str | None = None,
    ) -> Proposal:
        """Change parts of a waiting proposal's payload."""
        words = {"by": by, "via": via, "comment": comment, "digest": digest}
        return await self._decide("edit", proposal_id, changes=dict(changes), **words)

    async def snooze(
        self, proposal_id: int, until: datetime, by: str, via: str, comment: str = ""
    ) -> Proposal:
        """Put a waiting proposal aside until then."""
        return await self._decide("snooze", proposal_id, until=until, by=by, via=via, comment=comment)

    async def apply(self, proposal_id: int, by: str, via: str, comment: str = "") -> Proposal:
        """Apply an approved proposal, or try again."""
        return await self._decide("apply", proposal_id, by=by, via=via, comment=comment)

    async def undo(self, proposal_id: int, by: str, via: str, comment: str = "") -> Proposal:
        """Take back what was applied."""
        return await self._decide("undo", proposal_id, by=by, via=via, comment=comment)

    async def _decide(self, what: str, proposal_id: int, **given: Any) -> Proposal:
        return cast("Proposal", await self._ask(f"desk.{what}", proposal_id=proposal_id, **given))


class RemoteControls(_Remote):
    """As `Controls`."""

    async def pause(self, agent: str, by: str, reason: str = "") -> AgentStatus:
        """Do not run the agent on schedule until it is resumed."""
        return cast("AgentStatus", await self._ask("controls.pause", agent=agent, by=by, reason=reason))

    async def resume(self, agent: str, by: str) -> AgentStatus:
        """Run it on schedule again."""
        return cast("AgentStatus", await self._ask("controls.resume", agent=agent, by=by))

    async def run(self, agent: str, trigger: str = "manual") -> RunResult:
        """Run it now, and tell how the run ended."""
        return cast("RunResult", await self._ask("controls.run", agent=agent, trigger=trigger))

    async def why(self, agent: str) -> Standing:
        """Where it stands."""
        return cast("Standing", await self._ask("controls.why", agent=agent))

    async def reload(self) -> tuple[str, ...]:
        """Read the configuration again; returns what changed."""
        return cast("tuple[str, ...]", await self._ask("controls.reload"))

    async def backup(self, to: Path | None = None) -> Path:
        """Make a verified copy of the database and return where it is."""
        # Where a relative path begins is known here, not there.
        place = None if to is None else await asyncio.to_thread(to.absolute)
        return cast("Path", await self._ask("controls.backup", to=place))


class RemoteLogs(_Remote):
    """As `LogControls`."""

    async def show(self) -> dict[str, Any]:
        """From which level on its parts log."""
        return cast("dict[str, Any]", await self._ask("logs.show"))

    async def ask(self, levels: Mapping[str, str], by: str, seconds: int | None = None) -> dict[str, Any]:
        """Let parts log at other levels."""
        found = await self._ask("logs.ask", levels=dict(levels), by=by, seconds=seconds)
        return cast("dict[str, Any]", found)

    async def forget(self, by: str, parts: Sequence[str] = ()) -> dict[str, Any]:
        """Go back to its configuration."""
        return cast("dict[str, Any]", await self._ask("logs.forget", by=by, parts=tuple(parts)))


class Unreachable:
    """Stands for the desk and the controls while the daemon holds its lock but does not answer."""

    def __init__(self, why: ControlError) -> None:
        self._why = why

    def __getattr__(self, name: str) -> Any:
        """A method that does nothing but say why."""

        async def refuse(*_args: Any, **_given: Any) -> Any:
            raise self._why

        return refuse
