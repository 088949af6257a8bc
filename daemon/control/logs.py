"""What can be asked of a running daemon about its log: from which level on each of its parts logs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from daemon.errors import DaemonError
from daemon.observability.levels import installed_levels
from daemon.parts import checked_levels

LONGEST_S = 7 * 24 * 3600
"""For so many seconds a level can be asked for at most, if an end is asked for at all."""

_log = logging.getLogger(__name__)


class LogControls:
    """Shows and changes the levels of this process's log; what is changed lasts until the end of it.

    Args:
        agents: gives the names of the agents there are.
    """

    def __init__(self, agents: Callable[[], Collection[str]]) -> None:
        self._agents = agents

    async def show(self) -> dict[str, Any]:
        """The general level and those of single parts; see `LogLevels.as_data`."""
        return installed_levels().as_data()

    async def ask(self, levels: Mapping[str, Any], by: str, seconds: int | None = None) -> dict[str, Any]:
        """Let parts log at other levels than the configuration says; returns what holds now.

        Raises:
            DaemonError: a part or a level is unknown or refused; nothing was changed.
        """
        if seconds is not None and not 0 < seconds <= LONGEST_S:
            msg = "a level holds for 1 second to 7 days, or without an end"
            raise DaemonError(msg)
        try:
            # In a thread: files are looked for.
            checked = await asyncio.to_thread(checked_levels, levels, agents=self._agents())
        except ValueError as error:
            raise DaemonError(str(error)) from error
        installed = installed_levels()
        installed.ask(checked, seconds)
        for part, level in checked.items():
            self._tell(part, level, by, seconds)
        return installed.as_data()

    async def forget(self, by: str, parts: Sequence[str] = ()) -> dict[str, Any]:
        """Go back to the configuration, with these parts or with all; returns what holds now."""
        installed = installed_levels()
        for part in installed.forget(parts):
            self._tell(part, "as configured", by, None)
        return installed.as_data()

    @staticmethod
    def _tell(part: str, level: str, by: str, seconds: int | None) -> None:
        values = {"part": part, "log_level": level, "by": by, "for_seconds": seconds}
        known = {name: value for name, value in values.items() if value is not None}
        _log.info("a log level was changed", extra=known)
