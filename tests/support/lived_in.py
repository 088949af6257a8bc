"""A data folder as after a month of use; the real program is started over it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from agents.proposal import Evidence, Proposal
from daemon.discipline import paused
from daemon.events import AgentStatus, RunOutcome, RunResult
from daemon.outcome import new_run_id
from daemon.store.engine import Database
from daemon.store.proposals import ProposalStore
from daemon.store.runs import RunStore
from daemon.store.states import StateStore
from llm.stores.ledger import UsageLedger
from llm.stores.usage_tables import CallRecord

AGENTS = {"matchmaker": "2h", "pantry": "1h", "newsletter": "1d", "repairs": "6h"}
"""The agents of the folder, and how often each one is due."""

CONFIGURATION = """
[daemon]
data_dir = "data"

[llm]
backend = "mock"
model = "qwen2.5:1.5b"
budget = "60000 tokens/day, 2 usd/month"

[web]
port = 0
"""

PLUGIN = """
from agents import BaseAgent

class {kind}Agent(BaseAgent):
    name = "{name}"
    every = "{every}"

    async def analyze(self):
        return []
"""

TITLES = {
    "matchmaker": (
        "Give Ana’s 4 kg of courgettes to the Tuesday kitchen",
        "Lend the hedge trimmer to Jon on Saturday",
    ),
    "pantry": ("Use the 12 yoghurts that end on Friday first",),
    "repairs": ("Ask Mira to look at the cargo bike’s rear brake",),
}
"""What the agents propose."""


@dataclass(kw_only=True)
class World:
    """What is put into the folder.

    Attributes:
        titles: of the proposals that wait, by agent.
        error: of the last run of "repairs", None for one that went well.
        model: the model that was asked.
        days: how long it has been used.
    """

    titles: dict[str, tuple[str, ...]]
    error: str | None = None
    model: str = "qwen2.5:1.5b"
    days: int = 30


def configure(folder: Path, agents: dict[str, str] | None = None, *, more: str = "") -> None:
    """Write the configuration and the agents, which never find anything by themselves."""
    plugins = folder / "data" / "plugins"
    plugins.mkdir(parents=True, mode=0o700)
    (folder / "data").chmod(0o700)
    text = CONFIGURATION + more
    for name, every in (AGENTS if agents is None else agents).items():
        text += f'\n[agents.{name}]\nevery = "{every}"\n'
        if name != "matchmaker":
            code = PLUGIN.format(kind=name.title(), name=name, every=every)
            (plugins / f"{name}.py").write_text(code, encoding="utf-8")
        else:
            text += f'folder = "{folder / "exchange"}"\n'
    (folder / "askfirst.toml").write_text(text, encoding="utf-8")


async def live_in(data: Path, world: World, now: datetime | None = None) -> None:
    """Put a month of history into the data folder, up to `now`."""
    now = datetime.now(UTC) if now is None else now
    database = await Database.open(data / "askfirst.sqlite3")
    try:
        await _work(database, data, world, now)
    finally:
        await database.aclose()


async def _work(database: Database, data: Path, world: World, now: datetime) -> None:
    chance = random.Random(11)
    results: list[RunResult] = []
    ledger = UsageLedger(data / "llm_usage.sqlite3", gather=0.0)
    for agent, every in AGENTS.items():
        step = {"1h": 1, "2h": 2, "6h": 6, "1d": 24}[every]
        at = now - timedelta(minutes=9 + 7 * len(agent))
        for _ in range(world.days * 24 // step):
            results.append(_run(agent, at, chance, ledger, world))
            at -= timedelta(hours=step)
    if world.error is not None:
        failed = {"agent": "repairs", "outcome": RunOutcome.FAILED, "error": world.error, "calls": 0}
        results.append(_result(now - timedelta(minutes=3), **failed))
    await ledger.flush()
    await ledger.aclose()
    runs, proposals = RunStore(database), ProposalStore(database)
    async with database.write() as connection:
        for result in results:
            await runs.save(connection, result)
    newest = {result.agent: result for result in sorted(results, key=lambda each: each.run_id)}
    for agent, titles in world.titles.items():
        async with database.write() as connection:
            kept = [_proposal(agent, title, now, n) for n, title in enumerate(titles)]
            moment = now - timedelta(hours=3, minutes=20 * len(agent))
            await proposals.save_new(
                connection,
                kept,
                agent=agent,
                run_id=newest[agent].run_id,
                now=moment,
                max_new=100,
                max_open=200,
            )
    await StateStore(database).set(
        paused(AgentStatus(agent="newsletter"), "ana", "on holiday until Monday", now - timedelta(days=2))
    )


def _run(agent: str, at: datetime, chance: random.Random, ledger: UsageLedger, world: World) -> RunResult:
    by_day = 7 <= at.astimezone().hour <= 21
    calls = chance.randint(2, 7) if by_day else chance.randint(0, 2)
    cached = sum(chance.random() < 0.35 for _ in range(calls))
    outcome = chance.choices(
        [RunOutcome.SUCCEEDED, RunOutcome.FAILED, RunOutcome.TIMED_OUT, RunOutcome.INTERRUPTED],
        [94, 3, 2, 1],
    )[0]
    tokens_in = tokens_out = 0
    for n in range(calls - cached):
        read, written = chance.randint(180, 420), chance.randint(15, 60)
        tokens_in, tokens_out = tokens_in + read, tokens_out + written
        large = chance.random() < 0.06
        ledger.add(
            CallRecord(
                at=int((at + timedelta(seconds=2 * n)).timestamp() * 1000),
                agent=agent,
                backend="large" if large else "ollama",
                model="gpt-5-mini" if large else world.model,
                tokens_in=read,
                tokens_out=written,
                seconds=chance.lognormvariate(0.6 if by_day else 0.3, 0.5),
                cost=read // 4 + written * 2 if large else 0,
            )
        )
    error = None if outcome is RunOutcome.SUCCEEDED else "the folder could not be read"
    return _result(
        at,
        agent=agent,
        outcome=outcome,
        error=error,
        calls=calls,
        cached_calls=cached,
        prompt_tokens=tokens_in,
        completion_tokens=tokens_out,
    )


def _result(at: datetime, **fields: Any) -> RunResult:
    return RunResult(
        **{
            "run_id": new_run_id(at),
            "trigger": "schedule",
            "started_at": at,
            "finished_at": at + timedelta(seconds=4),
            "due": at,
            "backend": "ollama",
            "model": "qwen2.5:1.5b",
            **fields,
        }
    )


def _proposal(agent: str, title: str, now: datetime, number: int) -> Proposal:
    return Proposal(
        agent=agent,
        kind="suggestion",
        title=title,
        explanation="It fits.",
        payload={"number": number},
        fingerprint=f"{agent} {number}",
        evidence=(Evidence.of("offers.csv", f"line {number + 2}", title),),
        expires_at=now + timedelta(hours=40 + 9 * number),
    )
