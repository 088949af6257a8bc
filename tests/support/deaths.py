"""A program with an agent that ends the whole program, somewhere in the middle of its run.

Run as `python -m tests.support.deaths FOLDER WHERE TRIGGER`: it recovers, then runs the agent unless that is
quarantined. WHERE is "analyze", "commit" (inside the transaction), "committed" (right after it) or "nowhere".
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

from agents.base import BaseAgent
from agents.proposal import Proposal
from daemon.events import AgentState, Event, RunFinished
from daemon.runtime import open_runtime
from tests.support.stores import START, line, settings_in

NAME = "killer"


class KillerAgent(BaseAgent):
    """Proposes the same line at each run, and may end the program before it has."""

    name = NAME
    where = "nowhere"

    async def analyze(self) -> list[Proposal]:
        if self.where == "analyze":
            die()
        return [line("one", agent=self.name, expires_at=None)]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def work(folder: Path, where: str, trigger: str) -> None:
    """Recover and run."""
    KillerAgent.where = where
    settings = settings_in(folder, killer={"isolation": "none"})
    async with open_runtime(settings, agents=[KillerAgent], with_llm=False) as runtime:
        await runtime.runner.recover([NAME])
        if (await runtime.states.get(NAME)).state is not AgentState.ACTIVE:
            return
        if where == "commit":
            runtime.states.get = _die_after(runtime.states.get)  # type: ignore[method-assign]
        if where == "committed":
            runtime.events.subscribe(_die_when_told)
        due = None if trigger == "manual" else START
        await runtime.runner.run(NAME, trigger, due=due)


def _die_after(step: Any) -> Any:
    """The last step of the transaction before its commit, and then the end."""

    async def stepped(*arguments: Any) -> None:
        await step(*arguments)
        die()

    return stepped


def _die_when_told(event: Event) -> None:
    if isinstance(event, RunFinished):
        die()


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s %(message)s")
    asyncio.run(work(Path(sys.argv[1]), sys.argv[2], sys.argv[3]))
