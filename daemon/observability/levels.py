"""LogLevels: from which level on each part logs, by the configuration and by what was asked for meanwhile."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from agents.plugins import PREFIX
from daemon.errors import DaemonError
from daemon.parts import LEVELS, OURS, QUIET

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Asked:
    """A level that was asked for while the program runs.

    Attributes:
        level: the level's name.
        timer: ends it; None when it holds until it is taken back.
    """

    level: str
    timer: asyncio.TimerHandle | None = None


class LogLevels:
    """Sets the levels of loggers; what was asked for wins over the configuration, part by part.

    Ours log at the general level. Libraries that are known to talk, and none of them is told to, log at
    WARNING at least; all others at INFO at least, since nobody knows what they show at DEBUG.

    Args:
        level: the general level.
        levels: the configuration's levels of single parts, checked already.
    """

    def __init__(self, level: str, levels: Mapping[str, str] | None = None) -> None:
        self._level = level
        self._configured = dict(levels or {})
        self._asked: dict[str, _Asked] = {}
        self._before: dict[str, int] = {}
        self._root_before = logging.getLogger().level
        self._apply()

    def follow(self, level: str, levels: Mapping[str, str] | None = None) -> None:
        """Go by another configuration; None leaves its levels of parts. What was asked for stays in force."""
        self._level = level
        if levels is not None:
            self._configured = dict(levels)
        self._apply()

    def ask(self, levels: Mapping[str, str], seconds: float | None = None) -> None:
        """Let parts log at other levels, for so long or until they are forgotten.

        Call it on the event loop if there are `seconds`.

        Args:
            levels: names of levels by the names of parts, checked already.
            seconds: how long; None until `forget` or the end of the program.
        """
        for part, level in levels.items():
            self._drop(part)
            timer = None
            if seconds is not None:
                timer = asyncio.get_running_loop().call_later(seconds, self._time_is_over, part)
            self._asked[part] = _Asked(level, timer)
        self._apply()

    def forget(self, parts: Iterable[str] = ()) -> tuple[str, ...]:
        """Go back to the configuration, with these parts or with all; returns those that were changed."""
        found = tuple(part for part in (tuple(parts) or tuple(self._asked)) if part in self._asked)
        for part in found:
            self._drop(part)
        self._apply()
        return found

    def as_data(self) -> dict[str, Any]:
        """What holds, as plain data: the general level, and each part with its own.

        `from` is "configuration" or "command", `seconds_left` None when nothing ends it.
        """
        parts: list[dict[str, Any]] = []
        for part in sorted({*self._configured, *self._asked}):
            asked = self._asked.get(part)
            origin, level = ("configuration", self._configured.get(part, ""))
            left: float | None = None
            if asked is not None:
                origin, level = "command", asked.level
                left = None if asked.timer is None else _seconds_until(asked.timer)
            parts.append({"part": part, "level": level, "from": origin, "seconds_left": left})
        return {"level": self._level, "parts": parts}

    def restore(self) -> None:
        """Give all loggers back the levels that they had before."""
        for part in tuple(self._asked):
            self._drop(part)
        for name, level in self._before.items():
            logging.getLogger(name).setLevel(level)
        self._before.clear()
        logging.getLogger().setLevel(self._root_before)

    def _drop(self, part: str) -> None:
        asked = self._asked.pop(part, None)
        if asked is not None and asked.timer is not None:
            asked.timer.cancel()

    def _time_is_over(self, part: str) -> None:
        self.forget([part])
        _log.info("a log level is as the configuration has it again", extra={"part": part})

    def _apply(self) -> None:
        general = LEVELS[self._level]
        wanted = dict.fromkeys((*OURS, PREFIX), general)
        wanted.update(dict.fromkeys(QUIET, max(general, logging.WARNING)))
        own = {**self._configured, **{part: asked.level for part, asked in self._asked.items()}}
        for part, level in own.items():
            wanted[part] = LEVELS[level]
            if part == "agents" or part.startswith("agents."):  # a plugin's module, and what it logs itself
                wanted[f"{PREFIX}{part.removeprefix('agents')}"] = LEVELS[level]
        logging.getLogger().setLevel(max(general, logging.INFO))
        for name in self._before.keys() - wanted.keys():
            logging.getLogger(name).setLevel(self._before.pop(name))
        for name, number in wanted.items():
            logger = logging.getLogger(name)
            self._before.setdefault(name, logger.level)
            logger.setLevel(number)


def installed_levels() -> LogLevels:
    """The levels of this process's log.

    Raises:
        DaemonError: it has none of ours.
    """
    for handler in logging.getLogger().handlers:
        levels = getattr(handler, "levels", None)
        if isinstance(levels, LogLevels):
            return levels
    msg = "this program was put together with a log of its own; its levels cannot be changed here"
    raise DaemonError(msg)


def _seconds_until(timer: asyncio.TimerHandle) -> float:
    left = timer.when() - asyncio.get_running_loop().time()
    return float(math.ceil(max(left, 0.0)))
