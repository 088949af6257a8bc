"""DeadMan: tells a service elsewhere that all is well, so that it raises the alarm when nobody tells it.

The service works like Healthchecks (healthchecks.io/docs/http_api): a request to the address of a check says
"done", to ADDRESS/start "begun", to ADDRESS/fail "failed". What is told is names and run ids; what a run
found, or why it failed, stays on this machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from daemon.events import (
    AgentState,
    AgentStateChanged,
    Event,
    RunBegun,
    RunFinished,
    RunOutcome,
)
from daemon.outside import Outside, host_of

_log = logging.getLogger(__name__)

PAUSES_S = (1.0, 5.0)
"""How long is waited before the second and the third attempt; then the message is given up."""

MOST_WAITING = 100
"""Messages beyond this are dropped: the service raises its alarm then, and so it should."""

CLOSE_LIMIT_S = 2.0
"""How long the end of the program waits for what is still to be told."""

_NAMESPACE = uuid.UUID(
    "0f1d2c5a-8a52-4f0e-9a39-6f6f6b1c7d11"
)  # makes a UUID, which the service wants, of a run's id


@dataclass(frozen=True, slots=True)
class _Message:
    address: str
    suffix: str
    text: str
    run: str = ""


class DeadMan:
    """Tells addresses what works and what does not; never disturbs anything if they do not answer.

    Args:
        program: the address that is told at each `every` that the program works, None for nobody.
        every: seconds between two of these.
        healthy: whether the program works now.
        agents: the address of each agent that has one.
        pauses: seconds before each further attempt.
    """

    def __init__(
        self,
        program: str | None,
        every: float,
        healthy: Callable[[], Awaitable[bool]],
        agents: Mapping[str, str],
        *,
        pauses: tuple[float, ...] = PAUSES_S,
    ) -> None:
        self._program = program
        self._every = every
        self._healthy = healthy
        self._agents = dict(agents)
        self._pauses = pauses
        self._waiting: asyncio.Queue[_Message] = asyncio.Queue(MOST_WAITING)
        self._tasks: list[asyncio.Task[None]] = []
        self._silent: set[str] = set()
        self._outside = Outside()

    def set_agents(self, agents: Mapping[str, str]) -> None:
        """From now on these agents have these addresses."""
        self._agents = dict(agents)

    def start(self) -> None:
        """Begin to tell."""
        self._tasks.append(asyncio.create_task(self._send_all(), name="dead-man messages"))
        if self._program is not None:
            self._tasks.append(asyncio.create_task(self._beat(self._program), name="dead-man beat"))

    async def aclose(self) -> None:
        """Tell what still waits, for a moment, and end."""
        if self._tasks:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_LIMIT_S):
                    await self._waiting.join()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._outside.aclose()

    def note(self, event: Event) -> None:
        """Tell an agent's address about its run: a subscriber of the event bus."""
        match event:
            case RunBegun():
                self._tell_of(event.agent, "/start", "begun", event.run_id)
            case RunFinished(result=result):
                fine = result.outcome is RunOutcome.SUCCEEDED
                self._tell_of(result.agent, "" if fine else "/fail", result.outcome.value, result.run_id)
            case AgentStateChanged(status=status) if status.state is AgentState.QUARANTINED:
                self._tell_of(status.agent, "/fail", "quarantined: look at askfirst agents why")
            case _:
                pass

    def _tell_of(self, agent: str, suffix: str, text: str, run: str = "") -> None:
        address = self._agents.get(agent)
        if address is not None:
            self._tell(_Message(address, suffix, f"{agent}: {text}", run))

    def _tell(self, message: _Message) -> None:
        if self._waiting.full():
            self._waiting.get_nowait()
            self._waiting.task_done()
        self._waiting.put_nowait(message)

    async def _beat(self, address: str) -> None:
        while True:
            if await self._healthy():
                self._tell(_Message(address, "", "askfirst works"))
            await asyncio.sleep(self._every)

    async def _send_all(self) -> None:
        while True:
            message = await self._waiting.get()
            try:
                await self._send(message)
            finally:
                self._waiting.task_done()

    async def _send(self, message: _Message) -> None:
        failure = ""
        for pause in (0.0, *self._pauses):
            await asyncio.sleep(pause)
            failure = await self._attempt(message)
            if not failure:
                break
        host = host_of(message.address)
        if failure and host not in self._silent:
            self._silent.add(host)
            _log.warning("%s cannot be told that all is well: %s; told again when it can", host, failure)
        elif not failure and host in self._silent:
            self._silent.discard(host)
            _log.info("%s is told again that all is well", host)

    async def _attempt(self, message: _Message) -> str:
        """What went wrong, empty if nothing did."""
        address = f"{message.address.rstrip('/')}{message.suffix}"
        query = {"rid": str(uuid.uuid5(_NAMESPACE, message.run))} if message.run else None
        return await self._outside.send("POST", address, message.text.encode(), query=query)
