"""The runs that are under way: so many at once, one of each agent, and none left when the program ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

from daemon.errors import DaemonError
from daemon.events import RunResult

if TYPE_CHECKING:
    from daemon.runtime import Runtime

_log = logging.getLogger(__name__)

CANCEL_LIMIT_S = 5.0
"""How long a cancelled run may take to be recorded before it is left behind."""

Run = asyncio.Task[RunResult]


class Crew:
    """Runs agents as tasks.

    Args:
        size: how many run at once; the others wait for their turn.

    Attributes:
        hurried: set when nobody wants to wait for them any longer.
    """

    def __init__(self, size: int) -> None:
        self.hurried = asyncio.Event()
        self._slots = asyncio.Semaphore(size)
        self._turns: dict[str, asyncio.Lock] = {}
        self._tasks: dict[Run, str] = {}
        self._closing = False

    def names(self) -> set[str]:
        """The agents that run or wait for their turn."""
        return set(self._tasks.values())

    def run(self, runtime: Runtime, name: str, trigger: str) -> Run:
        """Begin a run; cancelled if `finish` comes before its turn."""
        task = asyncio.create_task(self._in_turn(runtime, name, trigger), name=f"run of {name}")
        self._tasks[task] = name
        task.add_done_callback(self._forget)
        return task

    async def _in_turn(self, runtime: Runtime, name: str, trigger: str) -> RunResult:
        async with self._turns.setdefault(name, asyncio.Lock()), self._slots:
            if self._closing:
                raise asyncio.CancelledError
            return await runtime.runner.run(name, trigger)

    def _forget(self, task: Run) -> None:
        name = self._tasks.pop(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, DaemonError):
            _log.error("a run could not be recorded: %s", error, extra={"agent": name})
        elif error is not None:
            _log.error("a run broke down", extra={"agent": name}, exc_info=error)

    async def finish(self, grace: float) -> list[str]:
        """Let no run begin any more, and wait for those under way, then cancel them.

        Args:
            grace: seconds to wait, less when `hurried` is set.

        Returns:
            The agents whose runs go on although they were cancelled.
        """
        self._closing = True
        hurry = asyncio.create_task(self.hurried.wait())
        ended = asyncio.create_task(_all_done(self._tasks))
        await asyncio.wait({hurry, ended}, timeout=grace, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        ended.cancel()
        return await self.cancel(tuple(self._tasks))

    async def cancel(self, tasks: Iterable[Run]) -> list[str]:
        """Cancel these runs and wait until they are recorded; names those that go on nevertheless."""
        still = {task: self._tasks[task] for task in tasks if not task.done()}
        for task in still:
            task.cancel()
        if still:
            await asyncio.wait(still, timeout=CANCEL_LIMIT_S)
        return sorted(name for task, name in still.items() if not task.done())


async def _all_done(tasks: Iterable[Run]) -> None:
    pending = set(tasks)
    if pending:
        await asyncio.wait(pending)
