"""A program that works as fast as it can and is killed again and again; it tells what it acknowledged.

Run as `python -m tests.support.crashes FOLDER KILLS`. The children are forked: the imports are paid once.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

# Everything that a child needs is imported before the first fork.
import aiosqlite  # noqa: F401
import sqlalchemy.ext.asyncio  # noqa: F401
import structlog  # noqa: F401

import daemon.store.engine
import daemon.store.proposals
import daemon.store.runs  # noqa: F401
from agents.proposal import Proposal
from daemon.runtime import open_runtime
from tests.support.stores import LedgerAgent, line, model_call, settings_in

ROOM = {"max_open": 1_000_000}
MOST_WORDS = 8
LONGEST = 0.03


class Busy(LedgerAgent):
    """Proposes a few new lines at each run."""

    name = "busy"
    each = 3

    async def analyze(self) -> list[Proposal]:
        self.context.calls.append(model_call(self.context.run_id))
        names = (f"{self.context.run_id}-{number}" for number in range(self.each))
        return [line(name, agent=self.name, expires_at=None) for name in names]


@dataclass
class Story:
    """What was acknowledged."""

    killed: int = 0
    recovered: int = 0
    runs: dict[str, list[int]] = field(default_factory=dict)
    applied: list[int] = field(default_factory=list)
    undone: list[int] = field(default_factory=list)
    rejected: list[int] = field(default_factory=list)


async def work(folder: Path, tell: Callable[..., None]) -> None:
    """Recover, then run, approve, undo and reject for ever; each is told once it has returned."""
    async with open_runtime(settings_in(folder, busy=ROOM), agents=[Busy], with_llm=False) as runtime:
        tell("recovered", len(await runtime.desk.recover()))
        while True:
            result = await runtime.runner.run("busy", "manual")
            first, second, third = (int(p.id or 0) for p in result.proposals)
            tell("run", result.run_id, first, second, third)
            await runtime.desk.approve(first, "ana", "cli")
            tell("applied", first)
            await runtime.desk.approve(second, "ana", "cli")
            tell("applied", second)
            await runtime.desk.undo(second, "ana", "cli")
            tell("undone", second)
            await runtime.desk.reject(third, "ana", "cli")
            tell("rejected", third)


def child(folder: Path, pipe: int) -> None:
    """Never returns."""

    def tell(*words: object) -> None:
        os.write(pipe, (json.dumps(words) + "\n").encode())

    try:
        asyncio.run(work(folder, tell))
    finally:
        os._exit(1)


def kill_one(folder: Path, chance: random.Random, story: Story) -> None:
    """Start a child, kill it at some moment, and note what it told."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        child(folder, write)
    os.close(write)
    with os.fdopen(read) as stream:
        # After so many words from it and a moment more, so that a slow machine gets as far as a fast one.
        told = [stream.readline() for _ in range(chance.randint(0, MOST_WORDS))]
        time.sleep(chance.uniform(0, LONGEST))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        told += stream.readlines()
    story.killed += os.WIFSIGNALED(status)
    for each in filter(None, told):
        kind, *words = json.loads(each)
        match kind:
            case "recovered":
                story.recovered += words[0]
            case "run":
                story.runs[words[0]] = words[1:]
            case _:
                getattr(story, kind).extend(words)


def main() -> None:
    folder, kills = Path(sys.argv[1]), int(sys.argv[2])
    chance, story = random.Random(11), Story()
    for _ in range(kills):
        kill_one(folder, chance, story)
    print(json.dumps(asdict(story)))


if __name__ == "__main__":
    main()
