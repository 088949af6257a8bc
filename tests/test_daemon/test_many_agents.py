"""A thousand agents in one program: it starts, runs them all, spread out, answers meanwhile, and stops."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import time
import urllib.request
from collections import Counter
from contextlib import closing
from datetime import datetime
from pathlib import Path

import pytest

from tests.support.program import Program
from tests.support.waiting import seen_now

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

AGENTS = 1_000
EVERY_S = 20
LIMIT_S = 120.0

PLUGIN = """
from agents import BaseAgent

class Base(BaseAgent):
    async def analyze(self):
        return []

for number in range({agents}):
    name = f"agent-{{number}}"
    words = {{"name": name, "__module__": __name__}}
    globals()[f"Agent{{number}}"] = type(f"Agent{{number}}", (Base,), words)
"""


@pytest.fixture
def program(tmp_path: Path) -> Program:
    program = Program.with_garden(tmp_path)
    (tmp_path / "data" / "plugins" / "many.py").write_text(PLUGIN.format(agents=AGENTS))
    config = tmp_path / "config" / "askfirst.toml"
    tables = "".join(
        f'[agents.agent-{number}]\nevery = "{EVERY_S}s"\nisolation = "none"\n' for number in range(AGENTS)
    )
    config.write_text(config.read_text().replace("[agents.garden]\n", tables))
    return program


def starts(program: Program) -> dict[str, datetime]:
    """When each agent's first run began."""
    path = program.folder / "data" / "askfirst.sqlite3"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        rows = connection.execute("SELECT agent, min(started_at) FROM runs GROUP BY agent")
        return {agent: datetime.fromisoformat(moment) for agent, moment in rows}


def address(process: subprocess.Popen[str]) -> str:
    """Where it answers, once it says so."""
    assert process.stderr
    for line in process.stderr:
        if '"askfirst is running"' in line:
            return str(json.loads(line)["address"])
    raise AssertionError("it ended without having said that it runs")


def test_a_thousand_agents_all_run_spread_out_while_the_program_answers(program: Program) -> None:
    slowest = 0.0
    log = program.folder / "log"
    with program.running("run") as process:
        url = address(process)
        assert process.stderr
        with log.open("w") as file:  # so that nobody waits for us to read it
            reader = subprocess.Popen(["cat"], stdin=process.stderr, stdout=file)

        def all_ran() -> bool:
            nonlocal slowest
            asked = time.monotonic()
            with urllib.request.urlopen(f"{url}/healthz", timeout=30) as answer:
                assert answer.status == 200
            slowest = max(slowest, time.monotonic() - asked)
            return len(starts(program)) == AGENTS

        seen_now(all_ran, LIMIT_S)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        reader.wait(10)
    began = starts(program)
    assert slowest < 5
    per_second = Counter(moment.replace(microsecond=0) for moment in began.values())
    assert max(per_second.values()) < AGENTS / 3
    assert max(began.values()).timestamp() - min(began.values()).timestamp() > EVERY_S / 3
    assert "Traceback" not in log.read_text()
