"""The real daemon and real commands beside it: one writer, whoever asks, and whatever happens to it."""

from __future__ import annotations

import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from daemon.control.places import LONGEST_PATH, SOCKET
from tests.support.control import BEDS, Daemon, daemon_of
from tests.support.program import Ended, Program
from tests.support.prometheus import samples
from tests.support.waiting import seen_now

pytestmark = pytest.mark.process

# An agent whose changes take as long as the test wants: until there is a file "go".
SLOW = """
import asyncio
from pathlib import Path

from agents import BaseAgent


class SlowAgent(BaseAgent):
    every = "1h"

    async def analyze(self):
        return [self.propose("wait", "Wait", explanation="It takes long.", payload={}, fingerprint="wait")]

    async def apply(self, proposal):
        base = self.context.base_dir
        await asyncio.to_thread((base / "begun").touch)
        while not await asyncio.to_thread((base / "go").exists):
            await asyncio.sleep(0.02)
        await asyncio.to_thread(self.add, base / "done")
        return {}

    def add(self, path):
        with path.open("a") as file:
            file.write("x")
"""


@pytest.fixture
def slow(tmp_path: Path) -> Program:
    """A program with the slow agent instead of the garden."""
    program = Program.with_garden(tmp_path, *BEDS)
    (tmp_path / "data" / "plugins" / "slow.py").write_text(SLOW)
    (tmp_path / "config" / "askfirst.toml").write_text(
        '[daemon]\ndata_dir = "../data"\n[web]\nport = 0\n[agents.slow]\nisolation = "none"\n'
    )
    return program


def rows(program: Program, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(program.folder / "data" / "askfirst.sqlite3")) as database:
        return database.execute(query).fetchall()


def metrics(daemon: Daemon) -> dict[str, float]:
    import urllib.request

    address = daemon.wait_for("askfirst is running")["address"]
    with urllib.request.urlopen(f"{address}/metrics", timeout=30) as response:
        return samples(response.read().decode())


def test_a_decision_goes_through_the_daemon_and_directly_when_it_has_ended(running: Daemon) -> None:
    approved = running.call("proposals", "approve", "1", "--comment", "it is hot")
    assert approved.code == 0, approved
    assert approved.out == "1 applied: Water leeks  (to take it back: askfirst proposals undo 1)\n"
    assert approved.err == ""
    assert running.program.beds.read_text() == "leeks wet 5\nkale wet\nbeans dry\n"
    running.wait_for("proposal changed", 3)
    changed = running.said("proposal changed")
    assert [(line["status"], line["by"], line["via"]) for line in changed] == [
        ("approved", "ana", "cli"),
        ("applying", "ana", "cli"),
        ("applied", "ana", "cli"),
    ], "the daemon's own log tells of it"
    found = metrics(running)  # at once, not when the daemon looks into the database the next time
    assert found['askfirst_proposals{agent="garden",status="applied"}'] == 1
    shown = running.call("proposals", "show", "1", "--json").data
    assert running.stop() == 0
    directly = running.call("proposals", "show", "1", "--json").data
    assert shown == directly
    assert [(e["action"], e["via"]) for e in directly["history"]] == [
        ("keep", "daemon"),
        ("approve", "cli"),
        ("apply", "cli"),
        ("applied", "daemon"),
    ]
    undone = running.call("proposals", "undo", "1")
    assert (undone.code, undone.out) == (0, "1 undone: Water leeks\n")
    assert running.program.beds.read_text() == "leeks dry\nkale wet\nbeans dry\n"
    assert len(running.said("proposal changed")) == 3


def test_every_command_shows_the_same_with_and_without_a_daemon(running: Daemon) -> None:
    commands = [
        ("proposals", "list"),
        ("proposals", "list", "--all", "--json"),
        ("proposals", "show", "2"),
        ("proposals", "show", "77"),
        ("runs", "list", "--json"),
        ("runs", "list"),
        ("runs", "show", "nosuch"),
        ("proposals", "undo", "1"),
        ("proposals", "edit", "1", "--set", "litres=900"),
    ]
    through = [running.call(*command) for command in commands]
    assert running.stop() == 0
    for command, there in zip(commands, through, strict=True):
        assert str(running.call(*command)) == str(there), command


def test_a_command_beside_a_daemon_loads_no_database(running: Daemon) -> None:
    code = (
        "import sys; from daemon.cli import run; code = run(['proposals', 'list', '--json']); "
        "sys.exit(code or sum(name in sys.modules for name in ('sqlalchemy', 'apscheduler', 'aiosqlite')))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=running.program.folder,
        env=running.program.whole_environment({}),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, [p["id"] for p in json.loads(done.stdout)]) == (0, [2, 1]), done.stderr


def test_once_while_it_runs_goes_through_it_and_shows_the_same(running: Daemon) -> None:
    done = running.call("--once")
    assert done.code == 0, done
    assert running.wait_for("run finished", 2)["trigger"] == "manual"
    as_json = running.call("--once", "--json", "--agent", "garden")
    assert running.stop() == 0
    directly = running.call("--once")
    assert without_times(done.out) == without_times(directly.out)
    data = running.call("--once", "--json", "--agent", "garden").data
    assert as_json.data.keys() == data.keys()
    assert as_json.data["model"] == data["model"]
    assert [run["agent"] for run in as_json.data["runs"]] == ["garden"]
    assert as_json.data["proposals"] == data["proposals"]


def without_times(text: str) -> list[list[str]]:
    """The words, but the seconds that a run took."""
    return [line.split()[:-1] if line.startswith("garden") else line.split() for line in text.splitlines()]


def test_a_run_that_fails_is_told_through_it_too(tmp_path: Path) -> None:
    program = Program.with_garden(tmp_path, *BEDS, settings='fail = true\nisolation = "none"')
    with daemon_of(program) as daemon:
        done = daemon.call("--once")
        assert done.code == 1, done
        assert "garden: the garden gate is locked; find the key" in done.out
        unknown = daemon.call("--once", "--agent", "gardn")
        assert (unknown.code, "did you mean 'garden'?" in unknown.err) == (64, True)


# Twenty processes that begin at the same moment; forked, because twenty starts of an interpreter take long.
TWENTY = """
import os, sys
import daemon.cli, daemon.commands.proposals, daemon.control.reach
import daemon.observability.logging, daemon.settings

go, begin = os.pipe()
children = []
for number in range(1, 21):
    child = os.fork()
    if child == 0:
        os.close(begin)
        os.read(go, 1)
        os._exit(daemon.cli.run(["proposals", "approve", str(number)]))
    children.append(child)
os.close(begin)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


def test_twenty_commands_at_once_are_all_carried_out_once(tmp_path: Path) -> None:
    program = Program.with_garden(
        tmp_path, *(f"bed{n} dry" for n in range(20)), settings='isolation = "none"'
    )
    with daemon_of(program) as daemon:
        daemon.wait_for("run finished")
        done = subprocess.run(
            [sys.executable, "-P", "-c", TWENTY],
            cwd=program.folder,
            env=program.whole_environment({}),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert sorted(line.split()[0] for line in done.stdout.splitlines()) == sorted(map(str, range(1, 21)))
        applied = daemon.call("proposals", "list", "--status", "applied", "--json").data
        assert sorted(p["id"] for p in applied) == list(range(1, 21))
        assert daemon.stop() == 0
        assert [line for line in daemon.lines if line["level"] in ("warning", "error")] == []
    assert program.beds.read_text() == "".join(f"bed{n} wet 5\n" for n in range(20))


def test_a_second_daemon_ends_with_75_within_a_second_and_names_the_first(running: Daemon) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    second = running.program.run("run")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime - before.ru_utime < 1  # of CPU: other tests run beside this one
    assert second.code == 75, second
    assert f"another daemon (pid {running.process.pid}, since 20" in second.err
    assert f"uses {running.program.folder / 'data'}; stop it or set daemon.data_dir" in second.err
    assert "Traceback" not in second.err
    assert running.call("proposals", "list").code == 0


def test_two_that_start_at_the_same_moment_leave_one(garden: Program) -> None:
    with (
        daemon_of(garden, log="log1", ready=False) as one,
        daemon_of(garden, log="log2", ready=False) as other,
    ):
        seen_now(lambda: one.process.poll() is not None or other.process.poll() is not None)
        refused, left = (one, other) if one.process.poll() is not None else (other, one)
        assert refused.process.returncode == 75
        assert f"another daemon (pid {left.process.pid}" in refused.log.read_text()
        left.wait_for("askfirst is running")
        assert left.stop() == 0


def test_after_a_kill_a_new_one_starts_on_the_stale_socket(running: Daemon) -> None:
    running.process.kill()
    running.process.wait()
    assert running.socket.is_socket()
    assert running.call("proposals", "list").code == 0, "without a daemon the stale socket is nobody"
    assert running.call("status").code == 3
    with daemon_of(running.program, log="log2") as second:
        assert running.call("status", "--json").data["pid"] == second.process.pid
        assert second.call("proposals", "reject", "2").code == 0
        assert second.wait_for("proposal changed")["status"] == "rejected"
        assert second.stop() == 0
    assert not running.socket.exists()


def test_a_kill_in_mid_decision_is_told_and_the_decision_is_whole(slow: Program) -> None:
    base = slow.folder / "config"
    with daemon_of(slow) as daemon:
        daemon.wait_for("run finished")
        with ThreadPoolExecutor(1) as pool:
            deciding = pool.submit(slow.run, "proposals", "approve", "1")
            seen_now((base / "begun").exists)
            daemon.process.kill()
            told: Ended = deciding.result(60)
    assert told.code == 1, told
    assert f"the daemon (pid {daemon.process.pid}) ended before it had answered" in told.err
    assert "is not known" in told.err
    assert "Traceback" not in told.err
    events = rows(slow, "SELECT action, after FROM proposal_events ORDER BY id")
    assert events == [("keep", "pending"), ("approve", "approved"), ("apply", "applying")]
    (base / "go").touch()
    with daemon_of(slow, log="log2") as second:
        second.wait_for("finished what a crash interrupted")
        assert second.call("proposals", "show", "1", "--json").data["status"] == "applied"
    assert (base / "done").read_text() == "x"


def test_a_command_that_is_killed_does_not_undo_its_decision(slow: Program) -> None:
    base = slow.folder / "config"
    with daemon_of(slow) as daemon:
        daemon.wait_for("run finished")
        with slow.running("proposals", "approve", "1") as command:
            seen_now((base / "begun").exists)
            command.kill()
        (base / "go").touch()
        seen_now(lambda: "applied" in [line["status"] for line in daemon.said("proposal changed")])
        assert daemon.stop() == 0
    assert (base / "done").read_text() == "x"


def test_sigterm_in_mid_decision_answers_who_waits(slow: Program) -> None:
    base = slow.folder / "config"
    text = (base / "askfirst.toml").read_text()
    (base / "askfirst.toml").write_text(text.replace("[web]", 'stop_grace = "30s"\n[web]'))
    with daemon_of(slow) as daemon:
        daemon.wait_for("run finished")
        with ThreadPoolExecutor(1) as pool:
            deciding = pool.submit(slow.run, "proposals", "approve", "1")
            seen_now((base / "begun").exists)
            daemon.process.send_signal(signal.SIGTERM)
            daemon.wait_for("stopping")
            late = daemon.call("proposals", "list")
            assert (late.code, late.out) == (1, "")
            assert "is stopping and takes no more commands" in late.err
            (base / "go").touch()
            told = deciding.result(60)
        assert (told.code, told.out.startswith("1 applied: Wait")) == (0, True), told
        assert daemon.process.wait(30) == 0


def test_a_daemon_that_hangs_lets_read_and_refuses_to_write_beside_it(running: Daemon) -> None:
    running.process.send_signal(signal.SIGSTOP)
    try:
        listed = running.call("proposals", "list", "--json")
        assert listed.code == 0, listed
        assert [p["id"] for p in listed.data] == [2, 1]
        assert "does not answer" in listed.err
        for command in (("proposals", "approve", "1"), ("--once",), ("status",)):
            refused = running.call(*command)
            assert refused.code == (1 if command[0] == "proposals" else 75), refused
            assert f"(pid {running.process.pid}, since 20" in refused.err
            assert "it is starting, stopping or stuck" in refused.err
            assert "Traceback" not in refused.err
    finally:
        running.process.send_signal(signal.SIGCONT)
    assert running.call("proposals", "show", "1", "--json").data["status"] == "pending"
    assert running.program.beds.read_text() == "leeks dry\nkale wet\nbeans dry\n"


def test_a_data_folder_with_a_long_path_works_all_the_same(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    program = Program.with_garden(deep, *BEDS, settings='isolation = "none"')
    data = deep / "data"
    assert len(os.fsencode(data / SOCKET)) > LONGEST_PATH
    with daemon_of(program) as daemon:
        daemon.wait_for("run finished")
        assert daemon.call("proposals", "reject", "1").code == 0
        assert daemon.wait_for("proposal changed")["status"] == "rejected"
        place = Path((data / "control.path").read_text().strip())
        assert place.is_socket()
        assert place.parent.stat().st_mode & 0o777 == 0o700
        daemon.process.kill()
        daemon.process.wait()
    with daemon_of(program, log="log2") as second:
        assert not place.parent.exists()
        assert second.call("status").code == 0
        second_place = Path((data / "control.path").read_text().strip())
        assert second.stop() == 0
    assert not second_place.parent.exists()
    assert not (data / "control.path").exists()
