"""The real program in the background, with one plugin as its agent and its log in a file."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.program import Program
from tests.support.waiting import seen_now

CONFIGURATION = """
[daemon]
data_dir = "data"
stop_grace = "{grace}"

[llm]
backend = "mock"

[web]
port = {port}

[agents.{agent}]
every = "1s"
"""

# Each run of this agent writes a line with the monotonic clock, which no step touches, and the wall clock.
TICKER = """
import time
from agents import BaseAgent

class TickerAgent(BaseAgent):
    every = "1s"

    async def analyze(self):
        with open(self.context.base_dir / "ticks", "a") as file:
            file.write(f"{time.monotonic()} {time.time()}\\n")
        return []
"""


@dataclass
class Running:
    """The program in the background, its log in a file."""

    process: subprocess.Popen[Any]
    folder: Path

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The log so far."""
        text = (self.folder / "log").read_text()
        return [json.loads(line) for line in text.splitlines() if line.startswith("{") and line.endswith("}")]

    def line(self, event: str) -> dict[str, Any]:
        """The first line of that event, waiting for it."""
        seen_now(lambda: self.has(event) or self.process.poll() is not None)
        found = [line for line in self.lines if line["event"] == event]
        assert found, f"{event!r} is not in the log:\n{(self.folder / 'log').read_text()}"
        return found[0]

    def has(self, event: str) -> bool:
        return any(line["event"] == event for line in self.lines)

    def get(self, path: str) -> str:
        """What the program answers on `path`."""
        address = self.line("askfirst is running")["address"]
        with urllib.request.urlopen(f"{address}{path}", timeout=30) as response:
            return str(response.read().decode())

    def wait(self, limit: float = 60) -> int:
        """The exit code."""
        return self.process.wait(limit)


def configure(folder: Path, agent: str, code: str, *, grace: str = "1s", port: int = 0) -> None:
    text = CONFIGURATION.format(agent=agent, grace=grace, port=port)
    (folder / "askfirst.toml").write_text(text)
    (folder / "data" / "plugins" / f"{agent}.py").write_text(code)


@contextmanager
def running(
    folder: Path, environment: dict[str, str] | None = None, *, stderr: int | None = None
) -> Iterator[Running]:
    """The program; killed at the end if it is still there."""
    program = Program(folder)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            program.command("run", "--config", "askfirst.toml"),
            cwd=folder,
            env=program.whole_environment(environment or {}),
            stdout=subprocess.DEVNULL,
            stderr=log if stderr is None else stderr,
        )
        try:
            yield Running(process, folder)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def ticks(folder: Path) -> list[float]:
    """When the ticker ran, by a clock that nobody sets."""
    path = folder / "ticks"
    return [float(line.split()[0]) for line in path.read_text().splitlines()] if path.exists() else []
