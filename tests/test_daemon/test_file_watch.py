"""FileWatch: an agent is due when a file that it watches has changed and come to rest, and only then."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from daemon.triggers import files
from daemon.triggers.files import FileWatch
from tests.support.program import ROOT
from tests.support.waiting import seen

TICK = 0.02
SETTLE = 0.06
LONG_SETTLE = 0.4
WAYS = pytest.mark.parametrize("notify", [True, False], ids=["notified", "looking"])


class Watching:
    """A watch with short times, and what it told."""

    def __init__(
        self, folder: Path, notify: bool, watched: dict[str, tuple[str, ...]], **options: Any
    ) -> None:
        self.fired: list[str] = []
        times = {"tick": TICK, "settle": SETTLE, "longest": 30.0, **options}
        self.watch = FileWatch(watched, folder, self.fired.append, notify=notify, **times)

    async def fires(self, *names: str) -> None:
        """Exactly these agents are due now, each once."""
        await seen(lambda: len(self.fired) >= len(names))
        await self.rests()
        assert sorted(self.fired) == sorted(names)
        self.fired.clear()

    async def rests(self) -> None:
        """Nothing is coming to rest any more, and two further looks have been made."""
        agents = self.watch._agents.values()
        await seen(lambda: all(each.first is None and not each.own for each in agents))
        for _ in range(2):
            await self.watch._look()
        await seen(lambda: all(each.first is None for each in agents))


@asynccontextmanager
async def watching(folder: Path, notify: bool, *patterns: str, **options: Any) -> AsyncIterator[Watching]:
    made = Watching(folder, notify, {"agent": patterns}, **options)
    await made.watch.start()
    try:
        assert made.watch.notified is notify
        yield made
    finally:
        await made.watch.aclose()


def write(path: Path, text: str = "x") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def replace(path: Path) -> None:
    """As editors save: a new file in the place of the old one."""
    write(path.with_name("draft.tmp"), path.read_text(encoding="utf-8"))
    path.with_name("draft.tmp").replace(path)


CHANGES: dict[str, Callable[[Path], object]] = {
    "written": lambda folder: write(folder / "in" / "a.csv", "longer than before"),
    "replaced by one of the same size": lambda folder: replace(folder / "in" / "a.csv"),
    "deleted": lambda folder: (folder / "in" / "a.csv").unlink(),
    "touched": lambda folder: os.utime(folder / "in" / "a.csv", ns=(1, 1)),
    "added": lambda folder: write(folder / "in" / "b.csv"),
    "added below": lambda folder: write(folder / "in" / "new" / "deeper" / "c.csv"),
    "moved in with its old time": lambda folder: (folder / "elsewhere.csv").rename(folder / "in" / "d.csv"),
    "the folder itself deleted": lambda folder: shutil.rmtree(folder / "in"),
}


@WAYS
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_a_change_in_a_watched_folder_makes_its_agent_due_once(
    tmp_path: Path, notify: bool, change: Callable[[Path], object]
) -> None:
    write(tmp_path / "in" / "a.csv")
    write(tmp_path / "elsewhere.csv")
    async with watching(tmp_path, notify, "in") as agent:
        change(tmp_path)
        await agent.fires("agent")


@WAYS
@pytest.mark.parametrize(
    ("pattern", "hits", "misses"),
    [
        ("a.csv", ["a.csv"], ["b.csv", "a.csv.bak"]),
        ("*.csv", ["a.csv", "new.csv"], ["a.txt", "sub/a.csv", ".hidden.csv"]),
        ("sub/*/x.csv", ["sub/one/x.csv"], ["sub/x.csv", "sub/one/y.csv"]),
        ("**/*.csv", ["a.csv", "sub/deep/er/a.csv"], ["a.txt"]),
        ("sub", ["sub/a", "sub/deep/b"], ["a", "sub/.a", "sub/.git/x", "sub/a~", "sub/a.part", "sub/a.tmp"]),
        ("sub/[1]", ["sub/[1]"], ["sub/1"]),
    ],
)  # fmt: skip
async def test_only_what_is_meant_is_watched(
    tmp_path: Path, notify: bool, pattern: str, hits: list[str], misses: list[str]
) -> None:
    for path in (*hits, *misses):
        write(tmp_path / path)
    async with watching(tmp_path, notify, pattern) as agent:
        for path in misses:
            write(tmp_path / path, "changed")
        await agent.rests()
        assert agent.fired == []
        for path in hits:
            write(tmp_path / path, "changed")
            await agent.fires("agent")


@WAYS
@pytest.mark.parametrize("pattern", ["not/yet/there.csv", "not/yet", "not/**/*.csv"])
async def test_a_path_that_does_not_exist_yet_is_watched(tmp_path: Path, notify: bool, pattern: str) -> None:
    async with watching(tmp_path, notify, pattern) as agent:
        write(tmp_path / "not" / "yet" / "there.csv")
        await agent.fires("agent")
        write(tmp_path / "not" / "yet" / "there.csv", "changed")
        await agent.fires("agent")
        shutil.rmtree(tmp_path / "not")
        await agent.fires("agent")
        write(tmp_path / "not" / "yet" / "there.csv")
        await agent.fires("agent")


@WAYS
async def test_what_a_link_leads_to_is_watched(tmp_path: Path, notify: bool) -> None:
    write(tmp_path / "real" / "a.csv")
    (tmp_path / "link.csv").symlink_to(tmp_path / "real" / "a.csv")
    async with watching(tmp_path, notify, "link.csv") as agent:
        write(tmp_path / "real" / "a.csv", "changed")
        await agent.fires("agent")


@WAYS
async def test_a_database_is_watched_with_its_journal_and_not_changed_by_reading(
    tmp_path: Path, notify: bool
) -> None:
    def connect() -> sqlite3.Connection:
        made = sqlite3.connect(tmp_path / "a.sqlite3", isolation_level=None)
        made.execute("PRAGMA journal_mode=WAL")
        return made

    keeper = connect()  # so that the journal stays
    keeper.execute("CREATE TABLE t (x)")
    keeper.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    async with watching(tmp_path, notify, "a.sqlite3") as agent:
        keeper.execute("SELECT * FROM t").fetchall()
        await agent.rests()
        assert agent.fired == []
        keeper.execute("INSERT INTO t VALUES (1)")
        await agent.fires("agent")
    keeper.close()


@WAYS
async def test_a_file_that_is_still_being_copied_counts_once_at_its_end(tmp_path: Path, notify: bool) -> None:
    async with watching(tmp_path, notify, "in", settle=LONG_SETTLE) as agent:
        write(tmp_path / "in" / "big", "")
        with (tmp_path / "in" / "big").open("a") as file:
            for _ in range(12):
                await asyncio.to_thread(file.write, "part")
                await asyncio.to_thread(file.flush)
                await asyncio.sleep(LONG_SETTLE / 6)
                assert agent.fired == []
        await agent.fires("agent")


@WAYS
async def test_a_file_that_came_and_went_before_it_came_to_rest_does_not_count(
    tmp_path: Path, notify: bool
) -> None:
    async with watching(tmp_path, notify, "in", settle=LONG_SETTLE) as agent:
        write(tmp_path / "in" / "draft")
        await seen(lambda: agent.watch._agents["agent"].first is not None)
        (tmp_path / "in" / "draft").unlink()
        await agent.rests()
        assert agent.fired == []


async def test_what_never_comes_to_rest_counts_after_a_while(tmp_path: Path) -> None:
    async with watching(tmp_path, False, "log", longest=0.5, settle=60.0) as agent:
        began = time.monotonic()
        number = 0
        while not agent.fired:
            number += 1
            write(tmp_path / "log", "line" * number)
            await asyncio.sleep(0.02)
        assert 0.4 < time.monotonic() - began < 30


@WAYS
async def test_each_agent_is_due_for_its_own_files(tmp_path: Path, notify: bool) -> None:
    both = Watching(tmp_path, notify, {"one": ("one",), "two": ("two", "shared")})
    await both.watch.start()
    write(tmp_path / "one")
    await both.fires("one")
    write(tmp_path / "two")
    write(tmp_path / "shared")
    await both.fires("two")
    await both.watch.aclose()


@WAYS
async def test_what_an_agent_changes_itself_does_not_make_it_due_but_others_are(
    tmp_path: Path, notify: bool
) -> None:
    both = Watching(tmp_path, notify, {"one": ("in",), "two": ("in",)})
    await both.watch.start()
    both.watch.suppress("one")
    both.watch.suppress("one")
    write(tmp_path / "in" / "a")
    both.watch.resume("one")
    write(tmp_path / "in" / "b")
    await both.fires("two")
    both.watch.resume("one")
    both.watch.resume("one")  # once too often does no harm
    await both.rests()
    assert both.fired == []
    write(tmp_path / "in" / "c")
    await both.fires("one", "two")
    await both.watch.aclose()


@WAYS
async def test_a_change_by_others_right_after_its_own_makes_an_agent_due(
    tmp_path: Path, notify: bool
) -> None:
    async with watching(tmp_path, notify, "in", tick=0.5) as agent:
        agent.watch.suppress("agent")
        write(tmp_path / "in" / "own")
        agent.watch.resume("agent")
        await seen(lambda: not agent.watch._agents["agent"].own, limit=0.4)  # long before the next tick
        write(tmp_path / "in" / "others")
        await agent.fires("agent")


@WAYS
async def test_a_change_that_had_begun_before_its_run_still_counts_afterwards(
    tmp_path: Path, notify: bool
) -> None:
    async with watching(tmp_path, notify, "in", settle=LONG_SETTLE) as agent:
        write(tmp_path / "in" / "half")
        await seen(lambda: agent.watch._agents["agent"].first is not None)
        agent.watch.suppress("agent")
        write(tmp_path / "in" / "half", "whole")
        await asyncio.sleep(1.5 * LONG_SETTLE)
        assert agent.fired == []
        agent.watch.resume("agent")
        await agent.fires("agent")


async def test_a_run_whose_end_nobody_told_of_does_not_blind_the_watch_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LONGEST_BUSY_S", 0.3)
    async with watching(tmp_path, False, "in") as agent:
        agent.watch.suppress("agent")
        write(tmp_path / "in" / "a")
        await agent.fires("agent")


@WAYS
async def test_a_change_before_the_start_counts_from_the_moment_that_is_given(
    tmp_path: Path, notify: bool
) -> None:
    write(tmp_path / "in" / "a")
    now = datetime.now(UTC)
    watched = dict.fromkeys(("before", "after", "unknown"), ("in",))
    since = {"before": now - timedelta(hours=1), "after": now + timedelta(hours=1)}
    all_three = Watching(tmp_path, notify, watched, since=since)
    await all_three.watch.start()
    await all_three.fires("before")
    await all_three.watch.aclose()


async def test_a_file_that_came_with_an_old_time_before_the_start_counts(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a")
    os.utime(tmp_path / "in" / "a", (1, 1))
    since = {"agent": datetime.now(UTC) - timedelta(hours=1)}
    async with watching(tmp_path, False, "in", since=since) as agent:
        await agent.fires("agent")


async def test_too_many_files_are_said_once_and_the_rest_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(files, "MOST_FILES", 3)
    for name in "abcde":
        write(tmp_path / "in" / name)
    async with watching(tmp_path, False, "in") as agent:
        write(tmp_path / "in" / "e", "changed")
        await agent.rests()
        assert agent.fired == []
        write(tmp_path / "in" / "a", "changed")
        await agent.fires("agent")
    told = [record for record in caplog.records if "too many files" in record.message]
    assert len(told) == 1
    assert "narrow `watch`" in told[0].message


@WAYS
async def test_a_path_that_cannot_be_one_is_a_file_that_is_not_there(tmp_path: Path, notify: bool) -> None:
    (tmp_path / "circle").symlink_to("circle")
    write(tmp_path / "file")
    impossible = (
        "circle",
        "circle/*",
        "a\0b",
        "x" * 5000,
        "y" * 5000 + "/*",
        "file/below",
        "[",
        "~nobody/in",
    )
    async with watching(tmp_path, notify, *impossible, "in") as agent:
        write(tmp_path / "in")
        await agent.fires("agent")


async def test_a_fault_is_logged_once_and_the_watch_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = True

    def look(patterns: object, original: Callable[..., Any] = files._files_of) -> Any:
        if broken:
            raise RuntimeError("the file system is on fire")
        return original(patterns)

    async with watching(tmp_path, False, "in") as agent:
        monkeypatch.setattr(files, "_files_of", look)
        await seen(lambda: agent.watch._failing)
        await asyncio.sleep(5 * TICK)
        broken = False
        write(tmp_path / "in" / "a")
        await agent.fires("agent")
    assert len([each for each in caplog.records if "trying on" in each.message]) == 1


async def test_nothing_runs_where_nothing_is_watched(tmp_path: Path) -> None:
    watch = FileWatch({}, tmp_path, print)
    await watch.start()
    assert watch._task is None
    await watch.aclose()


@WAYS
async def test_after_the_end_nothing_is_fired_and_nothing_is_left_running(
    tmp_path: Path, notify: bool
) -> None:
    async with watching(tmp_path, notify, "in") as agent:
        pass
    write(tmp_path / "in" / "a")
    await asyncio.sleep(2 * SETTLE)
    assert agent.fired == []
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []


LIMITED = """
import asyncio, logging, resource, sys
from pathlib import Path
from daemon.triggers.files import FileWatch
logging.basicConfig(level="INFO", format="%(levelname)s %(message)s", stream=sys.stdout)

async def main():
    fired, folder = [], Path(sys.argv[1])
    import watchfiles
    watch = FileWatch({"agent": ("in",)}, folder, fired.append, tick=0.02, settle=0.05)
    (folder / "in").mkdir()
    asyncio.get_running_loop().run_in_executor(None, int)  # threads are there before descriptors are scarce
    used = [open("/dev/null") for _ in range(3)]
    limit = max(each.fileno() for each in used) + 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    await watch.start()
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    used.pop().close()
    print("notified", watch.notified)
    for number in range(2):
        (folder / "in" / str(number)).write_text("x")
        async with asyncio.timeout(30):
            while len(fired) <= number:
                await asyncio.sleep(0.01)
    await watch.aclose()
    print("fired", len(fired))

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")
def test_when_the_system_has_no_watches_left_the_files_are_looked_at_with_one_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "notified False" in done.stdout
    assert "fired 2" in done.stdout
    warnings = [line for line in done.stdout.splitlines() if line.startswith("WARNING")]
    assert len(warnings) == 1
    assert "fs.inotify.max_user_watches" in warnings[0]
    assert "Too many open files" in warnings[0]


async def test_without_watchfiles_the_files_are_looked_at_and_that_is_no_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "watchfiles._rust_notify", None)  # as if it were not installed
    caplog.set_level(logging.INFO)
    made = Watching(tmp_path, True, {"agent": ("in",)})
    await made.watch.start()
    assert not made.watch.notified
    write(tmp_path / "in" / "a")
    await made.fires("agent")
    await made.watch.aclose()
    told = [each for each in caplog.records if "pip install 'askfirst[agents]'" in each.message]
    assert [each.levelname for each in told] == ["INFO"]


async def test_a_path_may_begin_at_home_and_be_absolute(tmp_path: Path) -> None:
    home, elsewhere = Path.home(), tmp_path / "elsewhere"
    elsewhere.mkdir()
    both = Watching(tmp_path / "base", False, {"home": ("~/in",), "absolute": (str(elsewhere / "*.csv"),)})
    await both.watch.start()
    write(home / "in")
    await both.fires("home")
    write(elsewhere / "a.csv")
    await both.fires("absolute")
    await both.watch.aclose()
