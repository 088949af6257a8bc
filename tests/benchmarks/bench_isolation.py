"""What a process of its own costs a run, beside a bare Python and one that imports what every agent needs."""

from __future__ import annotations

import asyncio
import resource
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from agents.context import AgentContext
from agents.registry import AgentEntry
from daemon.worker.host import Launch, Worker
from daemon.worker.limits import Limits
from tests.support.plugins import plugin_folder

ROUNDS = 9
IMPORTS = "python -c 'import agents.base, agents.plugins'"
AGENT = """
from agents import BaseAgent
class Idle(BaseAgent):
    async def analyze(self):
        return []
"""


async def python(code: str) -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-P", "-c", code)
    await process.wait()


def launch(file: Path) -> Launch:
    limits = Limits(agent="idle", memory_mb=1024, cpu_seconds=60, max_bytes=1_000_000)
    return Launch(entry=AgentEntry("idle", "plugin", str(file)), limits=limits)


async def isolated_run(file: Path, base: Path, orders: int = 1) -> None:
    worker = Worker(launch(file), AgentContext(base_dir=base))
    try:
        for _ in range(orders):
            await worker.order("analyze", still=[])
    finally:
        await worker.end()


def cpu() -> float:
    """Seconds of CPU of this process and of all children that have ended."""
    times = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in times)


async def measured(contenders: dict[str, Callable[[], Awaitable[None]]]) -> dict[str, tuple[float, float]]:
    """Milliseconds of wall time and of CPU for each contender: medians of rounds in turn."""
    walls: dict[str, list[float]] = {name: [] for name in contenders}
    cpus: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(ROUNDS + 1):
        for name, work in contenders.items():
            began, used = time.perf_counter(), cpu()
            await work()
            if number:  # the first round fills the caches of the disk
                walls[name].append((time.perf_counter() - began) * 1000)
                cpus[name].append((cpu() - used) * 1000)
    return {name: (statistics.median(walls[name]), statistics.median(cpus[name])) for name in contenders}


async def test_an_isolated_run_costs_little_more_than_the_imports_that_it_needs(tmp_path: Path) -> None:
    file = plugin_folder(tmp_path, idle=AGENT) / "idle.py"
    rows = await measured(
        {
            "python -c pass": lambda: python("pass"),
            IMPORTS: lambda: python("import agents.base, agents.plugins"),
            "a run in a process of its own": lambda: isolated_run(file, tmp_path),
            "the same with 100 orders": lambda: isolated_run(file, tmp_path, 100),
        }
    )
    floor = rows["python -c pass"]
    print("\nOne run of an agent that does nothing")
    print(f"  {'':48}{'wall ms':>10}{'CPU ms':>10}{'ratio':>9}")
    for name, (wall, used) in rows.items():
        print(f"  {name:48}{wall:>10.1f}{used:>10.1f}{used / floor[1]:>8.1f}x")
    imports = rows[IMPORTS]
    run, many = rows["a run in a process of its own"], rows["the same with 100 orders"]
    print(f"  one order more: {(many[1] - run[1]) / 99:.2f} ms of CPU")
    assert run[1] < 3 * imports[1]
