"""A program that works as fast as it can, and says what it is about to do and what it has been promised.

`live` is the work: the real stack from its start over runs and decisions to its end. Others cut its power
(`powercut`), kill it (`kills`) or make its system calls fail (`faults`); `Story` is what it told before,
`look` what is there afterwards, and `faults_in` compares the two.

    python -m tests.support.crashes FOLDER LIVES [PRAGMA...]     lives so often, words on standard output
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import daemon.store.engine
from agents.errors import AgentError
from agents.proposal import Proposal, ProposalStatus
from daemon.errors import DaemonError
from daemon.runtime import DATABASE, Runtime, open_runtime
from daemon.store.migrations import STEPS, Steps, migrate
from daemon.store.sqlite import set_up_writer
from llm import LLMConfig
from tests.support.stores import START, LedgerAgent, line, model_call, settings_for

NIGHTLY = os.environ.get("ASKFIRST_NIGHTLY") == "1"
"""Read at import: no test sees such variables."""

ROOM = {"max_open": 1_000_000}
OLD_RUN, OLD_CALL = "0-old-run", "0-old-call"
_S = ProposalStatus

# What a decision whose answer is not known may have come to, besides nothing.
MAY_BECOME = {
    "approve": {_S.APPROVED, _S.APPLYING, _S.APPLIED},
    "undo": {_S.UNDOING, _S.UNDONE},
    "reject": {_S.REJECTED},
}
FAILURES = {_S.APPLY_FAILED, _S.NEEDS_ATTENTION}
HALF_WAY = {_S.APPLYING, _S.UNDOING}

Tell = Callable[..., None]


class Busy(LedgerAgent):
    """Proposes a few new lines at each run, and writes them as an agent should that minds power cuts."""

    name = "busy"
    each = 3

    async def analyze(self) -> list[Proposal]:
        self.context.calls.append(model_call(self.context.run_id))
        names = (f"{self.context.run_id}-{number}" for number in range(self.each))
        return [line(name, agent=self.name, expires_at=None) for name in names]

    def _replace(self, lines: Sequence[str]) -> None:
        try:
            super()._replace(lines)
            folder = os.open(self.file.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)  # the rename too must be on the disk before the change counts as made
            finally:
                os.close(folder)
        except OSError as error:
            msg = f"the lines cannot be written: {error.strerror}"
            raise AgentError(msg) from error

    def lines(self) -> list[str]:
        try:
            return super().lines()
        except OSError as error:
            msg = f"the lines cannot be read: {error.strerror}"
            raise AgentError(msg) from error


def old_database(folder: Path, revision: str) -> None:
    """A database in `folder` as that released schema made it, with a run and a model call."""
    path = folder / "data" / DATABASE
    path.parent.mkdir(mode=0o700, parents=True)
    known = STEPS.revisions[: STEPS.revisions.index(revision) + 1]
    migrate(path, Steps(folder=STEPS.folder, revisions=known))
    at = START.isoformat(timespec="microseconds")
    zeros = dict.fromkeys(
        ("proposals", "duplicates", "suppressed", "over_cap", "withdrawn", "calls", "cached_calls"), 0
    )
    tokens = {"prompt_tokens": 5, "completion_tokens": 2}
    run = {"id": OLD_RUN, "agent": "old", "trigger": "once", "outcome": "succeeded", "notes": "[]", **zeros}
    call = {"id": OLD_CALL, "run_id": OLD_RUN, "agent": "old", "at": at, "prompt": "Which?", "seconds": 0.0}
    with closing(sqlite3.connect(path)) as connection:
        _insert(connection, "runs", {**run, **tokens, "started_at": at, "finished_at": at})
        _insert(
            connection, "model_calls", {**call, **tokens, "backend": "mock", "model": "mock", "cached": 0}
        )
        connection.commit()
    path.chmod(0o600)


def _insert(connection: sqlite3.Connection, table: str, row: dict[str, Any]) -> None:
    names, marks = ", ".join(row), ", ".join("?" * len(row))
    connection.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", tuple(row.values()))


# --- the work -----------------------------------------------------------------------------------------------


async def live(folder: Path, tell: Tell, *, rounds: int) -> None:
    """One life of the program; before each part it tells which, and whoever listens may hold it there."""
    tell("part", "start")
    try:
        async with open_runtime(await settings_for(folder, busy=ROOM), agents=[Busy], with_llm=False) as it:
            tell("recovered", len(await it.desk.recover()))
            for _ in range(rounds):
                await _round(it, tell)
            tell("part", "stop")
    except (DaemonError, AgentError) as error:
        tell("refused", "start or stop", str(error))
    tell("part", "end")


async def _round(runtime: Runtime, tell: Tell) -> None:
    """A run; its first proposal is applied, its second applied and undone, its third rejected."""
    tell("part", "run")
    tell("asks", "run", 0)
    numbers: list[int] = []

    async def run() -> None:
        result = await runtime.runner.run("busy", "manual")
        numbers.extend(int(p.id or 0) for p in result.proposals)
        tell("ran", result.run_id, str(result.outcome), *numbers)

    async def decide(action: str, number: int) -> None:
        tell("part", action)
        tell("asks", action, number)

        async def ask() -> None:
            proposal = await getattr(runtime.desk, action)(number, "ana", "cli")
            tell("stands", number, str(proposal.status))

        await _answered(ask(), action, tell)

    await _answered(run(), "run", tell)
    if len(numbers) == Busy.each:
        first, second, third = numbers
        await decide("approve", first)
        await decide("approve", second)
        await decide("undo", second)
        await decide("reject", third)


async def _answered(work: Awaitable[None], what: str, tell: Tell) -> None:
    try:
        await work
    except (DaemonError, AgentError) as error:  # an answer a person can do something with; others end us
        tell("refused", what, str(error))


def teller(descriptor: int) -> Tell:
    """Writes each word to that descriptor at once, one JSON list per line."""

    def tell(*words: object) -> None:
        os.write(descriptor, (json.dumps(words) + "\n").encode())

    return tell


def use_pragmas(pragmas: Iterable[str]) -> None:
    """Set up the writer as always and then with these pragmas too: to prove that the proof finds losses."""

    def set_up(connection: Any, record: object) -> None:
        set_up_writer(connection, record)
        cursor = connection.cursor()
        for pragma in pragmas:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    daemon.store.engine.set_up_writer = set_up  # type: ignore[assignment]


# --- what was told, what is there ---------------------------------------------------------------------------


@dataclass
class Story:
    """What the program told.

    Attributes:
        runs: run -> the numbers of its proposals.
        stands: proposal -> its last acknowledged status.
        asked: proposal -> the decisions since then whose answer is not known.
        runs_asked: how many runs were begun.
        words: how often each word was told.
        complaints: what it said when it could not do something.
        old: whether it began with a database of an older schema.
    """

    runs: dict[str, list[int]] = field(default_factory=dict)
    stands: dict[int, ProposalStatus] = field(default_factory=dict)
    asked: dict[int, set[str]] = field(default_factory=dict)
    runs_asked: int = 0
    words: Counter[str] = field(default_factory=Counter)
    complaints: list[str] = field(default_factory=list)
    old: bool = False

    def hear(self, words: Sequence[Any]) -> None:
        """Take note of one word."""
        self.words[words[0]] += 1
        match list(words):
            case ["asks", "run", _]:
                self.runs_asked += 1
            case ["asks", action, number]:
                self.asked.setdefault(number, set()).add(action)
            case ["ran", run_id, outcome, *numbers]:
                self.words[f"run {outcome}"] += 1
                self.runs[run_id] = numbers
                self.stands.update(dict.fromkeys(numbers, _S.PENDING))
            case ["stands", number, status]:
                self.stands[number] = _S(status)
                self.asked.pop(number, None)
                self.words[status] += 1
            case ["recovered", number]:
                self.words["finished after a crash"] += number
            case ["refused", _, complaint]:
                self.complaints.append(complaint)

    def allowed(self, number: int) -> set[ProposalStatus]:
        """Where that acknowledged proposal may stand."""
        stands = {self.stands[number]}
        for action in self.asked.get(number, ()):
            stands |= MAY_BECOME[action]
        return stands


@dataclass
class Kept:
    """What is on the disk: rows as they are, and the lines that the agent wrote."""

    runs: dict[str, list[int]] = field(default_factory=dict)
    stands: dict[int, ProposalStatus] = field(default_factory=dict)
    fingerprints: list[str] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    lines: list[int] = field(default_factory=list)
    revision: str = ""
    damage: list[str] = field(default_factory=list)


def look(folder: Path) -> Kept:
    """Read everything, without the program; damage is noted, never raised."""
    kept, path = Kept(), folder / "data" / DATABASE
    ledger = folder / "data" / "agents" / Busy.name / "ledger.txt"
    if ledger.exists():
        kept.lines = [int(each.split()[0]) for each in ledger.read_text().splitlines()]
    if not path.exists() or path.stat().st_size == 0:
        return kept
    try:
        with closing(sqlite3.connect(path)) as connection:
            _read(connection, kept)
    except (sqlite3.DatabaseError, TypeError, ValueError) as error:
        kept.damage.append(repr(error))
    return kept


def _read(connection: sqlite3.Connection, kept: Kept) -> None:
    (verdict,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    if verdict != "ok":
        kept.damage.append(verdict)
    if connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,):
        return
    kept.damage += [f"broken reference in {row[0]}" for row in connection.execute("PRAGMA foreign_key_check")]
    (kept.revision,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    # Of a run that was interrupted nothing is kept but that it was; proposals of one would be seen below.
    query = "SELECT id FROM runs WHERE outcome != 'interrupted'"
    kept.runs = {run_id: [] for (run_id,) in connection.execute(query)}
    rows = connection.execute("SELECT id, run_id, status, fingerprint FROM proposals ORDER BY id")
    for number, run_id, status, fingerprint in rows:
        kept.stands[number] = _S(status)
        kept.runs.setdefault(run_id, []).append(number)
        kept.fingerprints.append(fingerprint)
    kept.calls.update(run_id for (run_id,) in connection.execute("SELECT run_id FROM model_calls"))


@dataclass
class Faults:
    """What is wrong, each with a sentence."""

    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    corrupt: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.lost or self.duplicated or self.corrupt or self.stuck)

    def add(self, other: Faults) -> None:
        """Take in what was found elsewhere."""
        for name in ("lost", "duplicated", "corrupt", "stuck"):
            getattr(self, name).extend(getattr(other, name))

    def counts(self) -> dict[str, int]:
        """How many of each."""
        return {"lost": len(self.lost), "duplicated": len(self.duplicated), "corrupt": len(self.corrupt)}


def faults_in(story: Story, kept: Kept, *, settled: bool) -> Faults:
    """Compare what was promised with what is there.

    Args:
        story: what the program told.
        kept: what is on the disk.
        settled: whether the program was started since and has finished what a crash interrupted.
    """
    faults = Faults(corrupt=list(kept.damage))
    if kept.damage:
        return faults
    _find_losses(story, kept, faults)
    _find_doubles(story, kept, faults, settled=settled)
    for run_id, numbers in kept.runs.items():
        each, calls = (0, 1) if run_id == OLD_RUN else (Busy.each, 1)
        if (len(numbers), kept.calls[run_id]) != (each, calls):
            faults.corrupt.append(f"run {run_id} is half there: {len(numbers)}, {kept.calls[run_id]}")
    if settled:
        known = {number for number, status in story.stands.items() if status in FAILURES}
        wanting = [n for n, s in kept.stands.items() if s in HALF_WAY or (s in FAILURES and n not in known)]
        faults.stuck += [f"proposal {number} is {kept.stands[number]}" for number in wanting]
    return faults


def _find_losses(story: Story, kept: Kept, faults: Faults) -> None:
    if story.old and OLD_RUN not in kept.runs:
        faults.lost.append("the run of the older schema")
    for run_id, numbers in story.runs.items():
        if kept.runs.get(run_id) != numbers:
            faults.lost.append(f"run {run_id}: {kept.runs.get(run_id)} instead of {numbers}")
    for number, acknowledged in story.stands.items():
        status = kept.stands.get(number)
        if status is not None and status not in story.allowed(number) | (
            FAILURES if story.complaints else set()
        ):
            faults.lost.append(f"proposal {number} is {status}, acknowledged was {acknowledged}")
        if acknowledged is _S.APPLIED and number not in story.asked and number not in kept.lines:
            faults.lost.append(f"what proposal {number} wrote")


def _find_doubles(story: Story, kept: Kept, faults: Faults, *, settled: bool) -> None:
    for what, values in (("fingerprint", kept.fingerprints), ("line", kept.lines)):
        faults.duplicated += [f"{what} {value}" for value, n in Counter(values).items() if n > 1]
    extra = len(kept.runs.keys() - story.runs.keys() - {OLD_RUN}) - (story.runs_asked - len(story.runs))
    if extra > 0:
        faults.duplicated.append(f"{extra} runs that nobody asked for")
    written = {_S.APPLIED} if settled else {_S.APPLIED, *HALF_WAY}
    for number in kept.lines:
        failed = story.complaints or story.stands.get(number) in FAILURES  # then it may have been half done
        if kept.stands.get(number) not in written | (FAILURES if failed else set()):
            faults.duplicated.append(f"line {number}, whose proposal is {kept.stands.get(number)}")
    if settled:
        applied = {number for number, status in kept.stands.items() if status is _S.APPLIED}
        faults.lost += [f"what proposal {number} wrote" for number in sorted(applied - set(kept.lines))]


async def start_again(folder: Path) -> None:
    """What the next start of the program does: look for damage, migrate, finish what was interrupted."""
    settings = await settings_for(folder, busy=ROOM)
    model = LLMConfig(backend="mock", enable_cache=False)
    async with open_runtime(settings, agents=[Busy], llm_config=model) as runtime:
        await runtime.desk.recover()


def after_a_start(folder: Path, story: Story) -> Faults:
    """Start the program again and compare; a start that is refused wants a person."""
    try:
        asyncio.run(start_again(folder))
    except DaemonError as error:
        return Faults(stuck=[f"the start was refused: {error}"])
    return faults_in(story, look(folder), settled=True)


def main() -> None:
    folder, lives, pragmas = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    use_pragmas(pragmas)
    for _ in range(lives):
        asyncio.run(live(folder, teller(1), rounds=2))


if __name__ == "__main__":
    main()
