"""The runs that are under way: so many at once, one of each agent, and none left when the program ends.

A run on schedule that has no place yet is an entry of a queue, not a task: a thousand of them cost nothing,
can be seen, and go when their agent is paused. Runs by hand have places of their own, so that a person never
waits behind the queue.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import time
from collections.abc import Callable, Collection, Coroutine, Iterable
from datetime import UTC, datetime
from typing import Any

from daemon.errors import DaemonError

_log = logging.getLogger(__name__)

CANCEL_LIMIT_S = 5.0
"""How long a cancelled run may take to be recorded before it is left behind."""

Run = asyncio.Task[Any]
Work = Callable[[], Coroutine[Any, Any, Any]]
Rank = tuple[int, datetime]


class Crew:
    """Runs agents as tasks.

    Args:
        size: how many run at once on schedule, and as many by hand; the others wait for their turn.
        per_backend: how many of those that ask the same backend run at once on schedule, None for no limit.

    Attributes:
        hurried: set when nobody wants to wait for them any longer.
        size: as above; may be changed.
        per_backend: as above; may be changed.
        backends: the backends that each agent asks; who is not in it asks none.
        on_end: told the agent whenever a run ends.
    """

    def __init__(self, size: int, per_backend: int | None = None) -> None:
        self.hurried = asyncio.Event()
        self.size = size
        self.per_backend = per_backend
        self.backends: dict[str, tuple[str, ...]] = {}
        self.on_end: Callable[[str], None] | None = None
        self._queue = _Queue()
        self._asked: dict[str, int] = {}
        self._places = 0
        self._by_hand: asyncio.Semaphore | None = None
        self._by_hand_size = size
        self._turns: dict[str, asyncio.Lock] = {}
        self._tasks: dict[Run, str] = {}
        self._asks: dict[Run, tuple[str, ...]] = {}
        self._since: dict[str, datetime] = {}
        self._closing = False

    @property
    def queued(self) -> int:
        """How many agents wait for a place."""
        return len(self._queue.names())

    @property
    def waiting(self) -> int:
        """How many runs wait for a place or their turn, those by hand included."""
        return self.queued + len(self._tasks) - len(self._since)

    def names(self) -> set[str]:
        """The agents that run or wait for their turn."""
        return {*self._tasks.values(), *self._queue.names()}

    def tasks(self) -> tuple[Run, ...]:
        """The runs that are under way, and those by hand that wait."""
        return tuple(self._tasks)

    def running_since(self, name: str) -> datetime | None:
        """When the agent's run that is under way began, UTC; None when none is."""
        return self._since.get(name)

    def waits_because(self, name: str) -> str | None:
        """What a queued run waits for, with the way out; None when it is not queued."""
        if name not in self._queue:
            return None
        if self._places >= self.size:
            return f"{self._places} runs are under way: it waits for its turn (daemon.max_concurrent_runs)"
        full = [each for each in self.backends.get(name, ()) if not self._room_at((each,))]
        if full:
            return f"its turn at the backend {full[0]} has not come yet (daemon.max_runs_per_backend)"
        return "it is about to begin"

    # by hand

    def run(self, name: str, work: Work) -> Run:
        """Begin a run by hand; cancelled if `finish` comes before its turn."""
        return self._task(name, self._in_turn(name, work))

    async def _in_turn(self, name: str, work: Work) -> Any:
        if self._by_hand is None or self._by_hand_size != self.size:
            self._by_hand, self._by_hand_size = asyncio.Semaphore(self.size), self.size
        async with self._turn_of(name), self._by_hand:
            if self._closing:
                raise asyncio.CancelledError
            return await self._timed(name, work)

    # on schedule

    def wait(self, name: str, rank: Rank) -> None:
        """An agent is due: it runs when `fill` finds a place for it; the lowest rank goes first."""
        self._queue.push(name, rank, self.backends.get(name, ()) if self.per_backend is not None else ())

    def withdraw(self, name: str) -> None:
        """An agent does not wait for a place any more."""
        self._queue.remove(name)

    def fill(self, begin: Callable[[str], Work | None], until: float) -> bool:
        """Give free places to those that wait; to one at least, and then until the time is over.

        Args:
            begin: told the agent whose turn it is; returns its work, or None if it does not run after all.
            until: when to stop, seconds of `time.perf_counter`.

        Returns:
            Whether there are places left for some that wait.
        """
        while not self._closing and self._places < self.size:
            name = self._queue.pop(self._room_at)
            if name is None:
                return False
            work = begin(name)
            if work is not None:
                backends = self.backends.get(name, ())  # others may be asked before the run has ended
                self._take(backends, 1)
                self._asks[self._task(name, self._on_schedule(name, work))] = backends
            if time.perf_counter() > until:
                return bool(self._queue.names())
        return False

    async def _on_schedule(self, name: str, work: Work) -> Any:
        async with self._turn_of(name):
            return await self._timed(name, work)

    def _take(self, backends: Iterable[str], places: int) -> None:
        self._places += places
        for backend in backends:
            self._asked[backend] = self._asked.get(backend, 0) + places

    def _room_at(self, backends: Iterable[str]) -> bool:
        most = self.per_backend
        return most is None or all(self._asked.get(backend, 0) < most for backend in backends)

    # tasks

    def _turn_of(self, name: str) -> asyncio.Lock:
        lock = self._turns.get(name)
        if lock is None:
            lock = self._turns[name] = asyncio.Lock()
        return lock

    async def _timed(self, name: str, work: Work) -> Any:
        self._since[name] = datetime.now(UTC)
        try:
            return await work()
        finally:
            del self._since[name]

    def _task(self, name: str, work: Coroutine[Any, Any, Any]) -> Run:
        task = asyncio.create_task(work, name=f"run of {name}")
        self._tasks[task] = name
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: Run) -> None:
        name = self._tasks.pop(task)
        backends = self._asks.pop(task, None)
        if backends is not None:
            self._take(backends, -1)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, DaemonError):
            _log.error("a run could not be recorded: %s", error, extra={"agent": name})
        elif error is not None:
            _log.error("a run broke down", extra={"agent": name}, exc_info=error)
        if self.on_end is not None:
            self.on_end(name)

    async def finish(self, grace: float) -> list[str]:
        """Let no run begin any more, and wait for those under way, then cancel them.

        Args:
            grace: seconds to wait, less when `hurried` is set.

        Returns:
            The agents whose runs go on although they were cancelled.
        """
        self._closing = True
        hurry = asyncio.create_task(self.hurried.wait())
        ended = asyncio.create_task(all_done(self._tasks))
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


class _Queue:
    """Names by rank, those with the same backends together, so that a full backend blocks no other."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, ...], list[tuple[Rank, int, str]]] = {}
        self._stamps: dict[str, int] = {}
        self._stamp = 0

    def __contains__(self, name: str) -> bool:
        return name in self._stamps

    def names(self) -> Collection[str]:
        return self._stamps.keys()

    def push(self, name: str, rank: Rank, group: tuple[str, ...]) -> None:
        self._stamp += 1
        self._stamps[name] = self._stamp
        heap = self._groups.setdefault(group, [])
        heapq.heappush(heap, (rank, self._stamp, name))
        if len(heap) > 2 * len(self._stamps) + 64:  # mostly what was removed, or has another rank
            heap[:] = [entry for entry in heap if self._stamps.get(entry[2]) == entry[1]]
            heapq.heapify(heap)

    def remove(self, name: str) -> None:
        self._stamps.pop(name, None)

    def pop(self, has_room: Callable[[tuple[str, ...]], bool]) -> str | None:
        """The first one whose group has room."""
        best: list[tuple[Rank, int, str]] | None = None
        for group, heap in tuple(self._groups.items()):
            while heap and self._stamps.get(heap[0][2]) != heap[0][1]:  # it was removed, or has another rank
                heapq.heappop(heap)
            if not heap:
                del self._groups[group]
            elif has_room(group) and (best is None or heap[0] < best[0]):
                best = heap
        if best is None:
            return None
        name = heapq.heappop(best)[2]
        del self._stamps[name]
        return name


async def all_done(tasks: Iterable[Run]) -> None:
    """Return when all of these have ended."""
    pending = set(tasks)
    if pending:
        await asyncio.wait(pending)
