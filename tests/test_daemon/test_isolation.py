"""Killers beside good agents in one scheduler: nobody else misses a run, and nothing of them is left."""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest

from agents.base import BaseAgent
from agents.proposal import Proposal
from daemon import AgentScheduler
from daemon.events import RunFinished, RunOutcome, RunResult
from daemon.settings import DaemonSettings, Settings
from llm import LLMConfig
from tests.support.plugins import plugin_folder, source_of
from tests.support.waiting import seen

MOCK = LLMConfig(backend="mock", enable_cache=False)
AT_ONCE = 5
"""So many killers strike at a time; a daemon with its defaults runs two agents at a time."""

_FAILED, _LATE, _FINE = RunOutcome.FAILED, RunOutcome.TIMED_OUT, RunOutcome.SUCCEEDED

ENDS: dict[str, tuple[RunOutcome, str, dict[str, Any]]] = {
    "raises": (_FAILED, "ZeroDivisionError: by nought", {}),
    "exits": (_FAILED, "SystemExit: 3", {}),
    "hangs": (_LATE, "it took longer than 5s", {"timeout": "5s"}),
    "swallows": (_LATE, "it took longer than 5s", {"timeout": "5s"}),
    "blocks": (_LATE, "it took longer than 5s", {"timeout": "5s"}),
    "spins": (_FAILED, "killed by SIGXCPU: it used more than 2 s of CPU time; raise agents.spins.max_cpu",
              {"max_cpu": "2s", "timeout": "1m"}),
    "leaks": (_FAILED, "it used more than 400 MB of memory; raise agents.leaks.max_memory_mb",
              {"max_memory_mb": 400}),
    "floods": (_FINE, "", {"max_proposals": 3}),
    "pours": (_FAILED, "handed over more than 1,000,000 bytes; raise agents.pours.max_bytes",
              {"max_bytes": 1_000_000}),
    "swells": (_FINE, "", {}),
    "forks": (_LATE, "it took longer than 5s", {"timeout": "5s"}),
    "crashes": (_FAILED, "killed by SIGSEGV", {}),
    "leaves": (_FAILED, "ended by itself, with exit code 7, before it had answered", {}),
    "stays": (_LATE, "it took longer than 5s", {"timeout": "5s"}),
    "prints": (_FINE, "", {}),
    "shouts": (_FAILED, "handed over more than 200,000 bytes", {"max_bytes": 200_000, "timeout": "1m"}),
    "garbles": (_FAILED, "wrote something that is no message", {}),
    "lies": (_FAILED, "handed over more than", {}),
    "escapes": (_FAILED, "exit code 0", {}),
    "sneaks": (_FINE, "", {}),
    "poisons": (_FAILED, "2 of its 4 proposals cannot be kept", {}),
}  # fmt: skip
ENDS["poisons"] = (_FAILED, "3 of its 4 proposals cannot be kept: number 2: a str is no Proposal", {})


class Good(BaseAgent):
    """Runs each second, here, and notes when."""

    name = "good"
    every = "1s"
    runs: ClassVar[list[float]] = []

    async def analyze(self) -> list[Proposal]:
        self.runs.append(time.monotonic())
        return []


class Fine(Good):
    """A second one."""

    name = "fine"
    runs: ClassVar[list[float]] = []


@pytest.fixture(autouse=True)
def fresh() -> None:
    Good.runs.clear()
    Fine.runs.clear()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    plugin_folder(tmp_path, killers=source_of("killers"))
    daemon = DaemonSettings(
        data_dir=tmp_path / "data", stop_grace=timedelta(seconds=0.2), max_concurrent_runs=64
    )
    agents = {name: table for name, (_, _, table) in ENDS.items()}
    return Settings(daemon=daemon, base_dir=tmp_path, agents=agents)


class Lag:
    """How late the loop comes round, each hundredth of a second."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def p99(self) -> float:
        return sorted(self.seconds)[int(len(self.seconds) * 0.99)]

    @asynccontextmanager
    async def measured(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._measure())
        try:
            yield
        finally:
            task.cancel()

    async def _measure(self) -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.01)
            self.seconds.append(time.perf_counter() - before - 0.01)


def marks(settings: Settings) -> set[int]:
    """The processes of killers that were ever there."""
    return {int(file.stem) for file in (settings.daemon.data_dir / "agents").rglob("*.pid")}


def still_there(pids: set[int]) -> set[int]:
    return {pid for pid in pids if _lives(pid)}


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_killers_beside_good_agents_harm_nobody(settings: Settings) -> None:
    calm, rough = Lag(), Lag()
    ended: dict[str, RunResult] = {}
    scheduler = AgentScheduler(MOCK, [Good, Fine], settings)
    scheduler.events.subscribe(
        lambda e: ended.update({e.result.agent: e.result}) if isinstance(e, RunFinished) else None
    )
    async with scheduler:
        await seen(lambda: bool(Good.runs and Fine.runs))
        assert scheduler.runtime is not None
        await asyncio.to_thread(scheduler.runtime.registry.names)  # as the program does when it starts
        async with calm.measured():
            await asyncio.sleep(1)  # what it is measured against
        began = time.monotonic()
        async with rough.measured():
            places = asyncio.Semaphore(AT_ONCE)
            await asyncio.gather(*(_strike(scheduler, places, name) for name in ENDS))
        lasted = time.monotonic() - began
    for name, (outcome, words, _) in ENDS.items():
        result = ended[name]
        assert (name, result.outcome) == (name, outcome), result
        assert words in (result.error or ""), result
    _nobody_missed_a_run(began, lasted)
    assert rough.p99() < max(0.25, 20 * calm.p99()), (calm.p99(), rough.p99(), lasted)
    there = marks(settings)
    assert len(there) >= len(ENDS) + 50  # each of them came so far as to strike
    assert still_there(there) == set()
    assert (len(ended["floods"].proposals), ended["floods"].over_cap) == (3, 12_000 - 3)
    assert len(ended["swells"].proposals[0].explanation) == 4_000
    assert len(ended["prints"].proposals) == len(ended["sneaks"].proposals) == 1


async def _strike(scheduler: AgentScheduler, places: asyncio.Semaphore, name: str) -> None:
    async with places:
        await scheduler.run_once(name)


def _nobody_missed_a_run(began: float, lasted: float) -> None:
    for agent in (Good, Fine):
        runs = sorted(moment for moment in agent.runs if began <= moment <= began + lasted)
        gaps = [after - before for before, after in itertools.pairwise(runs)]
        assert len(runs) >= lasted / 2 - 1, (agent.name, lasted, runs)  # a busy machine delays some
        assert max(gaps) < 4.9, gaps  # those who block or spin do so for five seconds and more


SETTLED = """
from pydantic import BaseModel
from agents import BaseAgent
class Wish(BaseModel):
    colour: str = "red"
class Settled(BaseAgent):
    every = "1s"
    Settings = Wish
    async def analyze(self):
        self.context.notes.append(self.settings.colour)
        return []
"""


async def test_a_plugin_with_settings_is_run_on_its_schedule_and_none_of_it_is_loaded_here(
    tmp_path: Path,
) -> None:
    plugin_folder(tmp_path, settled=SETTLED)
    settings = Settings(
        daemon=DaemonSettings(data_dir=tmp_path / "data", stop_grace=timedelta(seconds=0.2)),
        base_dir=tmp_path,
        agents={"settled": {"colour": "blue"}},
    )
    results: list[RunResult] = []
    scheduler = AgentScheduler(MOCK, None, settings)
    scheduler.events.subscribe(lambda e: results.append(e.result) if isinstance(e, RunFinished) else None)
    async with scheduler:
        await seen(lambda: len(results) >= 2)
    assert {(result.trigger, result.outcome, result.notes) for result in results[:2]} == {
        ("schedule", _FINE, ("blue",))
    }
    assert not [name for name in sys.modules if "settled" in name]
