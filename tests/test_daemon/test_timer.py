"""The timer: no moment is lost, not even one that comes while it is looked at what is due."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

from daemon.timer import Timer
from tests.support.waiting import seen


async def test_a_moment_that_comes_while_the_timer_looks_is_not_lost() -> None:
    timer, looks = Timer(), []

    def look() -> None:
        looks.append(len(looks))
        if len(looks) < 4:
            timer.at(datetime.now(UTC) + timedelta(milliseconds=2))
            until = time.perf_counter() + 0.01
            while time.perf_counter() < until:  # another program has the processor until then
                pass

    timer.start(look)
    try:
        timer.at(datetime.now(UTC) + timedelta(milliseconds=20))
        await seen(lambda: len(looks) >= 4, limit=5)
    finally:
        await timer.aclose()


async def test_how_late_the_loop_wakes_up_is_told() -> None:
    told: list[float] = []
    timer = Timer(told.append)
    timer.start(lambda: None)
    try:
        timer.at(datetime.now(UTC) + timedelta(milliseconds=20))
        until = time.perf_counter() + 0.15
        while time.perf_counter() < until:  # the loop is kept beyond that moment
            pass
        await seen(lambda: bool(told), limit=5)
    finally:
        await timer.aclose()
    assert 0.1 < told[0] < 5
    assert min(told) >= 0
