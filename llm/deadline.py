"""How long the call under way still has: set round every call, found by whatever waits inside it."""

from __future__ import annotations

import asyncio
import math
from contextvars import ContextVar
from typing import Protocol


class Deadline(Protocol):
    """The end of a call's total time; `asyncio.Timeout` is one."""

    def expired(self) -> bool:
        """Whether it was this that cut the call short, and not its caller."""

    def when(self) -> float | None:
        """The moment by the loop's clock, None for no end."""


deadline: ContextVar[Deadline | None] = ContextVar("llm_deadline", default=None)
"""That of the call under way."""


def was_late() -> bool:
    """Whether the call under way was cut short by its deadline."""
    found = deadline.get()
    return found is not None and found.expired()


def seconds_left() -> float:
    """Seconds that the call under way still has, infinite outside one; must be called inside a loop."""
    found = deadline.get()
    end = None if found is None else found.when()
    return math.inf if end is None else end - asyncio.get_running_loop().time()
