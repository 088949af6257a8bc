"""Crew: places by rank and by backend, runs by hand beside them, none left at the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from daemon.crew import Crew
from tests.support.waiting import seen

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)


class Work:
    """Runs that last until a test ends them, and the order in which they began."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.running: set[str] = set()
        self._go: dict[str, asyncio.Event] = {}

    def of(self, name: str) -> Callable[[], Coroutine[Any, Any, str]]:
        async def work() -> str:
            self.order.append(name)
            self.running.add(name)
            try:
                await self._go.setdefault(name, asyncio.Event()).wait()
            finally:
                self.running.discard(name)
            return name

        return work

    def end(self, name: str) -> None:
        self._go.setdefault(name, asyncio.Event()).set()


class Shift:
    """A crew that is filled whenever a run ends, as the timing does."""

    def __init__(self, size: int, per_backend: int | None = None) -> None:
        self.crew, self.work = Crew(size, per_backend), Work()
        self.crew.on_end = lambda _: self.fill()

    def wait(self, *names: str, priority: int = 0) -> None:
        for name in names:
            self.crew.wait(name, (-priority, NOON + timedelta(seconds=len(self.crew.names()))))

    def fill(self) -> bool:
        return self.crew.fill(self.work.of, time.perf_counter() + 60)

    async def end(self, name: str) -> None:
        self.work.end(name)
        await seen(lambda: name not in self.work.running)
        await asyncio.sleep(0.01)

    async def aclose(self) -> None:
        await self.crew.finish(0)


async def test_the_lowest_rank_gets_the_next_place() -> None:
    shift = Shift(1)
    shift.wait("first", "second")
    shift.wait("urgent", priority=9)
    shift.fill()
    await seen(lambda: shift.work.order == ["urgent"])
    await shift.end("urgent")
    await shift.end("first")
    assert shift.work.order == ["urgent", "first", "second"]
    await shift.aclose()


async def test_a_full_backend_keeps_its_own_agents_waiting_and_no_others() -> None:
    shift = Shift(10, per_backend=1)
    shift.crew.backends = {"a": ("pi",), "b": ("pi",), "c": ("cloud",), "d": ("pi", "cloud"), "e": ()}
    shift.wait("a", "b", "c", "d", "e")
    shift.fill()
    await seen(lambda: set(shift.work.order) == {"a", "c", "e"})
    assert shift.crew.names() == {"a", "b", "c", "d", "e"}
    assert "daemon.max_runs_per_backend" in str(shift.crew.waits_because("b"))
    assert shift.crew.waits_because("a") is None
    await shift.end("a")
    assert shift.work.order[-1] == "b"  # d needs both of them
    await shift.end("c")
    assert "d" not in shift.work.order
    await shift.end("b")
    assert shift.work.order[-1] == "d"
    await shift.aclose()


async def test_a_backend_that_an_agent_asked_before_is_free_when_its_run_has_ended() -> None:
    shift = Shift(10, per_backend=1)
    shift.crew.backends = {"a": ("pi",), "b": ("pi",), "c": ("cloud",)}
    shift.wait("a")
    shift.fill()
    await seen(lambda: shift.work.running == {"a"})
    shift.crew.backends = {"a": ("cloud",), "b": ("pi",), "c": ("cloud",)}  # another configuration
    shift.wait("b", "c")
    shift.fill()
    await seen(lambda: shift.work.running == {"a", "c"})
    await shift.end("a")
    await shift.end("c")
    shift.wait("c")
    shift.fill()
    await seen(lambda: shift.work.order == ["a", "c", "b", "c"])
    await shift.aclose()


async def test_who_waits_for_a_place_can_be_seen_and_goes_when_told_to() -> None:
    shift = Shift(1)
    shift.wait("a", "b", "c")
    shift.fill()
    assert "daemon.max_concurrent_runs" in str(shift.crew.waits_because("b"))
    shift.crew.withdraw("b")
    assert shift.crew.waits_because("b") is None
    await seen(lambda: shift.work.order == ["a"])
    await shift.end("a")
    assert shift.work.order == ["a", "c"]
    await shift.aclose()


async def test_a_new_rank_takes_the_old_ones_place_and_leaves_nothing_behind() -> None:
    shift = Shift(1)
    shift.wait("running")
    shift.fill()
    for _ in range(1000):
        shift.wait("a", "b")
    assert sum(map(len, shift.crew._queue._groups.values())) < 200
    await seen(lambda: shift.work.order == ["running"])
    await shift.end("running")
    await shift.end("a")
    assert shift.work.order == ["running", "a", "b"]
    await shift.aclose()


async def test_a_run_by_hand_does_not_wait_behind_those_on_schedule() -> None:
    shift = Shift(1)
    shift.wait("a", "b", "c")
    shift.fill()
    await seen(lambda: shift.work.order == ["a"])
    task = shift.crew.run("d", shift.work.of("d"))
    await seen(lambda: shift.work.order == ["a", "d"])
    assert shift.crew.running_since("d") is not None
    shift.work.end("d")
    assert await task == "d"
    await shift.aclose()


async def test_runs_by_hand_have_as_many_places_of_their_own() -> None:
    shift = Shift(2)
    for name in "abc":
        shift.crew.run(name, shift.work.of(name))
    await seen(lambda: shift.work.running == {"a", "b"})
    await shift.end("a")
    await seen(lambda: shift.work.running == {"b", "c"})
    await shift.aclose()


async def test_an_agent_runs_once_at_a_time_by_hand_too() -> None:
    shift = Shift(4)
    shift.wait("a")
    shift.fill()
    await seen(lambda: shift.work.order == ["a"])
    task = shift.crew.run("a", shift.work.of("a"))
    await asyncio.sleep(0.05)
    assert shift.work.order == ["a"]
    shift.work.end("a")
    assert await task == "a"
    assert shift.work.order == ["a", "a"]
    await shift.aclose()


async def test_work_that_does_not_come_to_run_leaves_its_place_to_the_next() -> None:
    shift = Shift(1)
    shift.wait("gone", "a")
    shift.crew.fill(lambda name: None if name == "gone" else shift.work.of(name), time.perf_counter() + 60)
    await seen(lambda: shift.work.order == ["a"])
    await shift.aclose()


async def test_many_are_begun_in_slices() -> None:
    shift = Shift(5000)
    shift.wait(*(f"a{n}" for n in range(3000)))
    slices = 0
    while shift.crew.fill(shift.work.of, time.perf_counter() + 0.001):
        slices += 1
        assert shift.crew.queued > 0
    assert slices >= 3
    assert shift.crew.queued == 0
    await shift.aclose()


async def test_a_slice_that_has_no_time_left_begins_one_nevertheless() -> None:
    shift = Shift(5)
    shift.wait("a", "b")
    assert shift.crew.fill(shift.work.of, 0.0)
    assert not shift.crew.fill(shift.work.of, 0.0)
    await seen(lambda: shift.work.running == {"a", "b"})
    await shift.aclose()


@pytest.mark.parametrize("by_hand", [True, False])
async def test_nothing_begins_after_the_end(by_hand: bool) -> None:
    shift = Shift(1)
    await shift.aclose()
    shift.wait("a")
    shift.fill()
    if by_hand:
        task = shift.crew.run("a", shift.work.of("a"))
        with pytest.raises(asyncio.CancelledError):
            await task
    await asyncio.sleep(0.01)
    assert shift.work.order == []


async def test_whoever_has_no_place_or_turn_yet_is_counted() -> None:
    shift = Shift(1)
    shift.wait("a", "b", "c")
    shift.fill()
    by_hand = [shift.crew.run("a", shift.work.of("a")), shift.crew.run("d", shift.work.of("d"))]
    await seen(lambda: shift.work.running == {"a", "d"})
    assert shift.crew.waiting == 3  # b and c on schedule, a by hand after its own run
    for task in by_hand:
        task.cancel()
    await shift.aclose()
    await asyncio.wait(by_hand)
    assert shift.crew.waiting == 2
