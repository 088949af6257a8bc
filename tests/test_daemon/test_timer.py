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
