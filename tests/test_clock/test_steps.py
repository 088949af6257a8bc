"""The clock is set, by seconds or decades, or the process stands still: nothing is missed or comes twice."""

from __future__ import annotations

import json
import signal
import sqlite3
import time
import urllib.error
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.support.background import Running, running
from tests.support.faketime import WallClock
from tests.support.waiting import seen_now

pytestmark = [pytest.mark.process, pytest.mark.clock]

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
YEAR = 365.25 * DAY

SILENCE = 30.0
"""Far above what a busy machine delays, and far below what a program waits that believes the clock."""

PULSE = '\n[agents.pulse]\nevery = "1s"\nisolation = "none"\n'
"""Another agent that is due each second: a program that is not idle sees at once that its clock was set."""

NOTICED = 6
"""Seconds within which it has seen that, far above what it takes."""

# Each run writes a line with the monotonic clock, which no step touches, and the wall clock. It is in the
# daemon's own process, so that it has that clock, and can tell how long the loop was kept from other work.
WATCHER = """
import asyncio
import resource
import time
from agents import BaseAgent


class PulseAgent(BaseAgent):
    async def analyze(self):
        return []


class WatcherAgent(BaseAgent):
    every = "1s"
    lag = 0.0
    watch = None

    async def analyze(self):
        cls = type(self)
        if cls.watch is None:
            cls.watch = asyncio.create_task(self.measure())
        lag, cls.lag = cls.lag, 0.0
        size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with open(self.context.base_dir / f"{self.name}.ticks", "a") as file:
            file.write(f"{time.monotonic()} {time.time()} {lag} {size}\\n")
        return []

    @classmethod
    async def measure(cls):
        while True:
            began = time.thread_time()  # what it computed: libfaketime makes it wait, which is not its fault
            await asyncio.sleep(0.005)
            cls.lag = max(cls.lag, time.thread_time() - began)
"""

CONFIGURATION = """
[daemon]
data_dir = "data"

[llm]
backend = "mock"

[web]
port = 0

[retention]
runs = "3650d"

[agents.watcher]
isolation = "none"
{schedule}
"""


@dataclass(frozen=True)
class Tick:
    """One run: by the monotonic clock, by the wall clock, the loop's longest work before it, memory in KB."""

    real: float
    wall: float
    lag: float
    size: int


@dataclass
class Watched:
    """The program under a clock that can be set."""

    folder: Path
    clock: WallClock
    program: Running = field(init=False)

    def ticks(self) -> list[Tick]:
        path = self.folder / "watcher.ticks"
        lines = path.read_text().splitlines() if path.exists() else []
        return [Tick(float(a), float(b), float(c), int(d)) for a, b, c, d in map(str.split, lines)]

    def more(self, count: int, limit: float = 60) -> list[Tick]:
        """Wait for so many more runs; returns all of them."""
        before = len(self.ticks())
        seen_now(lambda: len(self.ticks()) >= before + count, limit=limit)
        return self.ticks()

    def due_times(self) -> list[dict[str, Any]]:
        with closing(sqlite3.connect(self.folder / "data" / "askfirst.sqlite3")) as connection:
            connection.row_factory = sqlite3.Row
            rows = connection.execute(
                "select * from due_times where agent = 'watcher' order by due"
            ).fetchall()
        return [dict(row) for row in rows]

    def due_count(self) -> int:
        """How many due times there were, whatever became of them."""
        return sum(row["count"] for row in self.due_times())

    def runs(self) -> int:
        with closing(sqlite3.connect(self.folder / "data" / "askfirst.sqlite3")) as connection:
            return int(connection.execute("select count(*) from runs where agent = 'watcher'").fetchone()[0])

    def ready(self) -> bool:
        """Whether everything works; on a busy machine a part may be slow to say so."""
        try:
            return bool(json.loads(self.program.get("/readyz"))["status"] == "ready")
        except urllib.error.HTTPError:
            return False

    def stop(self) -> None:
        self.program.process.terminate()
        assert self.program.wait() == 0


def written(folder: Path, schedule: str) -> None:
    plugins = folder / "data" / "plugins"
    plugins.mkdir(parents=True, mode=0o700, exist_ok=True)
    (folder / "data").chmod(0o700)
    (plugins / "watcher.py").write_text(WATCHER)
    (folder / "askfirst.toml").write_text(CONFIGURATION.format(schedule=schedule))


@contextmanager
def watched(folder: Path, schedule: str, clock: WallClock | None = None) -> Iterator[Watched]:
    written(folder, schedule)
    found = Watched(folder, clock or WallClock(folder / "clock"))
    with running(folder, found.clock.environment) as program:
        found.program = program
        program.line("askfirst is running")
        yield found


STEPS = {
    "back 3 s": -3.0,
    "forward 3 s": 3.0,
    "back half an hour": -30 * MINUTE,
    "forward two hours": 2 * HOUR,
    "back six hours": -6 * HOUR,
    "forward a month": 30 * DAY,
    "back ten years": -10 * YEAR,
    "forward sixty years": 60 * YEAR,
}


def test_steps_of_any_size_miss_nothing_double_nothing_and_stop_nothing(tmp_path: Path) -> None:
    with watched(tmp_path, 'every = "1s"') as found:
        quiet = found.more(6)
        calm = max(tick.lag for tick in quiet)
        size = quiet[-1].size
        for step in STEPS.values():
            found.clock.step(step)
            found.more(3)
        seen_now(found.ready)
        found.stop()
    runs = found.ticks()
    gaps = [later.real - earlier.real for earlier, later in pairwise(runs)]
    passed = runs[-1].real - runs[0].real
    # Whatever the clock said, a due time came each second of real time: one more or less at a step.
    assert len(runs) <= passed + 2
    assert abs(found.due_count() - passed) <= len(STEPS) + 3
    assert max(gaps) < SILENCE
    # A list of all that was missed would take seconds and hundreds of megabytes: bare APScheduler's does.
    assert max(tick.lag for tick in runs) < 0.05 + 10 * calm
    assert max(tick.size for tick in runs) < size + 8 * 1024
    told = [
        line for line in found.program.lines if line["event"] == "the clock was set, or the machine slept"
    ]
    assert len(told) == len(STEPS)
    # Every due time that was run has one row, and no due time was run twice.
    rows = found.due_times()
    ran = [row for row in rows if row["fate"] == "run"]
    assert len({row["due"] for row in ran}) == len(ran) == found.runs() == len(runs)


def test_a_board_that_wakes_up_in_1970_runs_its_agents_before_and_after_it_learns_the_time(
    tmp_path: Path,
) -> None:
    with watched(tmp_path, 'every = "1s"') as found:
        found.more(2)
        found.stop()
    clock = WallClock(tmp_path / "clock2")
    clock.set(datetime(1970, 1, 1, 0, 0, 20, tzinfo=UTC))
    with watched(tmp_path, 'every = "1s"', clock) as found:
        before = found.more(3)
        clock.set(datetime.now(UTC))
        after = found.more(4)
        found.stop()
    own = after[len(before) - 3 :]
    gaps = [later.real - earlier.real for earlier, later in pairwise(own)]
    assert max(gaps) < SILENCE
    assert len(own) <= own[-1].real - own[0].real + 2
    assert max(tick.size for tick in own) < own[0].size + 8 * 1024


def test_a_long_interval_keeps_its_remaining_time_whatever_the_clock_says(tmp_path: Path) -> None:
    with watched(tmp_path, 'every = "8s"') as found:
        (first,) = found.more(1)
        for step in (-2 * HOUR, 5 * DAY, -20 * YEAR):
            found.clock.step(step)
            time.sleep(1)  # the program looks at the clock while the time goes on
        second = found.more(1)[-1]
        found.stop()
    # The first may have been seconds late on a busy machine; one that a step sets off comes within three.
    assert 4 < second.real - first.real < 8 + SILENCE


def test_a_clock_that_is_set_back_over_a_due_time_does_not_run_it_again(tmp_path: Path) -> None:
    eleven = datetime(2027, 5, 4, 11, tzinfo=UTC)
    schedule = 'cron = "0 11 * * *"\nschedule_timezone = "UTC"' + PULSE
    clock = WallClock(tmp_path / "clock")
    clock.set(eleven - timedelta(minutes=10))
    with watched(tmp_path, schedule, clock) as found:
        clock.set(eleven - timedelta(seconds=2))
        (first,) = found.more(1)
        assert 0 <= first.wall - eleven.timestamp() < SILENCE
        clock.set(eleven - timedelta(seconds=2))
        time.sleep(NOTICED)  # long enough to see the step, and to pass the due time again
        clock.set(eleven + timedelta(hours=23, minutes=59, seconds=58))  # the next day is another due time
        second = found.more(1)[-1]
        found.stop()
    assert len(found.ticks()) == 2
    assert second.wall - first.wall > 0.9 * DAY
    assert [row["fate"] for row in found.due_times()] == ["run", "run"]


def test_daylight_saving_brings_each_day_one_run(tmp_path: Path) -> None:
    # Berlin, 2026: in the night to 25 October 02:30 comes at 00:30 and at 01:30 UTC. In 2027 the hour from
    # two to three is left out in the night to 28 March: what falls into it comes at 01:00 UTC.
    clock = WallClock(tmp_path / "clock")
    clock.set(datetime(2026, 10, 25, 0, 29, 50, tzinfo=UTC))
    schedule = 'cron = "30 2 * * *"\nschedule_timezone = "Europe/Berlin"' + PULSE
    with watched(tmp_path, schedule, clock) as found:
        clock.set(datetime(2026, 10, 25, 0, 29, 58, tzinfo=UTC))
        found.more(1)
        clock.set(datetime(2026, 10, 25, 1, 29, 58, tzinfo=UTC))
        time.sleep(NOTICED)  # long enough to see the step, and to run it again if it did so
        assert len(found.ticks()) == 1
        found.stop()
    clock.set(datetime(2027, 3, 28, 0, 50, tzinfo=UTC))
    with watched(tmp_path, schedule, clock) as found:
        seen_now(lambda: len(found.ticks()) == 2)  # one for all the days between
        clock.set(datetime(2027, 3, 28, 0, 59, 58, tzinfo=UTC))
        found.more(1)
        found.stop()
    assert [row["due"][:16] for row in found.due_times() if row["fate"] == "run"] == [
        "2026-10-25T00:30",
        "2027-03-27T01:30",
        "2027-03-28T01:00",
    ]


def test_a_process_that_stood_still_catches_up_once(tmp_path: Path) -> None:
    with watched(tmp_path, 'every = "1s"') as found:
        found.more(2)
        process = found.program.process
        for _ in range(2):
            process.send_signal(signal.SIGSTOP)
            time.sleep(4)
            process.send_signal(signal.SIGCONT)
            found.more(2)
        found.stop()
    runs = found.ticks()
    assert len(runs) <= runs[-1].real - runs[0].real + 2
    assert max(later.real - earlier.real for earlier, later in pairwise(runs)) < SILENCE
    rows = found.due_times()
    settled = sum(row["count"] for row in rows if row["fate"] != "run")
    assert settled >= 4  # what came due meanwhile has a row too
