"""The whole program ends in the middle of a run: history says so, it is run again, there is no crash loop."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import pytest

from daemon.discipline import config_digest
from daemon.errors import StoreError
from daemon.events import (
    AgentState,
    AgentStateChanged,
    AgentStatus,
    DueTime,
    DueTimesSettled,
    Event,
    EventBus,
    Fate,
    RunFinished,
    RunOutcome,
)
from daemon.marks import SIZE, Mark, from_bytes, to_bytes
from daemon.outcome import new_run_id
from daemon.runtime import Runtime, open_runtime
from tests.support.deaths import NAME, KillerAgent
from tests.support.program import LIMIT_S, Program
from tests.support.stores import ROOT, START, Clock, settings_for
from tests.support.waiting import seen_now

O = RunOutcome  # noqa: E741 - read a hundred times below
PARKED = "its last 3 runs ended with the whole program"


class Open(Protocol):
    async def __call__(self, **options: Any) -> tuple[Runtime, list[Event]]: ...


@pytest.fixture
async def open_(tmp_path: Path) -> AsyncIterator[Open]:
    KillerAgent.where = "nowhere"
    async with AsyncExitStack() as stack:

        async def opener(**options: Any) -> tuple[Runtime, list[Event]]:
            events: list[Event] = []
            bus = EventBus()
            bus.subscribe(events.append)
            settings = await settings_for(tmp_path, killer={"isolation": "none", "timeout": "10m"})
            runtime = open_runtime(settings, agents=[KillerAgent], with_llm=False, events=bus, **options)
            return await stack.enter_async_context(runtime), events

        yield opener


async def started(folder: Path, where: str, trigger: str = "schedule") -> tuple[int, str]:
    """Start the program; returns its exit code and what it logged."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.support.deaths", str(folder), where, trigger),
        cwd=ROOT,
        stderr=asyncio.subprocess.PIPE,
    )
    _, logged = await process.communicate()
    return process.returncode or 0, logged.decode()


def lock_file(folder: Path) -> Path:
    path = folder / "data" / "locks" / f"{NAME}.run"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def left_behind(folder: Path, **fields: Any) -> Mark:
    """As a crash would leave it: the mark of a run that is under way."""
    known = {"run_id": new_run_id(START), "trigger": "schedule", "started_at": START, "due": START}
    mark = Mark(**{**known, **fields})
    lock_file(folder).write_bytes(to_bytes(mark))
    return mark


def mark_in(folder: Path) -> Mark | None:
    return from_bytes(lock_file(folder).read_bytes())


# --- with real kills


@pytest.mark.crash
@pytest.mark.parametrize("where", ["analyze", "commit"])
async def test_a_killed_run_is_in_the_history_and_its_due_time_is_run_again(
    tmp_path: Path, open_: Open, where: str
) -> None:
    assert (await started(tmp_path, where))[0] == -9
    runtime, events = await open_()
    assert await runtime.runs.list() == ()  # nothing of it was kept, not even half
    assert (await runtime.proposals.list(), await runtime.due_times.list()) == ((), ())
    (result,) = await runtime.runner.recover([NAME])
    assert await runtime.runs.list() == (result,)
    assert (result.outcome, result.due, result.attempt, result.trigger) == (
        O.INTERRUPTED,
        START,
        1,
        "schedule",
    )
    assert result.error == "the whole program ended while it ran: by a crash, a power cut or a kill"
    assert events == [RunFinished(result=result, status=AgentStatus(agent=NAME))]
    assert await runtime.due_times.settled(NAME, START) is None
    again = await runtime.runner.run(NAME, "schedule", due=START)
    assert (again.outcome, again.attempt, len(again.proposals)) == (O.SUCCEEDED, 2, 1)
    settled = await runtime.due_times.settled(NAME, START)
    assert settled is not None
    assert (settled.fate, settled.run_id) == (Fate.RUN, again.run_id)
    assert await runtime.runner.recover([NAME]) == ()
    assert await runtime.states.all() == {}


@pytest.mark.crash
async def test_a_run_that_was_committed_before_the_kill_is_not_repeated(tmp_path: Path, open_: Open) -> None:
    assert (await started(tmp_path, "committed"))[0] == -9
    mark = mark_in(tmp_path)
    assert mark is not None
    assert mark.under_way
    runtime, events = await open_()
    assert await runtime.runner.recover([NAME]) == ()
    (run,) = await runtime.runs.list()
    assert (run.run_id, run.outcome, len(run.proposals)) == (mark.run_id, O.SUCCEEDED, 1)
    assert [each.fate for each in await runtime.due_times.list()] == [Fate.RUN]
    assert events == []
    assert mark_in(tmp_path) is None
    again = await runtime.runner.run(NAME)  # whoever runs it once more all the same makes no second proposal
    assert (again.proposals, again.duplicates) == ((), 1)
    assert len(await runtime.proposals.list()) == 1


@pytest.mark.crash
@pytest.mark.parametrize(("trigger", "attempts"), [("schedule", [3, 2, 1]), ("manual", [1, 1, 1])])
async def test_the_third_crash_parks_the_agent_with_one_notification(
    tmp_path: Path, open_: Open, trigger: str, attempts: list[int]
) -> None:
    logs = []
    for code in (-9, -9, -9, 0, 0):  # from the fourth start on nobody runs it
        ended, log = await started(tmp_path, "analyze", trigger)
        assert ended == code, log
        logs.append(log)
    assert "".join(logs).count("ERROR an agent is quarantined and no longer run on schedule") == 1
    assert "ERROR" in logs[3]
    runtime, events = await open_()
    assert await runtime.runner.recover([NAME]) == ()
    assert events == []
    runs = await runtime.runs.list()
    assert [(run.outcome, run.attempt) for run in runs] == [(O.INTERRUPTED, attempt) for attempt in attempts]
    status = await runtime.states.get(NAME)
    assert (status.state, status.reason, status.by) == (AgentState.QUARANTINED, PARKED, "askfirst")
    skipped = [(each.due, each.fate, each.reason) for each in await runtime.due_times.list()]
    assert skipped == ([(START, Fate.SKIPPED, PARKED)] if trigger == "schedule" else [])
    assert (await runtime.runner.run(NAME)).outcome is O.SUCCEEDED  # by hand it may
    assert (await runtime.states.get(NAME)).state is AgentState.ACTIVE


PLUGIN = """
import os, signal
from agents.base import BaseAgent

class DeadlyAgent(BaseAgent):
    every = "1s"

    async def analyze(self):
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.crash
@pytest.mark.process
def test_a_daemon_that_a_plugin_takes_down_again_and_again_parks_it_and_stays_up(tmp_path: Path) -> None:
    program = Program.with_garden(tmp_path, "leeks dry")
    (tmp_path / "data" / "plugins" / "deadly.py").write_text(PLUGIN)
    config = tmp_path / "config" / "askfirst.toml"
    config.write_text(config.read_text() + '[agents.deadly]\nisolation = "none"\n')
    for _ in range(3):
        with program.running("run") as daemon:
            assert daemon.wait(LIMIT_S) == -9
    with program.running("run") as daemon:
        assert daemon.stderr is not None
        log = next(line for line in daemon.stderr if "an agent is quarantined" in line)
        assert PARKED in log
        seen_now(lambda: program.call("agents", "why", "deadly", "--json").code == 0)
        why = program.call("agents", "why", "deadly", "--json").data
        assert (why["status"]["state"], why["status"]["reason"]) == ("quarantined", PARKED)
        assert [(due["fate"], due["reason"]) for due in why["due_times"]][-1] == ("skipped", PARKED)
        runs = program.call("runs", "list", "--agent", "deadly", "--json").data
        assert [run["outcome"] for run in runs] == ["interrupted"] * 3
        assert all(run["due"] is not None for run in runs)
        daemon.terminate()
        assert daemon.wait(LIMIT_S) == 0


# --- with marks as kills leave them


async def test_the_run_ended_neither_later_than_now_nor_than_its_limit_allowed(
    tmp_path: Path, open_: Open
) -> None:
    for passed, seconds in (
        (timedelta(minutes=3), 180),
        (timedelta(days=30), 600),
        (timedelta(days=-1), 0),  # the clock was set back
    ):
        left_behind(tmp_path)
        runtime, _ = await open_(now=Clock(START + passed))
        (result,) = await runtime.runner.recover([NAME])
        assert (result.started_at, result.seconds) == (START, seconds)


async def test_finding_the_same_crash_twice_records_and_counts_it_once(tmp_path: Path, open_: Open) -> None:
    runtime, events = await open_()
    mark = left_behind(tmp_path, crashes=1)
    assert len(await runtime.runner.recover([NAME])) == 1
    once = mark_in(tmp_path)
    assert once is not None
    assert (once.crashes, once.under_way) == (2, False)
    lock_file(tmp_path).write_bytes(to_bytes(mark))  # killed between the commit and the new mark
    assert await runtime.runner.recover([NAME]) == ()
    assert mark_in(tmp_path) == once
    assert len(events) == len(await runtime.runs.list()) == 1


async def test_parking_twice_is_parking_once(
    tmp_path: Path, open_: Open, caplog: pytest.LogCaptureFixture
) -> None:
    runtime, events = await open_()
    mark = left_behind(tmp_path, crashes=2)
    for _ in range(2):
        await runtime.runner.recover([NAME])
        lock_file(tmp_path).write_bytes(to_bytes(mark))
    assert len([event for event in events if isinstance(event, AgentStateChanged)]) == 1
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1
    assert [each.fate for each in await runtime.due_times.list()] == [Fate.SKIPPED]


async def test_what_is_told_when_an_agent_is_parked(tmp_path: Path, open_: Open) -> None:
    runtime, events = await open_()
    left_behind(tmp_path, crashes=2, attempt=3)
    (result,) = await runtime.runner.recover([NAME])
    status = await runtime.states.get(NAME)
    (settled,) = await runtime.due_times.list()
    assert settled == DueTime(agent=NAME, due=START, last=START, fate=Fate.SKIPPED, reason=PARKED)
    assert len(events) == 3
    assert AgentStateChanged(status=status, before=AgentState.ACTIVE) in events
    assert RunFinished(result=result, status=status) in events
    assert DueTimesSettled(due_times=(settled,)) in events
    assert status.config_digest == config_digest(await runtime.runner.config(NAME))
    assert mark_in(tmp_path) is None  # resumed, it may crash three times again


async def test_the_record_of_a_parked_run_is_whole_or_not_there(tmp_path: Path, open_: Open) -> None:
    from sqlalchemy import text

    runtime, events = await open_()
    mark = left_behind(tmp_path, crashes=2)
    async with runtime.db.write() as connection:
        await connection.execute(
            text("CREATE TRIGGER stop BEFORE INSERT ON agent_states BEGIN SELECT raise(ABORT, 'full'); END")
        )
    with pytest.raises(StoreError):
        await runtime.runner.recover([NAME])
    assert (await runtime.runs.list(), await runtime.due_times.list(), events) == ((), (), [])
    assert mark_in(tmp_path) == mark  # to be found at the next start


async def test_a_paused_agent_stays_paused_whatever_it_does(tmp_path: Path, open_: Open) -> None:
    runtime, events = await open_()
    before = await runtime.controls.pause(NAME, "ana")
    left_behind(tmp_path, crashes=2, trigger="manual", due=None)
    await runtime.runner.recover([NAME])
    assert await runtime.states.get(NAME) == before
    assert [type(event) for event in events] == [AgentStateChanged, RunFinished]


async def test_an_agent_that_another_program_runs_is_left_alone(tmp_path: Path, open_: Open) -> None:
    runtime, _ = await open_()
    mark = left_behind(tmp_path)
    lock = os.open(lock_file(tmp_path), os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert await runtime.runner.recover([NAME]) == ()
    os.close(lock)
    assert mark_in(tmp_path) == mark
    assert len(await runtime.runner.recover([NAME])) == 1


async def test_agents_without_a_mark_of_ours_are_passed_over_and_make_no_file(
    tmp_path: Path, open_: Open
) -> None:
    runtime, _ = await open_()
    names = [NAME, "nobody", "../askfirst.sqlite3", "folder", "link"]
    assert await runtime.runner.recover(names) == ()
    assert not (tmp_path / "data" / "locks").exists()
    lock_file(tmp_path).write_bytes(to_bytes(Mark(run_id="a", trigger="once", started_at=START))[:100])
    (tmp_path / "data" / "locks" / "folder.run").mkdir()
    (tmp_path / "data" / "locks" / "link.run").symlink_to(lock_file(tmp_path))
    assert await runtime.runner.recover(names) == ()
    assert (await runtime.runner.run(NAME, "schedule", due=START)).attempt == 1


async def test_a_mark_of_an_agent_that_is_gone_is_settled_too(tmp_path: Path, open_: Open) -> None:
    runtime, _ = await open_()
    mark = left_behind(tmp_path, crashes=2)
    gone = lock_file(tmp_path).with_name("gone.run")
    lock_file(tmp_path).rename(gone)
    (result,) = await runtime.runner.recover(["gone"])
    assert (result.run_id, result.agent) == (mark.run_id, "gone")
    assert (await runtime.states.get("gone")).state is AgentState.QUARANTINED


# --- without `recover`: the next run finds it


async def test_the_next_run_records_the_interrupted_one_and_counts_on(tmp_path: Path, open_: Open) -> None:
    runtime, _ = await open_()
    mark = left_behind(tmp_path)
    result = await runtime.runner.run(NAME, "schedule", due=START)
    assert (result.outcome, result.attempt) == (O.SUCCEEDED, 2)
    assert {run.run_id for run in await runtime.runs.list()} == {mark.run_id, result.run_id}
    assert mark_in(tmp_path) is None


async def test_an_agent_that_took_the_program_down_three_times_is_no_longer_run_by_itself(
    tmp_path: Path, open_: Open
) -> None:
    runtime, _ = await open_()
    left_behind(tmp_path, crashes=1)
    assert (await runtime.runner.run(NAME, "schedule", due=START + timedelta(hours=1))).attempt == 1
    left_behind(tmp_path, crashes=2)
    parked = await runtime.runner.run(NAME, "schedule", due=START)
    assert parked.outcome is O.FAILED
    assert parked.error == f"not run: {PARKED}; read the log, mend it, then: askfirst agents resume {NAME}"
    assert (await runtime.due_times.settled(NAME, START)) == DueTime(
        agent=NAME, due=START, last=START, fate=Fate.SKIPPED, reason=PARKED
    )
    assert (await runtime.runner.run(NAME, "once")).outcome is O.SUCCEEDED
    assert (await runtime.runner.run(NAME, "schedule")).outcome is O.SUCCEEDED


async def test_crashes_in_runs_for_different_due_times_are_crashes_in_a_row(
    tmp_path: Path, open_: Open
) -> None:
    runtime, _ = await open_()
    for number in range(3):  # the machine was down longer than an interval each time
        due = START + timedelta(hours=number)
        left = mark_in(tmp_path) if number else None
        crashes = 0 if left is None else left.crashes
        left_behind(tmp_path, run_id=new_run_id(due), due=due, crashes=crashes)
        await runtime.runner.recover([NAME])
    assert (await runtime.states.get(NAME)).state is AgentState.QUARANTINED


async def test_a_run_that_ends_forgets_the_crashes_before_it(tmp_path: Path, open_: Open) -> None:
    runtime, _ = await open_()
    left_behind(tmp_path, crashes=1)
    await runtime.runner.recover([NAME])
    await runtime.runner.run(NAME, "schedule", due=START)
    assert mark_in(tmp_path) is None
    assert lock_file(tmp_path).stat().st_size == SIZE


@pytest.mark.skipif(not hasattr(os, "fdatasync"), reason="this system has only fsync")
async def test_only_runs_that_come_by_themselves_cost_a_flush(
    open_: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[int] = []
    flush = os.fdatasync

    def counted(descriptor: int) -> None:
        flushed.append(descriptor)
        flush(descriptor)

    monkeypatch.setattr(os, "fdatasync", counted)
    runtime, _ = await open_()
    for trigger in ("once", "manual"):
        await runtime.runner.run(NAME, trigger)
    assert flushed == []
    await runtime.runner.run(NAME, "schedule", due=START)
    assert len(flushed) == 1
    await runtime.runner.run(NAME, "webhook")
    assert len(flushed) == 2


async def test_a_lock_file_that_cannot_be_written_is_said_and_nothing_is_run(
    tmp_path: Path, open_: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime, events = await open_()

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StoreError, match=r"locks/killer\.run .* No space left on device; check the disk"):
        await runtime.runner.run(NAME)
    assert events == []
