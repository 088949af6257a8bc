"""What the program costs as a process, beside the floor: the interpreter, the libraries, silence."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agents.proposal import Proposal
from daemon.runtime import open_runtime
from tests.benchmarks.processes import (
    Cost,
    bench_environment,
    cost_of,
    daemon_ready,
    libraries_alone,
    whole_cpu,
)
from tests.support.program import Program
from tests.support.stores import LedgerAgent, line, settings_for

pytestmark = pytest.mark.timeout(600)

ROUNDS = 5
IDLE_S = 30.0
RUNS = 200

TEN_AGENTS = """
from agents import BaseAgent

class Each(BaseAgent):
    async def analyze(self):
        return []
"""


def row(name: str, figure: str, beside: str = "", goal: str = "") -> None:
    """Print one line."""
    print(f"  {name:46}{figure:>14}{beside:>28}   {goal}")


def without_agents(folder: Path) -> Program:
    """The program with a configuration that enables no agent; the web endpoints are on."""
    program = Program.with_garden(folder)
    config = folder / "config" / "askfirst.toml"
    config.write_text(config.read_text().replace("[agents.garden]\n", ""))
    return program


def settled(folder: Path, *, agents: int) -> tuple[Cost, Cost, Cost]:
    """The daemon when it is ready, when its start is over, and after it has idled."""
    program = Program.with_garden(folder) if agents else without_agents(folder)
    once = program.command("--once")
    subprocess.run(once, cwd=folder, env=bench_environment(program), capture_output=True, check=bool(agents))
    with daemon_ready(program) as (pid, ready):
        time.sleep(5 + 65 * agents)  # a first run is spread over a second per agent, and its file is read
        before = cost_of(pid)
        time.sleep(IDLE_S)
        return ready, before, cost_of(pid)


def test_ready_and_idle(tmp_path: Path) -> None:
    (tmp_path / "environment").mkdir()
    environment = bench_environment(Program(tmp_path / "environment"))
    libraries_alone(environment)  # its byte code is written
    floors = [libraries_alone(environment) for _ in range(ROUNDS)]
    floor_s, floor_mb = (statistics.median(getattr(f, key) for f in floors) for key in ("cpu_s", "rss_mb"))
    print("\nThe daemon with its web endpoints")
    for agents in (0, 1):
        folder = tmp_path / f"{agents}"
        folder.mkdir()
        ready, before, after = settled(folder, agents=agents)
        wake_ups = (after.wake_ups - before.wake_ups) / IDLE_S
        cpu = 100 * (after.cpu_s - before.cpu_s) / IDLE_S
        written = after.written - before.written
        libraries = f"libraries alone {floor_s:.2f} s"
        row(f"{agents} agents: CPU until it is ready", f"{ready.cpu_s:.2f} s", libraries, "goal 1 s")
        row("  memory", f"{after.rss_mb:.1f} MB", f"libraries alone {floor_mb:.1f} MB", "goal 52 MB")
        row("  wake-ups, idle", f"{wake_ups:.2f} /s", "", "goal 0.2 /s")
        row("  CPU, idle", f"{cpu:.4f} %", "", "goal 0.01 %")
        row("  written, idle", f"{written} bytes", f"in {IDLE_S:g} s", "goal 0")
        row("  threads, open files", f"{after.threads}, {after.files}")
        assert written == 0
        assert wake_ups <= 0.2
        assert ready.cpu_s < 2 * floor_s
        assert after.rss_mb < floor_mb + 20


def test_commands(tmp_path: Path) -> None:
    program = Program.with_garden(tmp_path)
    plugin = (tmp_path / "data" / "plugins" / "ten.py").write_text
    plugin(TEN_AGENTS.replace("class Each", "class Base") + _ten_classes())
    config = tmp_path / "config" / "askfirst.toml"
    tables = "".join(f'[agents.agent-{n}]\nisolation = "none"\n' for n in range(10))
    config.write_text(config.read_text().replace("[agents.garden]\n", tables))
    options = {"cwd": tmp_path, "env": bench_environment(program), "stderr": subprocess.DEVNULL}
    commands = {
        "interpreter": [sys.executable, "-P", "-c", "pass"],
        "--help": program.command("--help"),
        "--once": program.command("--once"),
    }
    samples: dict[str, list[float]] = {name: [] for name in commands}
    for command in commands.values():
        whole_cpu(command, **options)
    for _ in range(ROUNDS):
        for name, command in commands.items():
            samples[name].append(1e3 * whole_cpu(command, **options))
    floor, shown, once = (statistics.median(samples[name]) for name in commands)
    print("\nCommands, CPU")
    beside = f"interpreter alone {floor:.0f} ms"
    row("askfirst --help, over the interpreter", f"{shown - floor:.0f} ms", beside, "goal 60 ms")
    row("askfirst --once, 10 agents that ask nobody", f"{once:.0f} ms", beside, "goal 400 ms")
    assert shown - floor < 150
    assert once < 2_000


def _ten_classes() -> str:
    return "".join(f"\nclass Agent{n}(Base):\n    name = 'agent-{n}'\n" for n in range(10))


class Writer(LedgerAgent):
    """Makes so many proposals at each run."""

    name = "writer"
    each = 0

    async def analyze(self) -> list[Proposal]:
        names = (f"{self.context.run_id}-{number}" for number in range(self.each))
        return [line(name, agent=self.name, expires_at=None) for name in names]


@pytest.mark.parametrize("proposals", [0, 5])
async def test_bytes_of_a_run(tmp_path: Path, proposals: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Writer, "each", proposals)
    settings = await settings_for(tmp_path, writer={"max_open": 1_000_000})
    each: list[int] = []
    async with open_runtime(settings, agents=[Writer], with_llm=False) as runtime:
        await runtime.runner.run("writer")
        started = await asyncio.to_thread(cost_of)
        for _ in range(RUNS):
            before = await asyncio.to_thread(cost_of)
            await runtime.runner.run("writer")
            each.append((await asyncio.to_thread(cost_of)).written - before.written)
    ended = await asyncio.to_thread(cost_of)
    alone = statistics.median(each) / 1024
    handed, on_disk = (
        (getattr(ended, k) - getattr(started, k)) / RUNS / 1024 for k in ("written", "on_disk")
    )
    print(f"\nBytes of one run with {proposals} proposals")
    row("handed to the system at once", f"{alone:.1f} KB", "", "goal 40 KB")
    row("with its share of the writing back later", f"{handed:.1f} KB", f"{on_disk:.1f} KB in pages")
    assert alone <= 60
