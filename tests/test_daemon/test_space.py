"""A full disk: no agent is run, decisions are taken, nothing acknowledged is lost, and it ends by itself."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import socket
import sqlite3
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from agents.proposal import ProposalStatus
from daemon.errors import DaemonError, ExitCode, StoreFull
from daemon.store.space import RESERVE_BYTES, SpaceGuard, _room
from tests.support.program import Program
from tests.support.small_disk import fill, needs_root, small_disk
from tests.support.stores import bench, line
from tests.support.waiting import seen_now

MB = 1024 * 1024


class Told:
    """What a guard said."""

    def __init__(self, folder: Path, min_free: int = 2 * MB) -> None:
        self.said: list[str] = []
        self.guard = SpaceGuard(folder, min_free, hold=self.said.append, release=self._release)

    def _release(self) -> None:
        self.said.append("release")

    def look(self) -> bool:
        return asyncio.run(self.guard.look())


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 16) as folder:
        yield folder


def test_with_room_the_reserve_is_really_taken(tmp_path: Path) -> None:
    told = Told(tmp_path)
    assert told.look()
    state = told.guard.reserve.stat()
    assert state.st_size == RESERVE_BYTES
    assert state.st_blocks * 512 >= RESERVE_BYTES
    assert state.st_mode & 0o777 == 0o600
    assert told.said == []
    assert asyncio.run(told.guard.ping()).endswith("iB free")


def test_too_little_room_holds_the_agents_once_and_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told = Told(tmp_path, min_free=10**18)
    assert not told.look()
    assert not told.look()
    assert len(told.said) == 1
    assert told.said[0].startswith("storage full: only")
    assert caplog.text.count("no agent is run") == 1
    with pytest.raises(DaemonError, match="decisions are still taken"):
        asyncio.run(told.guard.ping())


def test_a_folder_that_is_not_there_yet_is_not_made(tmp_path: Path) -> None:
    assert Told(tmp_path / "none").look()
    assert not (tmp_path / "none").exists()


@needs_root
def test_it_ends_when_there_is_room_and_not_a_byte_sooner(
    disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    told = Told(disk)
    assert told.look()
    ballast = fill(disk, leave=3 * MB // 2)
    assert not told.look()
    assert told.guard.reserve.exists()  # there is still room for what is small
    fill(disk, leave=MB // 2)
    assert not told.look()
    assert not told.guard.reserve.exists()
    assert shutil.disk_usage(disk).free >= RESERVE_BYTES
    os.truncate(ballast, ballast.stat().st_size - MB)  # as much as it wants, but not besides the reserve
    assert not told.look()
    os.truncate(ballast, ballast.stat().st_size - 2 * MB)
    assert told.look()
    assert told.guard.reserve.stat().st_size == RESERVE_BYTES
    assert [each[:7] for each in told.said] == ["storage", "release"]
    assert caplog.text.count("there is room on the disk again") == 1


@needs_root
def test_a_write_that_found_the_disk_full_gives_up_the_reserve_at_once(disk: Path) -> None:
    told = Told(disk)
    assert told.look()
    asyncio.run(told.guard.give_way())
    assert not told.guard.reserve.exists()
    assert "storage full: the disk is full" in told.said[0]
    assert told.look()  # it could be taken again, so there is room
    assert told.said[1:] == ["release"]


@needs_root
def test_a_disk_that_became_read_only_is_no_room_either(disk: Path) -> None:
    told = Told(disk)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert not told.look()
    assert "Read-only file system" in told.said[0]
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    assert told.look()


@needs_root
def test_a_decision_on_a_full_disk_is_taken_at_the_first_try(disk: Path) -> None:
    """SQLite says that the disk is full; the reserve is given up, and the same decision is tried again."""

    async def decide() -> tuple[list[ProposalStatus], list[str]]:
        async with bench(disk) as it:
            told = Told(it.db.path.parent, min_free=0)
            it.db.on_full = told.guard.give_way
            assert await told.guard.look()
            texts = [f"{number} {'x' * 900}" for number in range(13)]
            await it.keep(*(line(text, explanation="y" * 3900) for text in texts), max_open=99)
            ballast = await asyncio.to_thread(fill, disk)
            decided = [(await it.desk.reject(number, "ana", "cli")).status for number in range(1, 14)]
            await asyncio.to_thread(ballast.unlink)
            return decided, told.said

    decided, said = asyncio.run(decide())
    assert decided == [ProposalStatus.REJECTED] * 13
    assert len(said) == 1  # one of them found the disk full


@needs_root
def test_a_run_on_a_full_disk_is_refused_and_leaves_the_reserve_to_decisions(disk: Path) -> None:
    async def fill_up() -> ProposalStatus:
        async with bench(disk) as it:
            told = Told(it.db.path.parent, min_free=0)
            it.db.on_full = told.guard.give_way
            assert await told.guard.look()
            await it.one(text="first")
            ballast = await asyncio.to_thread(fill, disk)
            with pytest.raises(StoreFull, match="nothing that was confirmed is lost"):
                await it.one(text="second", explanation="y" * 3900)
            assert len(told.said) == 1
            assert [p.title for p in await it.proposals.list()] == ["Write first"]
            decided = await it.desk.approve(1, "ana", "cli")
            await asyncio.to_thread(ballast.unlink)
            return decided.status

    assert asyncio.run(fill_up()) is ProposalStatus.APPLIED


# The real daemon on a real small disk.


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    made = Program.with_garden(
        tmp_path, *(f"bed{number} dry" for number in range(8)), settings='every = "1s"'
    )
    config = tmp_path / "config" / "askfirst.toml"
    config.write_text(config.read_text().replace("[daemon]", "[daemon]\nmin_free_bytes = 2097152"))
    shutil.move(tmp_path / "data", tmp_path / "made")
    with small_disk(tmp_path / "data", 16) as data:
        shutil.copytree(tmp_path / "made", data, dirs_exist_ok=True)
        data.chmod(0o700)
        yield made


def readiness(url: str) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=10) as answer:
            return answer.status, json.load(answer)["checks"]
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)["checks"]


def sample(url: str, name: str) -> float:
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return float(next(each.split()[-1] for each in lines if each.startswith(f"{name} ")))


def runs_of(program: Program) -> int:
    with closing(
        sqlite3.connect(f"file:{program.folder}/data/askfirst.sqlite3?mode=ro", uri=True)
    ) as connection:
        return int(connection.execute("SELECT count(*) FROM runs").fetchone()[0])


class Lines:
    """What the daemon logs, read as it comes."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        self._descriptor = process.stderr.fileno()
        os.set_blocking(self._descriptor, False)
        self.text = ""

    def has(self, words: str) -> bool:
        with suppress(BlockingIOError):
            while piece := os.read(self._descriptor, 65536):
                self.text += piece.decode()
        return words in self.text

    def value(self, key: str) -> str:
        found = (json.loads(each) for each in self.text.splitlines() if each.startswith("{"))
        return next(str(each[key]) for each in found if key in each)


@needs_root
@pytest.mark.process
def test_the_daemon_holds_its_agents_while_the_disk_is_full_and_goes_on_by_itself(program: Program) -> None:
    data = program.folder / "data"
    with program.running("run", ASKFIRST_DAEMON__LOG_FORMAT="json") as process:
        log = Lines(process)
        seen_now(lambda: log.has("askfirst is running"))
        url = log.value("address")
        seen_now(lambda: runs_of(program) >= 2)
        ballast = fill(data)
        # Found by a run that the full disk refuses: sooner than the look each minute.
        seen_now(lambda: readiness(url)[0] == 503)
        assert "storage full" in readiness(url)[1]["storage"]["detail"]
        assert sample(url, "askfirst_storage_full") == 1
        seen_now(lambda: log.has("no agent is run"))
        held = runs_of(program)
        waiting = program.call("proposals", "list", "--json").data
        first, second = waiting[0]["id"], waiting[1]["id"]
        for words in (("reject", str(first)), ("approve", str(second))):
            done = program.call("proposals", *words)
            assert done.code == 0, done
        assert runs_of(program) == held
        ballast.unlink()
        freed = time.monotonic()
        seen_now(lambda: runs_of(program) > held)
        assert time.monotonic() - freed < 10
        assert readiness(url)[0] == 200
        seen_now(lambda: log.has("there is room on the disk again"))
        process.terminate()
        assert process.wait(30) == 0
    found = {each["id"]: each["status"] for each in program.call("proposals", "list", "--all", "--json").data}
    assert (found[first], found[second]) == ("rejected", "applied")
    with closing(sqlite3.connect(data / "askfirst.sqlite3")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@needs_root
@pytest.mark.process
def test_a_start_on_a_full_disk_waits_and_says_so(program: Program) -> None:
    data = program.folder / "data"
    assert program.call("--once").code == 0
    before = runs_of(program)
    for leftover in data.glob("*-shm"):
        leftover.unlink()
    ballast = fill(data)
    port = free_port()
    with program.running("run", ASKFIRST_DAEMON__LOG_FORMAT="json", ASKFIRST_WEB__PORT=str(port)) as process:
        log, url = Lines(process), f"http://127.0.0.1:{port}"
        seen_now(lambda: log.has("waiting for room on the disk"))
        status, checks = readiness(url)
        assert status == 503
        assert "the disk is full" in checks["storage"]["detail"]
        with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
            assert b"askfirst_build_info" in answer.read()
        assert process.poll() is None
        ballast.unlink()
        seen_now(lambda: log.has("askfirst is running"))
        seen_now(lambda: runs_of(program) > before)
        assert readiness(url)[0] == 200
        process.terminate()
        assert process.wait(30) == 0
    assert "Traceback" not in log.text


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@needs_root
@pytest.mark.process
def test_a_start_on_a_read_only_disk_ends_with_a_sentence(program: Program) -> None:
    data = program.folder / "data"
    assert program.call("--once").code == 0
    subprocess.run(["mount", "-o", "remount,ro", str(data)], check=True)
    done = program.run("run")
    assert done.code == ExitCode.FAILED
    assert "Traceback" not in done.err
    assert "read-only" in done.err.lower()


@pytest.mark.parametrize(
    ("size", "words"), [(52_428_800, "50.0 MiB"), (1_072_693_248, "1023.0 MiB"), (73_919_500_288, "68.8 GiB")]
)
def test_room_is_told_in_the_unit_that_people_read(size: int, words: str) -> None:
    assert _room(size) == words
