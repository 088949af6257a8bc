"""Intervals: how many intervals of its schedule an agent has let pass, counted on from look to look. Pure."""

from __future__ import annotations

from datetime import datetime

from agents.schedule import Schedule


class Intervals:
    """Counts the due times of a schedule since a moment, and the part of the interval that is under way.

    For a fixed interval that is the time since then divided by it. A calendar's intervals differ: an agent
    of working days has let none pass on a Sunday. What was counted is not counted again, since a cron
    expression is followed step by step.

    Args:
        schedule: when the agent is due.
        since: where the counting begins: its last success.
    """

    def __init__(self, schedule: Schedule, since: datetime) -> None:
        self.schedule = schedule
        self.since = since
        self._counted = 0
        self._last = since
        self._next: datetime | None = None

    def passed(self, now: datetime) -> float | None:
        """How many have passed until `now`; None when the agent is not due by the clock any more."""
        if now < self._last:  # the clock was set back
            self._counted, self._last, self._next = 0, self.since, None
            if now < self.since:
                return 0.0
        if self._next is None or now >= self._next:
            dues = self.schedule.between(self._last, now)
            if dues is not None:
                self._counted, self._last = self._counted + dues.count, dues.last
            self._next = self.schedule.due_after(self._last, now)
        if self._next is None:
            return float(self._counted) if self._counted else None
        return self._counted + (now - self._last) / (self._next - self._last)
