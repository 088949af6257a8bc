"""Schedulers that call coroutine functions when they are due: ours, and what ours is compared with.

    python -m tests.benchmarks.schedulers CONTENDER MODE AGENTS SECONDS

    rate    AGENTS with staggered due times, together 50 a second: how late, and how much CPU for each
    herd    AGENTS all due at the same moment: when the last one starts, and how long the loop works at one go
    idle    AGENTS of which none is due: CPU, and how often the process wakes up

Each contender runs in a process of its own and prints one JSON object.
"""

from __future__ import annotations

import asyncio
import gc
import heapq
import json
import resource
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

RATE = 50
HOUR = 3600.0
SETTLE_S = 1.0

Fire = Callable[[int], Awaitable[None]]


class Contender(Protocol):
    """A scheduler."""

    def add(self, number: int, interval: float, first: float) -> None: ...
    def start(self) -> None: ...


class BareHeap:
    """The floor: one heap of due times, one timer of the loop, one task for each call, and nothing else."""

    def __init__(self, fire: Fire, _agents: int) -> None:
        self._fire = fire
        self._heap: list[tuple[float, int, float]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, number: int, interval: float, first: float) -> None:
        heapq.heappush(self._heap, (first, number, interval))

    def start(self) -> None:
        asyncio.get_running_loop().call_later(max(0.0, self._heap[0][0] - time.time()), self._look)

    def _look(self) -> None:
        now = time.time()
        while self._heap[0][0] <= now:
            due, number, interval = self._heap[0]
            task = asyncio.ensure_future(self._fire(number))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            heapq.heapreplace(self._heap, (due + interval, number, interval))
        self.start()


class BareAPScheduler:
    """APScheduler 3.11 as it is set up best: in memory, nothing dropped for being late, nothing doubled."""

    def __init__(self, fire: Fire, _agents: int) -> None:
        from apscheduler.schedulers.asyncio import AsyncIOScheduler

        self._fire = fire
        options = {"misfire_grace_time": None, "coalesce": True, "max_instances": 1}
        self._scheduler = AsyncIOScheduler(timezone=UTC, job_defaults=options)

    def add(self, number: int, interval: float, first: float) -> None:
        from apscheduler.triggers.interval import IntervalTrigger

        start = datetime.fromtimestamp(first, UTC)
        trigger = IntervalTrigger(seconds=interval, start_date=start, timezone=UTC)
        self._scheduler.add_job(self._fire, trigger, args=(number,), id=str(number))

    def start(self) -> None:
        self._scheduler.start()


class Askfirst:
    """Our agenda, crew and timer, as the daemon puts them together, without agents and database."""

    def __init__(self, fire: Fire, agents: int) -> None:
        from daemon.crew import Crew
        from daemon.timer import Timer
        from daemon.timing import Timing

        async def call(turn: Any) -> None:
            await fire(int(turn.agent))

        self._timer = Timer()
        self._timing = Timing(call, self._timer, Crew(agents))

    def add(self, number: int, interval: float, first: float) -> None:
        from agents.schedule import Every, Schedule

        every = timedelta(seconds=interval)
        spread = timedelta(seconds=first - time.time())  # as after a start: none has run before
        self._timing.add(str(number), Schedule(timed=(Every(every),)), spread=spread)

    def start(self) -> None:
        self._timer.start(self._timing.look)
        self._timing.start()


CONTENDERS: dict[str, Callable[[Fire, int], Contender]] = {
    "bare heap": BareHeap,
    "APScheduler": BareAPScheduler,
    "Askfirst": Askfirst,
}


def percentile(values: list[float], share: float) -> float:
    """The value below which that share of them lies."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


async def measure(name: str, mode: str, agents: int, seconds: float) -> dict[str, float]:
    """Set everything up, wait until it has settled, and measure."""
    late: list[float] = []
    firsts: list[float] = []
    interval = agents / RATE if mode == "rate" else HOUR

    async def fire(number: int) -> None:
        since = time.time() - firsts[number]
        late.append(since - round((since - interval / 4) / interval) * interval)

    contender = CONTENDERS[name](fire, agents)
    begin = time.time() + 1 + agents * 0.0005  # adding 10,000 takes its time
    for number in range(agents):
        first = {"rate": number / RATE, "herd": 0.0}.get(mode, HOUR / 2)
        firsts.append(begin + first)
        contender.add(number, interval, begin + first)
    contender.start()
    gc.collect()
    if mode == "herd":
        return await _herd(late, begin, agents, seconds)
    await asyncio.sleep(max(0.0, begin - time.time()) + SETTLE_S)
    late.clear()
    before, woken = time.process_time(), _wake_ups()
    await asyncio.sleep(seconds)
    cpu, woken = time.process_time() - before, _wake_ups() - woken
    if mode == "idle":
        return {"cpu_percent": 100 * cpu / seconds, "wake_ups": max(woken - 1, 0) / seconds}  # one is ours
    assert len(late) > RATE * seconds / 2, f"{len(late)} fires only"
    return {
        "p50_ms": 1e3 * percentile(late, 0.5),
        "p99_ms": 1e3 * percentile(late, 0.99),
        "cpu_us": 1e6 * cpu / len(late),
    }


async def _herd(late: list[float], begin: float, agents: int, seconds: float) -> dict[str, float]:
    await asyncio.sleep(max(0.0, begin - time.time() - 0.2))
    longest, end = 0.0, time.monotonic() + seconds + 1
    while len(late) < agents and time.monotonic() < end:
        # The thread's own CPU time: what other programs took in between is not the scheduler's doing.
        before = time.thread_time()
        await asyncio.sleep(0)
        longest = max(longest, time.thread_time() - before)
    assert len(late) == agents, f"{len(late)} fires only"
    return {"stall_ms": 1e3 * longest, "last_ms": 1e3 * max(late)}


def _wake_ups() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw


if __name__ == "__main__":
    chosen, how, number_of_agents, duration = sys.argv[1:]
    print(json.dumps(asyncio.run(measure(chosen, how, int(number_of_agents), float(duration)))), flush=True)
