"""DeadMan: what is told to whom, what is not, and that a deaf listener disturbs nobody."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from urllib.parse import parse_qs, urlsplit

import pytest

from daemon.deadman import MOST_WAITING, DeadMan
from daemon.events import (
    AgentState,
    AgentStateChanged,
    AgentStatus,
    RunBegun,
    RunFinished,
    RunOutcome,
    RunResult,
)
from tests.support.loopback import LoopbackServer, SeenRequest, http_message
from tests.support.waiting import seen

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
SECRET = "5d0f3c1e-secret-of-the-check"


class Checks(LoopbackServer):
    """Answers 200, or what `status` says."""

    status = 200

    async def answer(self, request: SeenRequest, writer: asyncio.StreamWriter) -> None:
        writer.write(http_message(self.status))

    def told(self) -> list[tuple[str, str]]:
        """Path and text of each message."""
        return [(urlsplit(each.path).path, each.raw_body.decode()) for each in self.seen]


def finished(outcome: RunOutcome, error: str | None = None) -> RunFinished:
    result = RunResult(
        run_id="run1",
        agent="garden",
        trigger="schedule",
        outcome=outcome,
        started_at=NOON,
        finished_at=NOON,
        error=error,
    )
    return RunFinished(result=result)


BEGUN = RunBegun(agent="garden", run_id="run1", trigger="schedule")


async def well() -> bool:
    return True


@pytest.fixture
async def checks() -> AsyncIterator[Checks]:
    async with Checks() as server:
        yield server


def dead_man(
    checks: Checks, *, program: bool = False, every: float = 3600, healthy: Callable[[], object] = well
) -> DeadMan:
    address = f"{checks.origin}/{SECRET}"
    return DeadMan(
        address if program else None,
        every,
        healthy,  # type: ignore[arg-type]
        {"garden": address},
        pauses=(0.0, 0.0),
    )


async def test_a_run_is_told_when_it_begins_and_how_it_ends_and_nothing_of_what_it_found(
    checks: Checks,
) -> None:
    dead = dead_man(checks)
    dead.start()
    events = (
        BEGUN,
        finished(RunOutcome.SUCCEEDED),
        BEGUN,
        finished(RunOutcome.FAILED, "Ana's data is broken"),
    )
    for event in events:
        dead.note(event)
    dead.note(RunBegun(agent="other", run_id="run2", trigger="schedule"))  # has no address
    await dead.aclose()
    assert checks.told() == [
        (f"/{SECRET}/start", "garden: begun"),
        (f"/{SECRET}", "garden: succeeded"),
        (f"/{SECRET}/start", "garden: begun"),
        (f"/{SECRET}/fail", "garden: failed"),
    ]
    # The service pairs begin and end of a run by a UUID.
    rids = [parse_qs(urlsplit(each.path).query)["rid"] for each in checks.seen]
    assert len({rid for (rid,) in rids}) == 1


async def test_an_agent_in_quarantine_is_told_as_a_failure(checks: Checks) -> None:
    dead = dead_man(checks)
    dead.start()
    status = AgentStatus(agent="garden", state=AgentState.QUARANTINED, reason="ten failures")
    dead.note(AgentStateChanged(status=status, before=AgentState.ACTIVE))
    dead.note(
        AgentStateChanged(
            status=AgentStatus(agent="garden", state=AgentState.PAUSED), before=AgentState.ACTIVE
        )
    )
    await dead.aclose()
    ((path, text),) = checks.told()
    assert path == f"/{SECRET}/fail"
    assert "quarantined" in text


async def test_the_program_is_told_to_work_only_while_it_does(checks: Checks) -> None:
    answers = [True, False, False, True]
    asked = 0

    async def healthy() -> bool:
        nonlocal asked
        asked += 1
        return answers[min(asked, len(answers)) - 1]

    dead = dead_man(checks, program=True, every=0.01, healthy=healthy)
    dead.start()
    await seen(lambda: asked >= 3)
    before = len(checks.seen)
    await seen(lambda: len(checks.seen) >= 2)
    await dead.aclose()
    assert before <= 1
    assert set(checks.told()) == {(f"/{SECRET}", "askfirst works")}


async def test_a_message_is_tried_again_and_trouble_is_told_once_without_the_address(
    checks: Checks, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    checks.status = 503
    dead = dead_man(checks)
    dead.start()
    dead.note(BEGUN)
    dead.note(finished(RunOutcome.SUCCEEDED))
    await seen(lambda: len(checks.seen) == 6)  # three attempts each
    checks.status = 200
    dead.note(BEGUN)
    await seen(lambda: "again" in caplog.text and len(checks.seen) == 7)
    await dead.aclose()
    told = [record.getMessage() for record in caplog.records if record.name == "daemon.deadman"]
    assert len(told) == 2
    assert "it answers 503" in told[0]
    assert not any(SECRET in line for line in told)


async def test_nobody_listens_and_nothing_waits_for_them() -> None:
    async with Checks() as gone:
        dead = dead_man(gone)
    dead.start()
    for _ in range(3 * MOST_WAITING):
        dead.note(BEGUN)
    await asyncio.wait_for(dead.aclose(), 30)


async def test_agents_can_get_other_addresses_while_it_runs(checks: Checks) -> None:
    dead = dead_man(checks)
    dead.start()
    dead.set_agents({"garden": f"{checks.origin}/new"})
    dead.note(BEGUN)
    await dead.aclose()
    assert [path for path, _ in checks.told()] == ["/new/start"]
