"""What may be spent, as values: "100000 tokens/day, 2 usd/month, agent matchmaker: 600 seconds/hour".

A budget counts tokens (in and out together), US dollars or seconds of a model's work, for everything, for one
agent or for one backend, and begins anew with each hour, day or month of the calendar, in the time zone of
the machine: a person who looks at the clock knows when. A day of 23 or 25 hours is one day.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from types import MappingProxyType
from typing import Literal, cast

from llm.errors import ConfigurationError

Unit = Literal["tokens", "usd", "seconds"]
Window = Literal["hour", "day", "month"]
Scope = Literal["total", "agent", "backend"]

FORMS = (
    'budgets such as "100000 tokens/day, 2 usd/month, 600 seconds/hour, agent matchmaker: 20000 tokens/day"'
)
"""What `parse_budgets` reads, for messages."""

_UNITS: Mapping[str, Unit] = MappingProxyType(
    {"token": "tokens", "tokens": "tokens", "usd": "usd", "second": "seconds", "seconds": "seconds"}
)
_BUDGET = re.compile(
    r"(?:(?P<scope>agent|backend)\s+(?P<name>[\w.-]{1,64})\s*:\s*)?"
    r"(?P<amount>[0-9][0-9_]{0,17}(?:\.[0-9]{1,6})?)\s*(?P<unit>[a-z]+)\s*/\s*(?P<window>hour|day|month)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The most that may be spent in one window of time.

    Attributes:
        limit: how much, in `unit`; above 0.
        unit: "tokens", "usd" or "seconds".
        window: "hour", "day" or "month" of the local calendar.
        scope: "total", or the one "agent" or "backend" that is called `name`.
        name: empty for the total.
    """

    limit: Decimal
    unit: Unit
    window: Window
    scope: Scope = "total"
    name: str = ""

    def __str__(self) -> str:
        whom = f"{self.scope} {self.name}: " if self.name else ""
        return f"{whom}{self.limit:f} {self.unit}/{self.window}"

    @property
    def setting(self) -> str:
        """Where it is written, for messages."""
        match self.scope:
            case "agent":
                return f"llm.budgets.agents.{self.name}"
            case "backend":
                return f"the budget of the backend {self.name}"
        return "LLM_BUDGET (llm.budget)"

    def covers(self, *, agent: str, backend: str) -> bool:
        """Whether a call of `agent` to `backend` is paid from it."""
        match self.scope:
            case "agent":
                return self.name == agent
            case "backend":
                return self.name == backend
        return True


def parse_budgets(text: str, *, backend: str = "") -> tuple[Budget, ...]:
    """Read budgets, separated by commas.

    Args:
        text: each one an amount, a unit and a window, before them perhaps "agent NAME:" or "backend NAME:".
        backend: whose own setting it is: what names nobody then holds for that backend. Empty: in total.

    Raises:
        ConfigurationError: it cannot be read; the message repeats the part that is wrong.
    """
    parts = [part.strip() for part in text.split(",")]
    found = [_parse(part) for part in parts if part]
    if not found:
        msg = f"LLM_BUDGET (budget) must be {FORMS}, not {text!r}"
        raise ConfigurationError(msg)
    if backend:
        found = [replace(b, scope="backend", name=backend) if b.scope == "total" else b for b in found]
    return tuple(dict.fromkeys(found))


def _parse(part: str) -> Budget:
    match = _BUDGET.fullmatch(part)
    unit = _UNITS.get(match["unit"].lower()) if match else None
    limit = Decimal(match["amount"].replace("_", "")) if match else Decimal(0)
    if match is None or unit is None or limit <= 0:
        msg = f"LLM_BUDGET (budget) must be {FORMS}; {part!r} is none"
        raise ConfigurationError(msg)
    return Budget(
        limit=limit.normalize() if limit != limit.to_integral_value() else limit.to_integral_value(),
        unit=unit,
        window=cast("Window", match["window"].lower()),
        scope=cast("Scope", (match["scope"] or "total").lower()),
        name=match["name"] or "",
    )


def window_around(now: float, window: Window) -> tuple[float, float]:
    """When the hour, day or month that holds `now` began and when the next one begins, in seconds since 1970.

    By the machine's own time zone and its rules: clocks that are put forward or back make a day shorter or
    longer, and an hour is always 60 minutes.
    """
    local = datetime.fromtimestamp(now).astimezone()
    if window == "hour":
        start = local.replace(minute=0, second=0, microsecond=0).timestamp()
        return start, start + 3600.0
    midnight = datetime(local.year, local.month, 1 if window == "month" else local.day)  # noqa: DTZ001 - local on purpose
    following = midnight + timedelta(days=1 if window == "day" else 31)
    if window == "month":
        following = following.replace(day=1)
    return _first_second(midnight), _first_second(following)


def _first_second(midnight: datetime) -> float:
    """When that local day begins; where clocks are put forward at midnight, at the first hour that exists."""
    found = midnight.timestamp()
    began = datetime.fromtimestamp(found)  # noqa: DTZ006 - local on purpose
    return found if began >= midnight else found + (midnight - began).total_seconds()
