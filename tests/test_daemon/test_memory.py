"""Memory, threads and open files over 100,000 runs: they do not grow. Nightly, since it takes its time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.stores import ROOT

pytestmark = [pytest.mark.process, pytest.mark.timeout(7200)]

# Runs agents as the daemon does, with the metrics and the log, and says now and then what the process holds.
PROGRAM = """
import asyncio, json, logging, os, pathlib, sys
from agents.base import BaseAgent
from daemon.events import EventBus
from daemon.observability.logging import EventLog, configure_logging
from daemon.observability.metrics import Metrics
from daemon.runtime import open_runtime
from tests.support.stores import settings_for, line

folder, runs, step = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])

class Quiet(BaseAgent):
    name = "quiet"
    async def analyze(self):
        return [line("the same", agent=self.name, expires_at=None)]

def held():
    status = dict(each.split(":", 1) for each in open("/proc/self/status"))
    return {"rss_kb": int(status["VmRSS"].split()[0]), "threads": int(status["Threads"]),
            "files": len(os.listdir("/proc/self/fd"))}

async def main():
    metrics, events = Metrics(dropped_lines=lambda: 0), EventBus()
    metrics.expect_agents({"quiet"})
    events.subscribe(metrics.observe_event)
    events.subscribe(EventLog().note)
    close = configure_logging("info", "json", secrets=())
    options = {"agents": [Quiet], "with_llm": False, "events": events}
    async with open_runtime(await settings_for(folder), **options) as runtime:
        for number in range(1, runs + 1):
            result = await runtime.runner.run("quiet", "schedule")
            assert result.outcome == "succeeded", result
            if number % step == 0:
                await metrics.scrape("")
                print(json.dumps(held()), flush=True)
    close()

asyncio.run(main())
"""


def held_over(folder: Path, runs: int, step: int) -> list[dict[str, int]]:
    """What the process holds after each `step` runs."""
    command = [sys.executable, "-c", PROGRAM, str(folder), str(runs), str(step)]
    with (folder / "log").open("w") as log:
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True, check=False)
    assert done.returncode == 0, (folder / "log").read_text()[-2000:]
    return [json.loads(each) for each in done.stdout.splitlines()]


def check(found: list[dict[str, int]], first: int, most_kb: int) -> None:
    """From the measurement number `first` on nothing grows."""
    settled = found[first:]
    grown = max(each["rss_kb"] for each in settled) - settled[0]["rss_kb"]
    assert grown < most_kb, found
    # The pool of asyncio.to_thread may still get a thread when two calls meet; it has a limit.
    assert max(each["threads"] for each in settled) <= settled[0]["threads"] + 2, found
    assert len({each["files"] for each in settled}) == 1, found


@pytest.mark.nightly
def test_a_hundred_thousand_runs_take_no_more_memory_than_twenty_thousand(tmp_path: Path) -> None:
    found = held_over(tmp_path, 100_000, 10_000)
    assert len(found) == 10
    check(found, first=1, most_kb=1024)  # SQLite's pages and Python's free lists fill up first


def test_nor_do_six_hundred_take_more_files_or_threads_than_two(tmp_path: Path) -> None:
    found = held_over(tmp_path, 600, 200)
    assert len(found) == 3
    check(found, first=0, most_kb=3 * 1024)
