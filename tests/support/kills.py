"""Kills a program that works, again and again, at some moment; children are forked, so imports are paid once.

    python -m tests.support.kills KIND FOLDER [KILLS SEED]

    work         a long life, killed in it and begun again in the same folder
    lives        short lives, killed at their start or stop as well
    migrations   each child meets a database of an older schema
    statements   one kill in front of each statement of each migration

Prints a JSON list for each child: its folder, whether it was killed, and the words that it told.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Everything that a child needs is imported before the first fork.
import aiosqlite  # noqa: F401
import alembic.operations
import alembic.runtime.migration
import alembic.script  # noqa: F401
import sqlalchemy.ext.asyncio  # noqa: F401
import structlog  # noqa: F401
from sqlalchemy import Engine, event

import daemon.store.due_times
import daemon.store.proposals
import daemon.store.runs
import daemon.store.states  # noqa: F401
from daemon.runtime import DATABASE
from daemon.store.migrations import STEPS, prepare
from tests.support.crashes import (
    Faults,
    Story,
    after_a_start,
    faults_in,
    live,
    look,
    old_database,
    teller,
)
from tests.support.stores import ROOT

MOST_WORDS = 18
LONGEST = 0.01
LIFE_S = 0.06
PER_FOLDER = 50
"""A database that has grown makes each start slower, and proves nothing more."""

Child = Callable[[Path, Callable[..., None]], None]


def for_ever(folder: Path, tell: Callable[..., None]) -> None:
    """One life that does not end."""
    asyncio.run(live(folder, tell, rounds=1_000_000))


def short_lives(folder: Path, tell: Callable[..., None]) -> None:
    """Lives of one round, one after the other."""
    while True:
        asyncio.run(live(folder, tell, rounds=1))


def killed(work: Child, folder: Path, moment: Callable[[Any], list[str]]) -> tuple[bool, list[Any]]:
    """Run `work` in a child and kill it at `moment`, which may read some of its words before."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        try:
            work(folder, teller(write))
        finally:
            os._exit(1)
    os.close(write)
    with os.fdopen(read) as stream:
        told = moment(stream)
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        told += stream.readlines()
    return os.WIFSIGNALED(status), [json.loads(each) for each in told if each.endswith("\n")]


def by_words(chance: random.Random) -> Callable[[Any], list[str]]:
    """After so many words and a moment more, so that a slow machine gets as far as a fast one."""

    def moment(stream: Any) -> list[str]:
        told = [stream.readline() for _ in range(chance.randint(0, MOST_WORDS))]
        time.sleep(chance.uniform(0, LONGEST))
        return told

    return moment


def by_time(chance: random.Random) -> Callable[[Any], list[str]]:
    """Some time after its first word."""

    def moment(stream: Any) -> list[str]:
        told = [stream.readline()]
        time.sleep(chance.uniform(0, LIFE_S))
        return told

    return moment


def again_and_again(work: Child, top: Path, kills: int, chance: random.Random) -> Iterator[tuple[Any, ...]]:
    """Kill `work` so often, a new folder now and then."""
    for number in range(kills):
        folder = top / str(number // PER_FOLDER)
        yield (folder.name, *killed(work, folder, by_words(chance)))


def migrations(top: Path, kills: int, chance: random.Random) -> Iterator[tuple[Any, ...]]:
    """Each child finds a database of an older schema."""
    for number in range(kills):
        folder = top / str(number)
        old_database(folder, chance.choice(STEPS.revisions[:-1]))
        yield (folder.name, *killed(short_lives, folder, by_time(chance)))


def statements(top: Path) -> Iterator[tuple[Any, ...]]:
    """From each older schema; the child kills itself before statement 0, 1, ... until it meets no more."""
    for revision in STEPS.revisions[:-1]:
        number, was_killed = 0, True
        while was_killed:
            folder = top / f"{revision}-{number}"
            old_database(folder, revision)
            was_killed, told = killed(_before_statement(number), folder, lambda stream: stream.readlines())
            yield (folder.name, was_killed, told)
            number += 1


def _before_statement(number: int) -> Child:
    def work(folder: Path, tell: Callable[..., None]) -> None:
        left = iter(range(number))

        def count(*_: object) -> None:
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)

        event.listen(Engine, "before_cursor_execute", count)
        event.listen(Engine, "commit", count)
        prepare(folder / "data" / DATABASE)
        tell("part", "end")
        os._exit(0)

    return work


# --- for whoever starts it ----------------------------------------------------------------------------------


@dataclass
class Killed:
    """What came of it.

    Attributes:
        killed: how many children were killed.
        words: how often each word was told by all of them.
        last: the part in which children were when they were killed -> how many.
        revisions: the schemas that kills left -> how many.
        faults: what was wrong, after another start of the program in each folder.
    """

    killed: int = 0
    words: Counter[str] = field(default_factory=Counter)
    last: Counter[str] = field(default_factory=Counter)
    revisions: Counter[str] = field(default_factory=Counter)
    faults: Faults = field(default_factory=Faults)


def killings(
    top: Path, kind: str, kills: int = 0, *, seed: int = 0, old: bool = False, start: bool = True
) -> Killed:
    """Run this module as a program and compare what its children told with what is in their folders.

    Args:
        top: an empty folder.
        kind: as on the command line.
        kills: how many.
        seed: of the moments.
        old: whether each folder begins with a database of an older schema.
        start: whether the program is started once more in each folder at the end.
    """
    command = [sys.executable, "-m", __name__, kind, str(top), *([str(kills), str(seed)] if kills else [])]
    found, stories = Killed(), dict[str, Story]()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        for name, was_killed, told in map(json.loads, process.stdout or ()):
            found.killed += was_killed
            found.last.update(
                parts[-1:] if (parts := [words[1] for words in told if words[0] == "part"]) else []
            )
            story = stories.setdefault(name, Story(old=old))
            for words in told:
                story.hear(words)
    assert process.returncode == 0
    for name, story in stories.items():
        found.words += story.words
        kept = look(top / name)
        found.revisions[kept.revision] += 1
        found.faults.add(faults_in(story, kept, settled=False))
        if start:
            found.faults.add(after_a_start(top / name, story))
    return found


# --- the program --------------------------------------------------------------------------------------------


def main() -> None:
    kind, top, *more = sys.argv[1:]
    kills, chance = int(more[0]) if more else 0, random.Random(int(more[1]) if more else 0)
    match kind:
        case "work":
            children = again_and_again(for_ever, Path(top), kills, chance)
        case "lives":
            children = again_and_again(short_lives, Path(top), kills, chance)
        case "migrations":
            children = migrations(Path(top), kills, chance)
        case _:
            children = statements(Path(top))
    for child in children:
        print(json.dumps(child), flush=True)


if __name__ == "__main__":
    main()
