"""Deadlines of proposals: looked after when they come, and again after a database that was away."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from agents.base import BaseAgent
from agents.proposal import Proposal, ProposalStatus
from daemon import AgentScheduler
from daemon.deadlines import AT_LEAST_EVERY, Deadlines, deadlines_of
from daemon.runtime import DATABASE, open_runtime
from daemon.settings import DaemonSettings, Settings
from llm import LLMConfig
from tests.support.waiting import seen

MOCK = LLMConfig(backend="mock", enable_cache=False)


class LeafletAgent(BaseAgent):
    """Proposes something that may wait for half a minute."""

    every = "1s"

    async def analyze(self) -> list[Proposal]:
        until = datetime.now(UTC) + timedelta(seconds=30)
        return [
            self.propose(
                "leaflet", "Print it", explanation="", payload={}, fingerprint="leaflet", expires_at=until
            )
        ]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(daemon=DaemonSettings(data_dir=tmp_path))


def rename(settings: Settings, table: str, to: str) -> None:
    """What a database looks like that is damaged, and mended again."""
    with closing(sqlite3.connect(settings.daemon.data_dir / DATABASE, timeout=30)) as connection:
        connection.execute(f"alter table {table} rename to {to}")


async def test_it_comes_back_for_the_next_deadline_or_after_a_minute(settings: Settings) -> None:
    async with open_runtime(settings, llm_config=MOCK, agents=[LeafletAgent]) as runtime:
        before = datetime.now(UTC)
        assert await Deadlines().tend(runtime) - before >= AT_LEAST_EVERY
        (made,) = (await runtime.runner.run("leaflet")).proposals
        assert await Deadlines().tend(runtime) == made.expires_at
        until = datetime.now(UTC) + timedelta(seconds=5)
        await runtime.desk.snooze(int(made.id or 0), until, by="ana", via="cli")
        assert await Deadlines().tend(runtime) == until
        await runtime.desk.reject(int(made.id or 0), by="ana", via="cli")
        assert await Deadlines().tend(runtime) - before >= AT_LEAST_EVERY


async def test_what_was_due_while_nobody_ran_is_done_at_once(settings: Settings) -> None:
    async with open_runtime(settings, llm_config=MOCK, agents=[LeafletAgent]) as runtime:
        (made,) = (await runtime.runner.run("leaflet")).proposals
        await runtime.desk.snooze(
            int(made.id or 0), datetime.now(UTC) + timedelta(seconds=0.2), by="ana", via="cli"
        )
        await asyncio.sleep(0.3)
        await Deadlines().tend(runtime)
        assert (await runtime.proposals.get(int(made.id or 0))).status is ProposalStatus.PENDING


async def test_a_database_that_is_away_is_told_once_and_asked_again(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with open_runtime(settings, llm_config=MOCK, agents=[LeafletAgent]) as runtime:
        deadlines = Deadlines()
        rename(settings, "proposals", "away")
        for _ in range(3):
            assert await deadlines.tend(runtime) > datetime.now(UTC)
        assert caplog.text.count("cannot be looked after") == 1
        rename(settings, "away", "proposals")
        for _ in range(3):
            await deadlines.tend(runtime)
        assert caplog.text.count("are looked after again") == 1


async def test_a_run_that_cannot_be_recorded_is_logged_and_the_next_one_comes(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    scheduler = AgentScheduler(MOCK, [LeafletAgent], settings)
    async with scheduler:
        rename(settings, "runs", "away")
        await seen(lambda: "a run could not be recorded" in caplog.text)
        rename(settings, "away", "runs")
        before = scheduler.get_stats()["runs"]["succeeded"]
        await seen(lambda: scheduler.get_stats()["runs"]["succeeded"] > before)


def test_only_what_waits_has_deadlines() -> None:
    moment = datetime(2026, 11, 1, tzinfo=UTC)
    proposal = Proposal(
        agent="a", kind="k", title="t", explanation="", payload={}, fingerprint="f", expires_at=moment
    )
    assert deadlines_of(proposal) == [moment]
    later = moment + timedelta(days=1)
    snoozed = proposal.with_changes(status=ProposalStatus.SNOOZED, snoozed_until=later)
    assert deadlines_of(snoozed) == [moment, later]
    assert deadlines_of(proposal.with_changes(status=ProposalStatus.REJECTED)) == []
