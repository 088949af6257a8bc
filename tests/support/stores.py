"""A database with a desk, an agent that writes into a file, and programs that are made to be killed."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from agents.base import BaseAgent
from agents.context import AgentContext, ModelCall
from agents.errors import AgentError, PreconditionFailed, UndoConflict
from agents.proposal import Evidence, Proposal
from daemon.events import Event, EventBus, ProposalChanged, RunOutcome, RunResult
from daemon.proposals import ProposalDesk
from daemon.settings import DaemonSettings, Settings
from daemon.store.engine import Database
from daemon.store.proposals import ProposalStore, Verdict
from daemon.store.runs import RunStore

ROOT = Path(__file__).parents[2]
START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
AGENT = "ledger"


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self, start: datetime = START) -> None:
        self.time = start

    def __call__(self) -> datetime:
        return self.time

    def move(self, **by: float) -> datetime:
        self.time += timedelta(**by)
        return self.time


class Line(BaseModel):
    """The payload of LedgerAgent: a line to write, and how applying and undoing it goes wrong."""

    text: str = Field(min_length=1)
    count: int = 1
    trouble: str = ""


class LedgerAgent(BaseAgent):
    """Writes lines into a file of its own; knows by a proposal's number what is written already."""

    payloads = {"line": Line}  # noqa: RUF012 - a class variable of BaseAgent

    @property
    def file(self) -> Path:
        assert self.context.data_dir is not None
        self.context.data_dir.mkdir(parents=True, exist_ok=True)
        return self.context.data_dir / "ledger.txt"

    @property
    def go(self) -> Path:
        """The file that those wait for whose trouble is "waits"."""
        return self.file.with_name("go")

    def may_go(self) -> bool:
        return self.go.exists()

    def lines(self) -> list[str]:
        return self.file.read_text().splitlines() if self.file.exists() else []

    async def analyze(self) -> list[Proposal]:
        return []

    async def apply(self, proposal: Proposal) -> dict[str, Any] | None:
        trouble = proposal.payload.get("trouble", "")
        if trouble == "waits":
            await until(self.may_go)
        await _make(trouble)
        await asyncio.to_thread(self._add, f"{proposal.id} ", proposal.payload["text"])
        return {"number": proposal.id} if trouble != "nothing to undo" else None

    async def undo(self, proposal: Proposal) -> None:
        assert proposal.undo_data == {"number": proposal.id}
        if proposal.payload.get("trouble") == "conflict":
            msg = "the line was changed since"
            raise UndoConflict(msg)
        await asyncio.to_thread(self._remove, f"{proposal.id} ")

    def _add(self, mark: str, words: str) -> None:
        lines = self.lines()
        if not any(line.startswith(mark) for line in lines):
            self._replace([*lines, f"{mark}{words}"])

    def _remove(self, mark: str) -> None:
        self._replace([line for line in self.lines() if not line.startswith(mark)])

    def _replace(self, lines: Sequence[str]) -> None:
        draft = self.file.with_suffix(".new")
        with draft.open("w") as stream:
            stream.writelines(f"{line}\n" for line in lines)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(self.file)


async def until(true: Callable[[], bool]) -> None:
    """Wait for something that only looking can tell."""
    while not await asyncio.to_thread(true):  # noqa: ASYNC110 - a file, or another task's doing
        await asyncio.sleep(0.005)


async def _make(trouble: str) -> None:
    match trouble:
        case "precondition":
            msg = "the file is not as it was"
            raise PreconditionFailed(msg)
        case "fails":
            msg = "no paper left"
            raise AgentError(msg)
        case "breaks":
            raise ZeroDivisionError
        case "exits":
            sys.exit(3)
        case "cancels":
            raise asyncio.CancelledError
        case "hangs":
            await asyncio.Event().wait()


def line(text: str = "one", **fields: Any) -> Proposal:
    """A proposal of LedgerAgent; `trouble` goes into its payload."""
    payload = {"text": text, "count": 1, "trouble": fields.pop("trouble", "")}
    return Proposal(
        **{
            "agent": AGENT,
            "kind": "line",
            "title": f"Write {text}",
            "explanation": f"The line {text} is missing.",
            "payload": payload,
            "fingerprint": f"line {text}",
            "evidence": (Evidence.of("book.txt", "line 1", text),),
            "expires_at": START + timedelta(hours=72),
            **fields,
        }
    )


def model_call(name: str = "call-1", **fields: Any) -> ModelCall:
    """A model call."""
    known = {"prompt": "Which?", "system_prompt": None, "reply": "This.", "backend": "mock", "model": "mock"}
    return ModelCall(
        **{"id": name, "at": START, "prompt_tokens": 5, "completion_tokens": 2, **known, **fields}
    )


def run_result(run_id: str = "run1", **fields: Any) -> RunResult:
    """A run that succeeded."""
    known = {"agent": AGENT, "trigger": "once", "outcome": RunOutcome.SUCCEEDED}
    return RunResult(**{"run_id": run_id, "started_at": START, "finished_at": START, **known, **fields})


def settings_in(folder: Path, **agents: dict[str, Any]) -> Settings:
    """Settings whose data and files are in `folder`."""
    return Settings(daemon=DaemonSettings(data_dir=folder / "data"), base_dir=folder, agents=agents)


def context_in(data: Path, agent: str = AGENT) -> AgentContext:
    """The context of an agent whose data are in the folder `data`."""
    return AgentContext(data_dir=data / "agents" / agent, base_dir=data)


async def settings_for(folder: Path, **agents: dict[str, Any]) -> Settings:
    """As `settings_in`, from within a loop, which looking up paths would block."""
    return await asyncio.to_thread(settings_in, folder, **agents)


@dataclass
class Bench:
    """A database with everything that writes to it."""

    db: Database
    proposals: ProposalStore
    runs: RunStore
    desk: ProposalDesk
    clock: Clock
    events: list[Event] = field(default_factory=list)

    @property
    def ledger(self) -> LedgerAgent:
        return LedgerAgent(context_in(self.db.path.parent))

    async def keep(self, *candidates: Proposal, run_id: str | None = None, **limits: int) -> list[Verdict]:
        """Keep proposals as a run would; returns their verdicts."""
        return [verdict for verdict, _ in await self.kept(*candidates, run_id=run_id, **limits)]

    async def kept(
        self, *candidates: Proposal, run_id: str | None = None, **limits: int
    ) -> tuple[tuple[Verdict, Proposal], ...]:
        name = run_id or f"run-{len(await self.runs.list(limit=None))}"
        async with self.db.write() as connection:
            verdicts = await self.proposals.save_new(
                connection,
                candidates,
                agent=candidates[0].agent,
                run_id=name,
                now=self.clock(),
                **{"max_new": 100, "max_open": 200, **limits},
            )
            await self.runs.save(connection, run_result(name))
        return verdicts

    async def one(self, **fields: Any) -> int:
        """Keep one proposal and return its number."""
        ((_, proposal),) = await self.kept(line(**fields))
        assert proposal.id is not None
        return proposal.id

    def changes(self) -> list[tuple[int | None, str | None, str]]:
        """What was published: number, status before, status after."""
        changed = [event for event in self.events if isinstance(event, ProposalChanged)]
        return [
            (e.proposal.id, None if e.before is None else e.before.value, e.proposal.status.value)
            for e in changed
        ]


@asynccontextmanager
async def bench(
    folder: Path,
    *,
    make_agent: Callable[[str], BaseAgent] | None = None,
    clock: Clock | None = None,
    **desk: Any,
) -> AsyncIterator[Bench]:
    """A database in `folder`/data, opened and closed."""
    events = EventBus()
    time = Clock() if clock is None else clock
    data = folder / "data"

    async def make(name: str) -> BaseAgent:
        if make_agent is not None:
            return make_agent(name)
        return LedgerAgent(context_in(data, name))

    db = await Database.open(data / "askfirst.sqlite3")
    store = ProposalStore(db)
    made = ProposalDesk(store, db, make, events, time, **desk)
    all_of_it = Bench(db, store, RunStore(db), made, time)
    events.subscribe(all_of_it.events.append)
    try:
        yield all_of_it
    finally:
        await made.aclose()
        await db.aclose()
