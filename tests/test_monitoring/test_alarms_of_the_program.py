"""Alarms about the program itself and its machine, each made to come by causing it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.support.alarm_stage import Daemon, Stage, daemon, drained, stage
from tests.support.alarms import alarms
from tests.support.faketime import WallClock
from tests.support.tally import Note, note_watched
from tests.support.waiting import seen_now
from tests.test_monitoring.test_alarms_of_agents import CAUSED as CAUSED_BY_AGENTS

pytestmark = [pytest.mark.monitoring, pytest.mark.process]

CONFIGURATION = """
[daemon]
data_dir = "data"
log_format = "json"
min_free_bytes = 1000000

[web]
port = {port}

[llm]
backend = "mock"

[agents.sleeper]
isolation = "none"
cron = "* * * * *"
catch_up = "skip"

[agents.shouter]
isolation = "none"
cron = "0 0 1 1 *"

[agents.ticker]
isolation = "none"
"""

AGENTS = {"sleeper": "rest", "shouter": "shout", "ticker": "rest"}

KEPT = frozenset({"AskfirstRestarting"})
"""Not quickened: on a busy machine four starts take longer than a quickened hour."""

TRIED_BY_PROMTOOL_ONLY = {
    "AskfirstDiskLow": "a disk that is nearly full",
    "AskfirstDiskFilling": "a disk that fills for a day",
    "AskfirstHousekeepingFailing": "a first look is taken two minutes after a start",
    "AskfirstDatabaseGrowing": "two weeks",
    "AskfirstModelSlow": "ten calls of half a minute each",
    "AskfirstCacheHitsFallen": "a week",
}
"""Those that nobody can cause within seconds, and what it would take."""


@dataclass
class Scene:
    """The stage, and the program on it with a clock that can be set."""

    stage: Stage
    daemon: Daemon
    clock: WallClock

    @property
    def labels(self) -> dict[str, str]:
        """What each alarm about the program says."""
        return {"instance": self.daemon.address}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("program")
    clock = WallClock(folder / "clock")
    found = daemon(folder, CONFIGURATION, AGENTS, **clock.environment)
    with stage(folder, found.address, keep=KEPT) as watching:
        found.start(stderr=subprocess.PIPE)
        try:
            seen_now(lambda: watching.prometheus.value("askfirst_build_info") == 1)
            yield Scene(watching, found, clock)
        finally:
            found.kill()


def test_every_alarm_is_caused_or_said_to_need_too_long() -> None:
    caused = {"AskfirstDown", "AskfirstAbsent", "AskfirstRestarting", "AskfirstStorageFull"}
    caused |= {"AskfirstLogLinesDropped", "AskfirstClockStepped", "AskfirstRunsMissed"}
    assert caused | CAUSED_BY_AGENTS.keys() | TRIED_BY_PROMTOOL_ONLY.keys() == alarms().keys()


def test_something_else_at_its_address_is_told(scene: Scene, record_property: Note) -> None:
    other = scene.stage.prometheus.address
    scene.stage.prometheus.targets(scene.daemon.address, other)
    scene.stage.arrives("AskfirstAbsent", {"instance": other})
    scene.stage.prometheus.targets(scene.daemon.address)
    scene.stage.ends("AskfirstAbsent", {"instance": other}, told=True)
    note_watched(record_property, alerts=1)


def test_log_lines_that_nobody_reads_are_told(scene: Scene, record_property: Note) -> None:
    scene.daemon.command("agents", "run", "shouter")
    scene.stage.arrives("AskfirstLogLinesDropped", scene.labels)
    process = scene.daemon.process
    assert process is not None
    assert process.stderr is not None
    drained(process.stderr)
    scene.stage.ends("AskfirstLogLinesDropped", scene.labels, told=True)
    note_watched(record_property, alerts=1)


def test_a_clock_that_is_set_and_the_runs_passed_over_are_told(scene: Scene, record_property: Note) -> None:
    # The alarm is silent about a step right after a start: it asks that the program was there 75 minutes ago.
    start = "process_start_time_seconds offset 11500ms"
    seen_now(lambda: bool(scene.stage.prometheus.query(start)))
    scene.clock.step(3600)
    scene.stage.arrives("AskfirstClockStepped", scene.labels)
    scene.stage.arrives("AskfirstRunsMissed", {"agent": "sleeper"})
    scene.stage.ends("AskfirstClockStepped", scene.labels, told=False)
    scene.stage.ends("AskfirstRunsMissed", {"agent": "sleeper"}, told=True)
    note_watched(record_property, alerts=2)


def test_a_full_disk_is_told(scene: Scene, record_property: Note) -> None:
    scene.daemon.reload("min_free_bytes = 1000000\n", "min_free_bytes = 1000000000000000\n")
    scene.stage.arrives("AskfirstStorageFull", scene.labels)
    scene.daemon.reload("min_free_bytes = 1000000000000000\n", "min_free_bytes = 1000000\n")
    scene.stage.ends("AskfirstStorageFull", scene.labels, told=True)
    note_watched(record_property, alerts=1)


def test_a_program_that_is_gone_and_one_that_is_started_again_and_again_are_told(
    scene: Scene, record_property: Note
) -> None:
    found, watching = scene.daemon, scene.stage.prometheus
    found.kill()
    scene.stage.arrives("AskfirstDown", scene.labels)
    starts: set[float] = set()
    for _ in range(4):
        found.start()
        seen_now(_a_new_one_of(lambda: watching.value("process_start_time_seconds"), starts))
        found.kill()
    found.start()
    scene.stage.ends("AskfirstDown", scene.labels, told=True)
    scene.stage.arrives("AskfirstRestarting", scene.labels)
    note_watched(record_property, alerts=2)


def _a_new_one_of(value: Callable[[], float | None], known: set[float]) -> Callable[[], bool]:
    """Whether the value is one that was not seen before, which is noted."""

    def look() -> bool:
        found = value()
        if found is None or found in known:
            return False
        known.add(found)
        return True

    return look
