"""What can be asked of the daemon: a closed table of names, with what each one takes and who may ask it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from agents.proposal import ProposalStatus
from daemon.control.logs import LogControls
from daemon.control.peers import Peer
from daemon.control.report import model_of
from daemon.controls import Controls
from daemon.errors import DaemonError, NotAllowed, NotUnderstood
from daemon.events import Fate, RunResult

if TYPE_CHECKING:
    from daemon.runtime import Runtime
    from daemon.scheduler import AgentScheduler

VIA = "cli"
"""How a decision that came through the socket reached the program."""

Tell = Callable[[Any], Awaitable[None]]
"""Hands the asker a part of the answer while the rest is under way."""

_LARGEST = 2**63 - 1  # of SQLite's integers
_DEEPEST = 50  # lists and objects inside each other


class Takes(Enum):
    """What a parameter can be."""

    NUMBER = "a whole number"
    LIMIT = "a whole number, or nothing"
    SWITCH = "true or false"
    TEXT = "a text"
    TEXT_OR_NONE = "a text, or nothing"
    NAME = "a name"
    NAME_OR_NONE = "a name, or nothing"
    NAMES = "names"
    MOMENT = "a moment with a time zone"
    FATE_OR_NONE = "what became of a due time, or nothing"
    STATUSES = "one status or several"
    JSON = "an object of plain JSON"
    PATH_OR_NONE = "an absolute path, or nothing"

    def fits(self, value: Any) -> bool:
        """Whether `value` is that."""
        return _CHECKS[self](value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One thing that can be asked.

    Attributes:
        call: what does it.
        takes: its parameters.
        trusted_only: whether only our own user and root may ask it.
        tells: whether `call` takes a `Tell` first.
    """

    call: Callable[..., Awaitable[Any]]
    takes: Mapping[str, Takes]
    trusted_only: bool = False
    tells: bool = False

    def needed(self) -> frozenset[str]:
        """The parameters that have no default."""
        return frozenset(
            name
            for name, parameter in inspect.signature(self.call).parameters.items()
            if parameter.default is parameter.empty and name in self.takes
        )


class Operations:
    """Carries out what is in the table, and nothing else.

    Args:
        table: gives what can be asked now, by its name; another configuration brings other parts.
    """

    def __init__(self, table: Callable[[], Mapping[str, Operation]]) -> None:
        self._table = table

    async def carry_out(self, do: str, given: Mapping[str, Any], peer: Peer, tell: Tell) -> Any:
        """Do what was asked.

        Args:
            do: the operation's name.
            given: its parameters.
            peer: who asks.
            tell: takes the parts of an answer that comes in parts.

        Raises:
            NotUnderstood: there is no such operation, or it does not take that.
            NotAllowed: the peer may not ask it.
            Exception: what it raises.
        """
        operation = self._table().get(do)
        if operation is None:
            msg = f"there is nothing called {do[:100]!r} to be asked"
            raise NotUnderstood(msg)
        if operation.trusted_only and not peer.trusted:
            msg = f"{peer.login} may decide about proposals and agents; {do} is for the daemon's own user"
            raise NotAllowed(msg)
        arguments = _as_itself(_checked(do, operation, given), operation, peer)
        return await (operation.call(tell, **arguments) if operation.tells else operation.call(**arguments))


def _checked(do: str, operation: Operation, given: Mapping[str, Any]) -> dict[str, Any]:
    unknown, missing = given.keys() - operation.takes.keys(), operation.needed() - given.keys()
    if unknown or missing:
        what = [*(f"{name[:100]!r} is unknown" for name in sorted(unknown)[:5])]
        what += [f"{name!r} is missing" for name in sorted(missing)]
        raise NotUnderstood(f"{do}: {', '.join(what)}")
    for name, value in given.items():
        if not operation.takes[name].fits(value):
            raise NotUnderstood(f"{do}: {name} must be {operation.takes[name].value}")
    return dict(given)


def _as_itself(arguments: dict[str, Any], operation: Operation, peer: Peer) -> dict[str, Any]:
    """Who decides through what is not for everybody to say."""
    if "via" in operation.takes:
        arguments["via"] = VIA
    if "by" in operation.takes and not peer.trusted:
        arguments["by"] = peer.login
    return arguments


def table_of(
    runtime: Runtime,
    scheduler: AgentScheduler,
    controls: Controls,
    *,
    reload: Callable[[], Awaitable[tuple[str, ...]]],
    status: Callable[[], Awaitable[dict[str, Any]]],
) -> dict[str, Operation]:
    """Everything that the commands ask of a daemon.

    Args:
        runtime: what is open.
        scheduler: runs agents.
        controls: changes how they are run.
        reload: reads the configuration again.
        status: says how the daemon is.
    """
    t = Takes
    decide = {"proposal_id": t.NUMBER, "by": t.TEXT, "via": t.TEXT, "comment": t.TEXT}
    seen = {**decide, "digest": t.TEXT_OR_NONE}
    by_agent = {"agent": t.NAME_OR_NONE, "limit": t.LIMIT}
    proposals, runs, desk = runtime.proposals, runtime.runs, runtime.desk
    logs = LogControls(runtime.registry.names)
    return {
        "proposals.get": Operation(call=proposals.get, takes={"proposal_id": t.NUMBER}),
        "proposals.list": Operation(call=proposals.list, takes={"status": t.STATUSES, **by_agent}),
        "proposals.counts": Operation(call=proposals.counts, takes={}),
        "proposals.events": Operation(call=proposals.events, takes={"proposal_id": t.NUMBER}),
        "proposals.open_for": Operation(call=proposals.open_for, takes={"agent": t.NAME}),
        "proposals.turned_down": Operation(call=proposals.turned_down, takes={"agent": t.NAME}),
        "runs.get": Operation(call=runs.get, takes={"run_id": t.NAME}),
        "runs.list": Operation(call=runs.list, takes=by_agent),
        "runs.calls_of": Operation(call=runs.calls_of, takes={"run_id": t.NAME}),
        "runs.calls_by_id": Operation(call=runs.calls_by_id, takes={"call_ids": t.NAMES}),
        "due_times.list": Operation(call=runtime.due_times.list, takes={**by_agent, "fate": t.FATE_OR_NONE}),
        "due_times.last": Operation(call=runtime.due_times.last, takes={"agent": t.NAME}),
        "due_times.settled": Operation(
            call=runtime.due_times.settled, takes={"agent": t.NAME, "due": t.MOMENT}
        ),
        "states.get": Operation(call=runtime.states.get, takes={"agent": t.NAME}),
        "states.all": Operation(call=runtime.states.all, takes={}),
        "desk.approve": Operation(call=desk.approve, takes={**seen, "apply": t.SWITCH}),
        "desk.reject": Operation(call=desk.reject, takes=seen),
        "desk.edit": Operation(call=desk.edit, takes={**seen, "changes": t.JSON}),
        "desk.snooze": Operation(call=desk.snooze, takes={**decide, "until": t.MOMENT}),
        "desk.apply": Operation(call=desk.apply, takes=decide),
        "desk.undo": Operation(call=desk.undo, takes=decide),
        "controls.pause": Operation(
            call=controls.pause, takes={"agent": t.NAME, "by": t.TEXT, "reason": t.TEXT}
        ),
        "controls.resume": Operation(call=controls.resume, takes={"agent": t.NAME, "by": t.TEXT}),
        "controls.run": Operation(call=controls.run, takes={"agent": t.NAME, "trigger": t.NAME}),
        "controls.why": Operation(call=controls.why, takes={"agent": t.NAME}),
        # These read and write files of the daemon's user, at places that the asker names.
        "controls.reload": Operation(call=reload, takes={}, trusted_only=True),
        "controls.backup": Operation(call=controls.backup, takes={"to": t.PATH_OR_NONE}, trusted_only=True),
        # Whoever makes the log talkative sees more of what others decide, and fills the disk.
        "logs.ask": Operation(
            call=logs.ask, takes={"levels": t.JSON, "by": t.TEXT, "seconds": t.LIMIT}, trusted_only=True
        ),
        "logs.forget": Operation(call=logs.forget, takes={"by": t.TEXT, "parts": t.NAMES}, trusted_only=True),
        "logs.show": Operation(call=logs.show, takes={}),
        "once": Operation(call=_Once(runtime, scheduler).run, takes={"agents": t.NAMES}, tells=True),
        "status": Operation(call=status, takes={}),
    }


class _Once:
    """Runs agents once, as `askfirst --once` does without a daemon."""

    def __init__(self, runtime: Runtime, scheduler: AgentScheduler) -> None:
        self._runtime = runtime
        self._scheduler = scheduler

    async def run(self, tell: Tell, agents: Sequence[str] = ()) -> tuple[str, ...]:
        """Tell which model is used, then each result as its run ends; returns the agents in their order.

        Raises:
            AgentNotFound: one of them is none; the others were run.
            DaemonError: a run could not be recorded.
        """
        await tell(model_of(self._runtime.selection))
        names = tuple(dict.fromkeys(agents)) or self._runtime.agent_names
        runs = [asyncio.create_task(self._scheduler.run_once(name), name=f"once {name}") for name in names]
        try:
            for each in asyncio.as_completed(runs):
                await self._tell_results(tell, each)
        finally:
            for run in runs:
                run.cancel()
            ended = await asyncio.gather(*runs, return_exceptions=True)
        for error in ended:
            if isinstance(error, Exception):
                raise error
        return names

    @staticmethod
    async def _tell_results(tell: Tell, run: Awaitable[list[RunResult]]) -> None:
        try:
            results = await run
        except Exception:  # noqa: BLE001 - raised when the others have ended
            return
        for result in results:
            await tell(result)


def _number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST


def _name(value: Any) -> bool:
    """A text that can be looked for in the database."""
    if not isinstance(value, str) or isinstance(value, Enum):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _json(value: Any, depth: int = 0) -> bool:
    """Whether it is what JSON itself has, and not nested so deep that looking at it fails."""
    if depth > _DEEPEST:
        return False
    match value:
        case None | bool() | int() | float() | str():
            return not isinstance(value, Enum)
        case list():
            return all(_json(inner, depth + 1) for inner in value)
        case dict():
            return all(isinstance(key, str) and _json(inner, depth + 1) for key, inner in value.items())
    return False


def _each(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    def fits(value: Any) -> bool:
        return isinstance(value, Iterable) and not isinstance(value, str | Mapping) and all(map(check, value))

    return fits


def _status(value: Any) -> bool:
    return isinstance(value, ProposalStatus)


def _or_none(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or check(value)


_CHECKS: Mapping[Takes, Callable[[Any], bool]] = MappingProxyType(
    {
        Takes.NUMBER: _number,
        Takes.LIMIT: _or_none(_number),
        Takes.SWITCH: lambda value: isinstance(value, bool),
        Takes.TEXT: lambda value: isinstance(value, str) and not isinstance(value, Enum),
        Takes.TEXT_OR_NONE: _or_none(lambda value: isinstance(value, str)),
        Takes.NAME: _name,
        Takes.NAME_OR_NONE: _or_none(_name),
        Takes.NAMES: _each(_name),
        Takes.MOMENT: lambda value: isinstance(value, datetime) and value.tzinfo is not None,
        Takes.FATE_OR_NONE: _or_none(lambda value: isinstance(value, Fate)),
        Takes.STATUSES: lambda value: value is None or _status(value) or _each(_status)(value),
        Takes.JSON: lambda value: isinstance(value, dict) and _json(value),
        Takes.PATH_OR_NONE: lambda value: value is None or (isinstance(value, Path) and value.is_absolute()),
    }
)


def stopping() -> DaemonError:
    """What is said to who asks for something while the daemon stops."""
    return DaemonError("the daemon is stopping and takes no more commands; try again when it runs")
