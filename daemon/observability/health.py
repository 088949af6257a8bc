"""Health is the sum of the pings of what is open: small named coroutines, each with a time limit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

PING_LIMIT_S = 2.0
"""A ping that takes longer has failed."""

REMEMBERED_S = 60.0
"""How long the answer of a slow, informative ping is shown before it is asked again."""

PingFunction = Callable[[], Awaitable[str]]
"""Returns a short fact for people, or raises what is wrong."""


@dataclass(frozen=True, slots=True)
class Ping:
    """One thing that can be asked whether it works.

    Attributes:
        name: what is asked.
        ask: the question.
        required: whether the program is unready without it.
    """

    name: str
    ask: PingFunction
    required: bool = True


@dataclass(frozen=True, slots=True)
class Answer:
    """What one ping said.

    Attributes:
        name: the ping's name.
        ok: whether it works; None when that is not known yet.
        detail: a fact, or what is wrong.
        required: whether the program is unready without it.
    """

    name: str
    ok: bool | None
    detail: str
    required: bool

    def as_json(self) -> dict[str, Any]:
        """The answer as plain data."""
        return {"ok": self.ok, "detail": self.detail, "required": self.required}


class Health:
    """The pings of the open resources.

    Args:
        pings: what to ask; required ones are asked each time, the others in the background.
        limit: seconds that one ping may take.
    """

    def __init__(self, pings: Sequence[Ping] = (), *, limit: float = PING_LIMIT_S) -> None:
        self._limit = limit
        self._required = [ping for ping in pings if ping.required]
        self._others = [_Remembered(ping, limit) for ping in pings if not ping.required]

    async def check(self) -> tuple[bool, tuple[Answer, ...]]:
        """Whether everything required works, and every answer. Never raises, takes one limit at most."""
        known = tuple(other.latest() for other in self._others)
        asked = await asyncio.gather(*(ask(ping, self._limit) for ping in self._required))
        return all(answer.ok for answer in asked), (*asked, *known)

    async def aclose(self) -> None:
        """End what is still being asked in the background."""
        await asyncio.gather(*(other.aclose() for other in self._others))


async def ask(ping: Ping, limit: float = PING_LIMIT_S) -> Answer:
    """The answer of one ping within `limit` seconds; never raises."""
    try:
        async with asyncio.timeout(limit):
            return Answer(ping.name, ok=True, detail=await ping.ask(), required=ping.required)
    except TimeoutError:
        detail = f"no answer within {limit:g} s"
    except Exception as error:  # noqa: BLE001 - whatever is wrong with it is its answer
        detail = str(error) or type(error).__name__
    return Answer(ping.name, ok=False, detail=detail, required=ping.required)


class _Remembered:
    """An informative ping that nobody waits for: the last answer is given, a new one fetched beside it."""

    def __init__(self, ping: Ping, limit: float) -> None:
        self._ping = ping
        self._limit = limit
        self._answer = Answer(ping.name, ok=None, detail="not asked yet", required=False)
        self._asked_at: float | None = None
        self._task: asyncio.Task[None] | None = None

    def latest(self) -> Answer:
        due = self._asked_at is None or time.monotonic() - self._asked_at > REMEMBERED_S
        if due and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._fetch(), name=f"ping {self._ping.name}")
        return self._answer

    async def _fetch(self) -> None:
        self._asked_at = time.monotonic()
        self._answer = await ask(self._ping, self._limit)

    async def aclose(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
