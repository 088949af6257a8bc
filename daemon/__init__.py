"""The daemon: runs agents on a schedule, keeps their proposals, and applies what a person approved.

    from daemon import AgentScheduler

    results = await AgentScheduler().run_once()

`AgentScheduler` is imported on first use, so that `askfirst --help` costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from daemon.scheduler import AgentScheduler

__all__ = ["AgentScheduler"]

# Hidden from type checkers: a module __getattr__ would turn every typo into a valid name for them.
if not TYPE_CHECKING:

    def __getattr__(name):
        if name != "AgentScheduler":
            message = f"module 'daemon' has no attribute {name!r}"
            raise AttributeError(message)
        from daemon.scheduler import AgentScheduler  # noqa: PLC0415 - `import daemon` stays light

        return AgentScheduler

    def __dir__():
        return sorted(__all__)
