"""StallWatch: whoever keeps the loop is named with the line, once; nothing is woken while nothing runs."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from agents.base import BaseAgent
from agents.proposal import Proposal
from daemon.app import Daemon
from daemon.errors import ExitCode
from daemon.events import RunBegun, RunFinished, RunOutcome, RunResult
from daemon.observability.stalls import StallWatch
from daemon.settings import DaemonSettings, Settings, WebSettings
from llm import LLMConfig
from tests.support.waiting import seen

AFTER_S = 0.2
NOW = datetime(2026, 3, 1, tzinfo=UTC)
BEGUN = RunBegun(agent="garden", run_id="run1", trigger="manual")
FINISHED = RunFinished(
    result=RunResult(
        run_id="run1",
        agent="garden",
        trigger="manual",
        outcome=RunOutcome.SUCCEEDED,
        started_at=NOW,
        finished_at=NOW,
    )
)


@asynccontextmanager
async def watched(
    after: float = AFTER_S, late: Callable[[float], None] | None = None
) -> AsyncIterator[StallWatch]:
    watch = StallWatch(after, late)
    watch.start()
    try:
        yield watch
    finally:
        await watch.aclose()


def told(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "daemon.observability.stalls"]


def blocks(seconds: float) -> None:
    time.sleep(seconds)  # THE LINE


def line_of(mark: str) -> int:
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    return next(number for number, line in enumerate(lines, 1) if line.endswith(f"# {mark}"))


async def run_of(name: str, work: Callable[[], Any]) -> None:
    async def call() -> None:
        work()

    await asyncio.create_task(call(), name=f"run of {name}")


async def test_a_run_that_blocks_is_named_with_its_line_once_and_then_how_long_it_took(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with watched() as watch:
        watch.note(BEGUN)
        await run_of("garden", lambda: blocks(4 * AFTER_S))
        await seen(lambda: watch.seconds > 0)
        watch.note(FINISHED)
    stands, goes_on = told(caplog)
    assert f"garden keeps the event loop at {__file__}:{line_of('THE LINE')}" in stands.getMessage()
    assert (stands.agent, stands.run_id, stands.levelname) == ("garden", "run1", "WARNING")  # type: ignore[attr-defined]
    assert "in blocks" in stands.stack  # type: ignore[attr-defined]
    assert goes_on.seconds >= 3 * AFTER_S  # type: ignore[attr-defined]
    assert watch.stalls == 1
    assert watch.seconds == pytest.approx(goes_on.seconds, abs=0.01)  # type: ignore[attr-defined]


async def test_what_is_no_run_is_named_by_its_task(caplog: pytest.LogCaptureFixture) -> None:
    async with watched() as watch:
        watch.note(BEGUN)
        task = asyncio.current_task()
        assert task is not None
        task.set_name("the cook")
        blocks(3 * AFTER_S)
        await seen(lambda: watch.seconds > 0)
    assert "the cook keeps the event loop" in told(caplog)[0].getMessage()


async def test_a_loop_that_comes_round_in_time_is_no_stall(caplog: pytest.LogCaptureFixture) -> None:
    async with watched(after=2) as watch:
        watch.note(BEGUN)
        until = time.monotonic() + 1.2
        while time.monotonic() < until:
            await run_of("garden", lambda: blocks(0.02))
        assert (watch.stalls, told(caplog)) == (0, [])


async def test_nothing_is_woken_while_nothing_runs() -> None:
    async with watched(after=0.05) as watch:
        threads = [thread for thread in threading.enumerate() if thread.name == "stall watch"]
        assert len(threads) == 1
        native = threads[0].native_id
        status = Path(f"/proc/self/task/{native}/status")
        if sys.platform != "linux":
            pytest.skip("the system does not count how often a thread is woken")

        def woken() -> int:
            return int(status.read_text().split("\nvoluntary_ctxt_switches:")[1].split()[0])

        watch.note(BEGUN)
        busy = await asyncio.to_thread(woken)
        await asyncio.sleep(0.5)
        assert await asyncio.to_thread(woken) - busy > 5
        watch.note(FINISHED)
        await asyncio.sleep(0.2)
        idle = await asyncio.to_thread(woken)
        await asyncio.sleep(0.5)
        assert await asyncio.to_thread(woken) == idle


STOPPED = """
import asyncio, logging, sys
sys.path.insert(0, sys.argv[1])
from daemon.events import RunBegun
from daemon.observability.stalls import StallWatch
logging.basicConfig(level=logging.WARNING)
async def main():
    watch = StallWatch(0.2)
    watch.start()
    watch.note(RunBegun(agent="garden", run_id="run1", trigger="manual"))
    await asyncio.sleep(0.3)
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await asyncio.sleep(0.5)
    print(watch.stalls)
asyncio.run(main())
"""


def test_a_program_that_was_stopped_as_a_whole_has_not_stalled() -> None:
    root = str(Path(__file__).parents[2])
    with subprocess.Popen(
        [sys.executable, "-P", "-c", STOPPED, root],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(1)
        os.kill(process.pid, signal.SIGCONT)
        out, err = process.communicate(b"\n", timeout=30)
    assert (out, err) == (b"0\n", b"")


class Absorbed(BaseAgent):
    """Thinks hard, without a pause."""

    name = "absorbed"

    async def analyze(self) -> list[Proposal]:
        until = time.monotonic() + 1
        all(time.monotonic() < until for _ in itertools.repeat(None))  # IT SPINS HERE
        return []


async def test_the_daemon_names_an_agent_of_its_own_process_that_blocks(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(
        daemon=DaemonSettings(
            data_dir=tmp_path,
            log_format="json",
            stall_after=timedelta(seconds=0.2),
            stop_grace=timedelta(seconds=1),
        ),
        web=WebSettings(enabled=False),
        base_dir=tmp_path,
        agents={"absorbed": {}},
    )
    daemon = Daemon(settings, llm_config=LLMConfig(backend="mock"), agents=[Absorbed])
    running = asyncio.create_task(daemon.run_until_stopped())
    await asyncio.wait({running, asyncio.create_task(daemon.ready.wait())}, return_when="FIRST_COMPLETED")
    await daemon._scheduler.run_once("absorbed")
    daemon.lifecycle.ask_to_stop("the test")
    assert await running is ExitCode.OK
    assert daemon.stalls is not None
    assert daemon.stalls.stalls == 1
    text = capfd.readouterr().err
    line = next(line for line in text.splitlines() if "stands still" in line)
    number = await asyncio.to_thread(line_of, "IT SPINS HERE")
    assert '"agent":"absorbed"' in line.replace(": ", ":"), line
    assert f"test_stalls.py:{number}" in line


async def test_how_long_the_loop_took_to_come_round_is_told_each_time_also_when_that_is_no_stall() -> None:
    times: list[float] = []
    blocking = threading.Event()

    def ask(watch: StallWatch) -> None:
        blocking.wait()
        watch._ask_round()

    async with watched(after=30, late=times.append) as watch, asyncio.timeout(60):
        while max(times, default=0.0) < 0.1:
            blocking.clear()
            asked = asyncio.create_task(asyncio.to_thread(ask, watch))
            await asyncio.sleep(0)
            blocking.set()
            blocks(0.3)
            await asked
    assert watch.stalls == 0
