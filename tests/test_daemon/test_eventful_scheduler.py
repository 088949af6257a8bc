"""Agents that are due by events, run by the real scheduler: once each, also over a reload and a restart."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from agents.base import BaseAgent
from agents.proposal import Proposal
from daemon import AgentScheduler
from daemon.events import Event, Fate, RunFinished
from daemon.settings import DaemonSettings, Settings
from daemon.triggers import files
from llm import LLMConfig
from tests.support.calendars import event, ics
from tests.support.waiting import seen

LEAD = timedelta(hours=1)


class QuietAgent(BaseAgent):
    """Looks and proposes nothing."""

    every = "1d"

    async def analyze(self) -> list[Proposal]:
        return []


class CollectorAgent(QuietAgent):
    """Runs by the clock."""


class SorterAgent(QuietAgent):
    """Runs after the collector."""


class FilesAgent(QuietAgent):
    """Watches a folder, in which it keeps notes of its own."""

    async def analyze(self) -> list[Proposal]:
        notes = self.context.base_dir / "in" / "notes"
        await asyncio.to_thread(notes.write_text, datetime.now(UTC).isoformat(), "utf-8")
        return []


class CalendarAgent(QuietAgent):
    """Runs before events."""


AGENTS = [CollectorAgent, SorterAgent, FilesAgent, CalendarAgent]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"tick": 0.05, "settle": 0.2}
    defaults = files.FileWatch.__init__.__kwdefaults__ or {}
    monkeypatch.setattr(files.FileWatch.__init__, "__kwdefaults__", {**defaults, **times})


def settings_in(folder: Path, **more: dict[str, Any]) -> Settings:
    tables: dict[str, dict[str, Any]] = {
        "collector": {"every": "1d"},
        "sorter": {"after": "collector"},
        "files": {"watch": "in"},
        "calendar": {"before": {"calendar": "events.ics", "lead": "1h"}},
    }
    for name, table in more.items():
        tables[name] = {**tables[name], **table}
    daemon = DaemonSettings(data_dir=folder / "data", stop_grace=timedelta(seconds=20))
    return Settings(daemon=daemon, base_dir=folder, agents=tables)


class Seen:
    """The runs that ended, counted by agent and trigger."""

    def __init__(self) -> None:
        self.runs: Counter[tuple[str, str]] = Counter()

    def note(self, told: Event) -> None:
        if isinstance(told, RunFinished):
            self.runs[told.result.agent, told.result.trigger] += 1


@asynccontextmanager
async def scheduler(folder: Path) -> AsyncIterator[tuple[AgentScheduler, Seen]]:
    made = AgentScheduler(LLMConfig(backend="mock"), AGENTS, settings_in(folder))
    noted = Seen()
    made.events.subscribe(noted.note)
    async with made:
        yield made, noted


def soon() -> datetime:
    """The next whole second."""
    return datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=1)


def look_now(made: AgentScheduler) -> None:
    """It would look at the calendar within ten minutes."""
    assert made._roster is not None
    made._roster.clock_changed()


def calendars_known(made: AgentScheduler, count: int) -> Callable[[], bool]:
    def known() -> bool:
        assert made._roster is not None
        triggers = made._roster._triggers
        return triggers is not None and len(triggers._calendars._calendars["calendar"].dues) == count

    return known


async def test_events_run_agents_once_each_also_over_a_reload_and_a_restart(tmp_path: Path) -> None:
    inbox, events = tmp_path / "in", tmp_path / "events.ics"
    inbox.mkdir()

    async with scheduler(tmp_path) as (made, noted):
        due = soon()
        events.write_text(ics(event(due + LEAD), event(due + timedelta(days=2))), encoding="utf-8")
        look_now(made)
        (inbox / "one").write_text("x", encoding="utf-8")
        expected = {("collector", "schedule"), ("sorter", "after collector"), ("files", "file"),
                    ("calendar", "calendar")}  # fmt: skip
        await seen(lambda: set(noted.runs) == expected)
        assert made.runtime is not None
        row = await made.runtime.due_times.settled("calendar", due)
        assert row is not None
        assert (row.fate, row.due) == (Fate.RUN, due)

        changes = await made.reload(settings_in(tmp_path, collector={"every": "2d"}))
        assert changes
        await seen(calendars_known(made, 2))
        await asyncio.sleep(0.5)  # longer than a change takes to come to rest
        assert noted.runs == Counter(dict.fromkeys(expected, 1))
        (inbox / "two").write_text("x", encoding="utf-8")
        await seen(lambda: noted.runs["files", "file"] == 2)

    async with scheduler(tmp_path) as (made, noted):  # the agent's own notes are newer than its due time
        await seen(calendars_known(made, 2))
        await asyncio.sleep(0.5)
        assert noted.runs == Counter()

    (inbox / "while it was off").write_text("x", encoding="utf-8")
    async with scheduler(tmp_path) as (made, noted):
        await seen(calendars_known(made, 2))
        await seen(lambda: noted.runs["files", "file"] == 1)
        await made.reload(settings_in(tmp_path, collector={"every": "2d"}))
        await seen(calendars_known(made, 2))
        await asyncio.sleep(0.5)
        assert noted.runs == Counter({("files", "file"): 1})


async def test_a_moment_that_passed_while_the_program_was_off_is_run_for_once(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    events = tmp_path / "events.ics"
    async with scheduler(tmp_path) as (made, noted):
        first = soon()
        events.write_text(ics(event(first + LEAD)), encoding="utf-8")
        look_now(made)
        await seen(lambda: noted.runs["calendar", "calendar"] == 1)
    missed = soon()
    events.write_text(ics(event(first + LEAD), event(missed + LEAD)), encoding="utf-8")
    await asyncio.to_thread(until, missed + timedelta(seconds=0.2))
    for runs in (1, 0):  # and not again at the next start
        async with scheduler(tmp_path) as (made, noted):
            await seen(calendars_known(made, 2))
            await seen(lambda wanted=runs: noted.runs["calendar", "calendar"] == wanted)  # type: ignore[misc]
            await asyncio.sleep(0.3)
            assert noted.runs["calendar", "calendar"] == runs
            assert made.runtime is not None
            row = await made.runtime.due_times.settled("calendar", missed)
            assert row is not None
            assert row.fate is Fate.RUN


def until(moment: datetime) -> None:
    import time

    time.sleep(max((moment - datetime.now(UTC)).total_seconds(), 0))
