"""The real process: what it answers, how it ends, and that no clock can stop it."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import sqlite3
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.background import TICKER, configure, running, ticks
from tests.support.program import Program
from tests.support.prometheus import complaints, samples, tool
from tests.support.waiting import seen_now

pytestmark = pytest.mark.process

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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for path in (tmp_path / "data", tmp_path / "data" / "plugins"):
        path.mkdir(mode=0o700)
    return tmp_path


def outcomes(folder: Path) -> list[str]:
    with sqlite3.connect(folder / "data" / "askfirst.sqlite3") as connection:
        rows = connection.execute("select outcome from runs order by id").fetchall()
    connection.close()
    return [outcome for (outcome,) in rows]


def test_it_runs_agents_answers_and_ends_within_two_seconds_of_sigterm(folder: Path) -> None:
    tool("promtool")
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
        assert time.monotonic() - asked < 8  # a second of grace, one for its process, and the recording
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


BLOCKER = """
import time
from agents import BaseAgent

class BlockerAgent(BaseAgent):
    every = "1s"

    async def analyze(self):
        if (self.context.base_dir / "block").exists():
            (self.context.base_dir / "blocked").touch()
            time.sleep(3600)
        return []
"""


def test_systemd_hears_nothing_any_more_from_a_program_that_an_agent_blocks(folder: Path) -> None:
    configure(folder, "blocker", BLOCKER)
    with (folder / "askfirst.toml").open("a") as file:
        file.write('isolation = "none"\n')
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(folder / "notify"))
        channel.settimeout(60)
        watched = {"NOTIFY_SOCKET": str(folder / "notify"), "WATCHDOG_USEC": "400000"}
        with running(folder, watched) as program:
            told = [channel.recv(4096) for _ in range(6)]
            assert told[0].startswith(b"READY=1\nSTATUS=")
            assert told.count(b"WATCHDOG=1") >= 4
            (folder / "block").touch()
            seen_now((folder / "blocked").exists)
            channel.settimeout(0.1)
            with suppress(TimeoutError):  # what it said before
                while True:
                    channel.recv(4096)
            channel.settimeout(2)  # ten times as long as it is silent otherwise
            with pytest.raises(TimeoutError):
                channel.recv(4096)
            program.process.kill()


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
from contextlib import suppress
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
