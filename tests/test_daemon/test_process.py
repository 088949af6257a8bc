"""The real process: what it answers, how it ends, and that no clock can stop it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.support.program import Program
from tests.support.prometheus import complaints, promtool, samples
from tests.support.waiting import seen_now

pytestmark = pytest.mark.process

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

WAITER = """
import asyncio
from agents import BaseAgent

class WaiterAgent(BaseAgent):
    every = "1s"

    async def analyze(self):
        (self.context.base_dir / "begun").touch()
        await asyncio.sleep(3600)
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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for path in (tmp_path / "data", tmp_path / "data" / "plugins"):
        path.mkdir(mode=0o700)
    return tmp_path


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


def outcomes(folder: Path) -> list[str]:
    with sqlite3.connect(folder / "data" / "askfirst.sqlite3") as connection:
        rows = connection.execute("select outcome from runs order by id").fetchall()
    connection.close()
    return [outcome for (outcome,) in rows]


def ticks(folder: Path) -> list[float]:
    """When the ticker ran, by a clock that nobody sets."""
    path = folder / "ticks"
    return [float(line.split()[0]) for line in path.read_text().splitlines()] if path.exists() else []


def test_it_runs_agents_answers_and_ends_within_two_seconds_of_sigterm(folder: Path) -> None:
    promtool()
    configure(folder, "ticker", TICKER)
    with running(folder) as program:
        seen_now(lambda: len(ticks(folder)) >= 2)
        metrics = program.get("/metrics")
        assert complaints(metrics) == ""
        assert samples(metrics)['askfirst_agent_runs_total{agent="ticker",outcome="succeeded"}'] >= 1
        assert json.loads(program.get("/readyz"))["status"] == "ready"
        assert json.loads(program.get("/healthz"))["status"] == "ok"
        asked = time.monotonic()
        program.process.terminate()
        assert program.wait() == 0
        assert time.monotonic() - asked < 2  # the deadline is the requirement
    assert program.line("stopping")["reason"] == "SIGTERM"
    assert [line for line in program.lines if line["level"] in ("warning", "error")] == []


def test_an_idle_program_ends_within_two_seconds_of_sigterm(folder: Path) -> None:
    configure(folder, "ticker", TICKER)
    text = (folder / "askfirst.toml").read_text().partition("[agents")[0]
    (folder / "askfirst.toml").write_text(text)
    with running(folder) as program:
        program.line("askfirst is running")
        asked = time.monotonic()
        program.process.terminate()
        assert program.wait() == 0
        assert time.monotonic() - asked < 2


def test_sigterm_in_mid_run_ends_it_with_0_and_the_run_is_recorded_as_cancelled(folder: Path) -> None:
    configure(folder, "waiter", WAITER)
    with running(folder) as program:
        seen_now((folder / "begun").exists)
        asked = time.monotonic()
        program.process.terminate()
        assert program.wait() == 0
        assert time.monotonic() - asked < 5  # a second of grace, and the recording
    assert outcomes(folder) == ["cancelled"]
    assert program.line("run finished")["outcome"] == "cancelled"


def test_a_second_interrupt_does_not_wait_for_the_grace(folder: Path) -> None:
    configure(folder, "waiter", WAITER, grace="1h")
    with running(folder) as program:
        seen_now((folder / "begun").exists)
        program.process.send_signal(signal.SIGINT)
        program.line("stopping")
        assert program.process.poll() is None
        program.process.send_signal(signal.SIGINT)
        assert program.wait(20) == 0
    assert outcomes(folder) == ["cancelled"]
    assert program.has("asked again to stop: not waiting any longer")


def test_a_hang_up_does_not_end_it(folder: Path) -> None:
    configure(folder, "ticker", TICKER)
    with running(folder) as program:
        program.line("askfirst is running")
        program.process.send_signal(signal.SIGHUP)
        program.line("the configuration was read again: nothing changed")
        assert json.loads(program.get("/healthz"))["status"] == "ok"
        program.process.terminate()
        assert program.wait() == 0


def test_a_taken_port_ends_it_with_1_and_names_the_setting(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        configure(folder, "ticker", TICKER, port=port)
        with running(folder) as program:
            assert program.wait() == 1
    said = (folder / "log").read_text()
    assert f"port {port}" in said
    assert "web.port" in said
    assert "ASKFIRST_WEB__PORT" in said
    assert "Traceback" not in said
    assert not ticks(folder)


def test_the_environment_moves_the_port(folder: Path) -> None:
    configure(folder, "ticker", TICKER, port=1)
    with running(folder, {"ASKFIRST_WEB__PORT": "0"}) as program:
        assert json.loads(program.get("/healthz"))["status"] == "ok"


def test_a_foreign_host_name_gets_nothing(folder: Path) -> None:
    configure(folder, "ticker", TICKER)
    with running(folder) as program:
        address = program.line("askfirst is running")["address"]
        request = urllib.request.Request(f"{address}/metrics", headers={"Host": "evil.example"})
        with pytest.raises(urllib.error.HTTPError, match="421"):
            urllib.request.urlopen(request, timeout=30)


def test_systemd_is_told_when_it_is_ready_and_when_it_stops(folder: Path) -> None:
    configure(folder, "ticker", TICKER)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(folder / "notify"))
        channel.settimeout(60)
        with running(folder, {"NOTIFY_SOCKET": str(folder / "notify")}) as program:
            ready = channel.recv(4096).decode().splitlines()
            assert ready[0] == "READY=1"
            assert "STATUS=1 agent, mock mock, 0 proposals waiting, http://127.0.0.1:" in ready[1]
            assert json.loads(program.get("/readyz"))["status"] == "ready"
            program.process.terminate()
            assert channel.recv(4096) == b"STOPPING=1\nSTATUS=stopping: SIGTERM"
            assert program.wait() == 0


def test_a_log_that_nobody_reads_stops_neither_the_agents_nor_the_answers(folder: Path) -> None:
    configure(folder, "ticker", TICKER, port=free_port())
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(writing, False)
    while True:  # the pipe is full before the program writes its first line
        try:
            os.write(writing, b"x" * 512)
        except BlockingIOError:
            break
    os.set_blocking(writing, True)
    with running(folder, stderr=writing) as program:
        os.close(writing)
        seen_now(lambda: len(ticks(folder)) >= 3)
        port = int((folder / "askfirst.toml").read_text().partition("port = ")[2].split()[0])
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=30) as response:
            assert response.status == 200
        program.process.terminate()
        assert program.wait(20) == 0
    os.close(reading)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_a_restart_does_not_run_an_agent_that_is_not_due(folder: Path) -> None:
    configure(folder, "ticker", TICKER)
    text = (folder / "askfirst.toml").read_text().replace('every = "1s"', 'every = "1h"')
    (folder / "askfirst.toml").write_text(text)
    for _ in range(3):
        with running(folder) as program:
            seen_now(lambda: len(ticks(folder)) >= 1)
            program.line("askfirst is running")
            time.sleep(1.2)  # a first run would come within a second
            program.process.terminate()
            assert program.wait() == 0
    assert len(ticks(folder)) == 1


def faketime() -> str:
    """Debian's libfaketime; the test is skipped, with the reason, where there is none."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    if not found or shutil.which("faketime") is None:
        pytest.skip("libfaketime is missing; on Debian: apt-get install faketime")
    return str(found[0])


@pytest.mark.parametrize("step", ["-6h", "-10y", "+10y"])
def test_a_clock_that_is_set_neither_stops_nor_doubles_the_runs(folder: Path, step: str) -> None:
    library = faketime()
    configure(folder, "ticker", TICKER)
    clock = folder / "clock"
    clock.write_text("+0")
    environment = {
        "LD_PRELOAD": library,
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    with running(folder, environment) as program:
        seen_now(lambda: len(ticks(folder)) >= 3)
        (folder / "clock.new").write_text(step)
        (folder / "clock.new").rename(clock)
        before = len(ticks(folder))
        seen_now(lambda: len(ticks(folder)) >= before + 4, limit=30)  # bare APScheduler is silent for hours
        assert json.loads(program.get("/readyz"))["status"] == "ready"
        program.process.terminate()
        assert program.wait() == 0
    runs = ticks(folder)
    gaps = [later - earlier for earlier, later in pairwise(runs)]
    assert max(gaps) < 10
    assert runs[-1] - runs[0] > 0.8 * (len(runs) - 1)  # no double runs
    stepped = program.line("the clock was set, or the machine slept")
    assert abs(stepped["step_seconds"]) > 6 * 3600 - 60
    assert abs(stepped["slept_seconds"]) < 60


def test_a_process_that_was_stopped_and_continued_catches_up_once(folder: Path) -> None:
    configure(folder, "ticker", TICKER)
    with running(folder) as program:
        seen_now(lambda: len(ticks(folder)) >= 2)
        program.process.send_signal(signal.SIGSTOP)
        time.sleep(4)
        before = len(ticks(folder))
        program.process.send_signal(signal.SIGCONT)
        seen_now(lambda: len(ticks(folder)) >= before + 2)
        program.process.terminate()
        assert program.wait() == 0
    runs = ticks(folder)
    assert len(runs) <= runs[-1] - runs[0] + 2


STUBBORN = """
import asyncio
from agents import BaseAgent

class StubbornAgent(BaseAgent):
    every = "1s"

    async def analyze(self):
        (self.context.base_dir / "begun").touch()
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                pass
"""

MAIN = """
import sys
from pathlib import Path
from daemon.app import Daemon
from daemon.lifecycle import run_process
from daemon.settings import load_settings

sys.exit(run_process(Daemon(load_settings(Path("askfirst.toml"))).run_until_stopped()))
"""


def test_an_agent_that_ignores_being_cancelled_does_not_keep_the_process_alive(folder: Path) -> None:
    configure(folder, "stubborn", STUBBORN)
    program = Program(folder)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*program.command()[:-2], "-c", MAIN],
            cwd=folder,
            env=program.whole_environment({}),
            stderr=log,
        )
    try:
        seen_now((folder / "begun").exists)
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
    assert outcomes(folder) == ["cancelled"]
