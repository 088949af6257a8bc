"""LoopLag: how long the event loop kept others waiting, as far as somebody looked. Wakes nobody itself."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

REMEMBERED_S = 60.0
"""So long the largest lag is told: longer than the time between two scrapes, as a rule."""


class LoopLag:
    """Remembers the largest lag of the last minute; told from any thread.

    Args:
        clock: seconds that nobody can set.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        # Of two lags the earlier one is kept only while it is larger: the first is always the largest.
        self._seen: deque[tuple[float, float]] = deque()

    def note(self, seconds: float) -> None:
        """Something ran on the loop so many seconds after it could have."""
        now = self._clock()
        with self._lock:
            while self._seen and self._seen[-1][1] <= seconds:
                self._seen.pop()
            self._seen.append((now, seconds))
            self._forget(now)

    @property
    def largest(self) -> float:
        """The largest lag of the last minute in seconds, 0 if nobody looked."""
        with self._lock:
            self._forget(self._clock())
            return self._seen[0][1] if self._seen else 0.0

    def _forget(self, now: float) -> None:
        while self._seen and now - self._seen[0][0] > REMEMBERED_S:
            self._seen.popleft()
