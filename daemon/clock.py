"""When an interval is due, and whether the clock was set or the machine slept. Pure."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

# macOS has no BOOTTIME; there CLOCK_MONOTONIC goes on during sleep, which time.monotonic() does not.
_REAL = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

STEP_TOLERANCE_S = 1.0
"""Differences below this are the usual slewing by NTP."""

LONGEST_SPREAD = timedelta(seconds=60)
"""However many agents there are, the last one starts within this time."""


def first_due(now: datetime, every: timedelta, last: datetime | None, spread: timedelta) -> datetime:
    """When an agent is due after a start of the program.

    Args:
        now: the time of day.
        every: the agent's interval.
        last: when its last recorded run began; None when there was none.
        spread: how long after the start an overdue one waits, so that not all run at once.
    """
    if last is None:
        return now + spread
    # A last run in the future was recorded by a wrong clock; no agent waits longer than its interval.
    return min(max(last + every, now + spread), now + max(every, spread))


def spread_of(name: str, every: timedelta, agents: int) -> timedelta:
    """How long after a start `name` waits: always the same share of a second per agent, a minute at most."""
    window = min(every, timedelta(seconds=agents), LONGEST_SPREAD)
    share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) / 2**32
    return window * share


@dataclass(frozen=True, slots=True)
class ClockChange:
    """What happened to time since the last look.

    Attributes:
        step: by how much the wall clock was set, negative when it was set back.
        slept: how long the machine slept.
    """

    step: timedelta
    slept: timedelta


def real_seconds() -> float:
    """Seconds of real time since some moment; goes on while the machine sleeps, and nobody can set it."""
    return time.clock_gettime(_REAL)


class ClockWatch:
    """Compares the clocks at each look.

    Args:
        wall: the time of day in seconds, which anybody may set.
        real: seconds that go on during sleep.
        awake: seconds that stand still during sleep, as the event loop's timers do.
    """

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        real: Callable[[], float] = real_seconds,
        awake: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clocks = (wall, real, awake)
        self._last = self._read()

    def look(self) -> ClockChange | None:
        """What changed since the last look, None when time simply passed."""
        last, self._last = self._last, self._read()
        wall, real, awake = (new - old for new, old in zip(self._last, last, strict=True))
        if max(abs(wall - real), abs(real - awake)) < STEP_TOLERANCE_S:
            return None
        return ClockChange(step=timedelta(seconds=wall - real), slept=timedelta(seconds=real - awake))

    def _read(self) -> tuple[float, ...]:
        return tuple(clock() for clock in self._clocks)
