"""Backups: a copy counts once it was verified, the oldest ones go, and nothing half-made is left."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from daemon.errors import StoreError, StoreFull
from daemon.store.backups import backups_in, make_backup
from daemon.store.contents import contents_of, mark_of
from daemon.store.migrations import STEPS, prepare
from tests.support.stores import ROOT, START, bench, line

NAME = "askfirst.sqlite3"


def filled(folder: Path, *texts: str) -> Path:
    """A database with one proposal for each text; the first one is rejected."""

    async def fill() -> Path:
        async with bench(folder) as it:
            await it.keep(*map(line, texts or ("one",)), max_new=1000, max_open=1000)
            await it.desk.reject(1, "ana", "cli")
            return it.db.path

    return asyncio.run(fill())


def names_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_backup_holds_everything_of_one_moment_and_is_ours_alone(tmp_path: Path) -> None:
    database = filled(tmp_path, "one", "two")
    folder = database.parent / "backups"
    path = make_backup(database, folder, 4, now=START)
    assert path == folder / "askfirst-20260301T120000Z.sqlite3"
    assert names_in(folder) == [path.name]
    assert (path.stat().st_mode & 0o777, folder.stat().st_mode & 0o777) == (0o600, 0o700)
    original, copy = contents_of(database), contents_of(path, check=True)
    assert copy == original
    assert copy.rows == {"runs": 1, "model_calls": 0, "proposals": 2, "proposal_events": 3}
    assert copy.numbered == 2
    assert copy.last_decision is not None
    assert copy.revision == STEPS.head


async def test_backups_are_made_while_others_write_and_disturb_nobody(tmp_path: Path) -> None:
    async with bench(tmp_path) as it:
        await it.one(text="first")
        folder = it.db.path.parent / "backups"
        copying = asyncio.create_task(asyncio.to_thread(_rows_of_many_backups, it.db.path, folder))
        written = 1
        while not copying.done():
            await it.one(text=f"line {written}")
            written += 1
        counts = await copying
        assert len(counts) == 5
        assert counts == sorted(counts)
        assert 1 <= counts[0] <= counts[-1] <= written
        assert len(await it.proposals.list(limit=None)) == written


def _rows_of_many_backups(database: Path, folder: Path) -> list[int]:
    made = [make_backup(database, folder, 10, now=START + timedelta(minutes=number)) for number in range(5)]
    return [contents_of(path, check=True).rows["proposals"] for path in made]


def test_the_newest_are_kept_and_a_wrong_clock_does_not_cost_the_one_just_made(tmp_path: Path) -> None:
    database = filled(tmp_path)
    folder = database.parent / "backups"
    for day in range(5):
        make_backup(database, folder, 3, now=START + timedelta(days=day))
    assert [each.made_at.day for each in backups_in(folder)] == [5, 4, 3]
    old = make_backup(database, folder, 3, now=datetime(1970, 1, 1, tzinfo=UTC))
    assert [each.made_at.year for each in backups_in(folder)] == [2026, 2026, 1970]
    assert old.exists()
    make_backup(database, folder, 1, now=START)
    assert [each.made_at for each in backups_in(folder)] == [START]


def test_two_in_the_same_second_are_two(tmp_path: Path) -> None:
    database = filled(tmp_path)
    folder = database.parent / "backups"
    made = {make_backup(database, folder, 9, now=START) for _ in range(3)}
    assert len(made) == len(backups_in(folder)) == 3


def test_two_programs_at_once_take_turns(tmp_path: Path) -> None:
    database = filled(tmp_path)
    folder = database.parent / "backups"
    with ThreadPoolExecutor(4) as pool:
        made = {each.result() for each in [pool.submit(make_backup, database, folder, 9) for _ in range(4)]}
    assert len(made) == 4
    for each in backups_in(folder):
        contents_of(each.path, check=True)


def test_what_a_crash_left_is_removed_and_foreign_files_stay(tmp_path: Path) -> None:
    database = filled(tmp_path)
    folder = database.parent / "backups"
    folder.mkdir(mode=0o700)
    left = "askfirst-20250101T000000Z.sqlite3.new"
    for name in (left, f"{left}-journal", "notes.new", "askfirst-old.sqlite3"):
        (folder / name).write_text("x")
    made = make_backup(database, folder, 1, now=START)
    assert names_in(folder) == sorted([made.name, "askfirst-old.sqlite3", "notes.new"])


def test_a_damaged_database_makes_no_backup_and_costs_none(tmp_path: Path) -> None:
    database = filled(tmp_path, *(f"{number} {'x' * 3000}" for number in range(60)))
    folder = database.parent / "backups"
    sound = make_backup(database, folder, 1, now=START)
    pages = bytearray(database.read_bytes())
    for start in range(len(pages) // 3 // 4096 * 4096, len(pages), 4096):
        pages[start : start + 200] = random.Random(start).randbytes(200)
    database.write_bytes(pages)
    with pytest.raises(StoreError):
        make_backup(database, folder, 1, now=START + timedelta(days=1))
    assert names_in(folder) == [sound.name]
    assert database.read_bytes() == bytes(pages)


def test_it_says_when_there_is_no_room_and_leaves_nothing(tmp_path: Path) -> None:
    database = filled(tmp_path)
    folder = database.parent / "backups"
    with pytest.raises(StoreFull, match=r"make room, or set backup\.dir to a folder on another disk"):
        make_backup(database, folder, 1, spare=10**18)
    assert names_in(folder) == []


class SetAfter(threading.Event):
    """Set once it was looked at so many times."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.looks = looks

    def is_set(self) -> bool:
        self.looks -= 1
        return self.looks < 0


def test_one_that_is_given_up_leaves_nothing(tmp_path: Path) -> None:
    database = filled(tmp_path, *(f"{number} {'x' * 3000}" for number in range(200)))
    folder = database.parent / "backups"
    for looks in range(0, 12, 3):
        with pytest.raises(StoreError, match="is being stopped"):
            make_backup(database, folder, 1, stop=SetAfter(looks))
        assert names_in(folder) == []
    assert make_backup(database, folder, 1, stop=SetAfter(10**9)).exists()


def test_elsewhere_a_new_name_or_a_folder_is_taken_and_no_file_is_replaced(tmp_path: Path) -> None:
    database = filled(tmp_path)
    folder, usb = database.parent / "backups", tmp_path / "usb"
    usb.mkdir()

    def to(path: Path) -> Path:
        return make_backup(database, folder, 1, path, now=START)

    named = to(usb / "mine.db")
    dated = to(usb)
    assert names_in(usb) == ["askfirst-20260301T120000Z.sqlite3", "mine.db"]
    assert contents_of(named) == contents_of(dated) == contents_of(database)
    before = named.read_bytes()
    with pytest.raises(StoreError, match=r"mine\.db exists already"):
        to(named)
    assert named.read_bytes() == before
    with pytest.raises(StoreError, match="there is no folder"):
        to(tmp_path / "gone" / "mine.db")
    assert not folder.exists()


async def test_the_mark_changes_with_what_is_recorded_and_is_the_same_in_a_copy(tmp_path: Path) -> None:
    async with bench(tmp_path) as it:
        number = await it.one()
        path, folder = it.db.path, it.db.path.parent / "backups"
        first = await asyncio.to_thread(mark_of, path)
        copy = await asyncio.to_thread(make_backup, path, folder, 1)
        assert await asyncio.to_thread(mark_of, copy) == first
        await it.desk.snooze(number, START + timedelta(hours=1), "ana", "cli")
        assert await asyncio.to_thread(mark_of, path) != first


_KILLED = """
import os, pathlib, random, signal, sys, time
from daemon.store.backups import backups_in, make_backup
from daemon.store.contents import contents_of
database, folder, chance = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), random.Random(3)
for number in range(40):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, b"x")
        while True:
            make_backup(database, folder, 2)
    os.read(read, 1)
    time.sleep(chance.uniform(0, 0.06))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(read), os.close(write)
    found = backups_in(folder)
    assert not found or contents_of(found[0].path, check=True)
    assert len(found) <= 3, found
    for each in found:
        contents_of(each.path, check=True)
    print(len(found), any(path.name.endswith(".new") for path in folder.iterdir()))
make_backup(database, folder, 2)
print(sorted(path.name.endswith(".sqlite3") for path in folder.iterdir()))
"""


def test_killed_at_any_moment_every_backup_there_is_is_whole(tmp_path: Path) -> None:
    database = filled(tmp_path, *(f"{number} {'x' * 900}" for number in range(100)))
    folder = database.parent / "backups"
    make_backup(database, folder, 2, now=START)
    command = [sys.executable, "-c", _KILLED, str(database), str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *found, last = done.stdout.splitlines()
    assert len(found) == 40
    assert all(int(each.split()[0]) >= 1 for each in found)  # never without one
    assert any(each.endswith("True") for each in found)  # some were killed with a draft
    assert last == "[True, True]"


def test_before_a_migration_a_verified_copy_is_kept_and_the_three_newest_of_them(tmp_path: Path) -> None:
    path = filled(tmp_path)
    for head in ("0000a", "0000b", "0000c"):
        path.with_name(f"{NAME}.before-{head}").write_text("older")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0002'")
        for statement in (
            "DROP TABLE due_times",
            "DROP TABLE agent_states",
            "ALTER TABLE runs DROP COLUMN due",
            "ALTER TABLE runs DROP COLUMN attempt",
        ):
            connection.execute(statement)
        connection.commit()
    prepare(path)
    kept = sorted(each.name for each in path.parent.glob(f"{NAME}.before-*"))
    assert kept == [f"{NAME}.before-{name}" for name in ("0000b", "0000c", STEPS.head)]
    copy = contents_of(path.with_name(f"{NAME}.before-{STEPS.head}"), check=True)
    assert (copy.revision, copy.rows["proposals"]) == ("0002", 1)


def test_nothing_is_listed_where_there_is_no_folder(tmp_path: Path) -> None:
    assert backups_in(tmp_path / "none") == ()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look into every folder")
def test_a_folder_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    tmp_path.chmod(0o000)
    try:
        with pytest.raises(StoreError, match="cannot be listed"):
            backups_in(tmp_path)
    finally:
        tmp_path.chmod(0o700)


def test_what_is_no_database_of_ours_is_said(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "songs.db")) as connection:
        connection.execute("CREATE TABLE songs (title TEXT)")
    with pytest.raises(StoreError, match="is not a database of Askfirst"):
        contents_of(tmp_path / "songs.db")
    with pytest.raises(StoreError, match="there is no file"):
        contents_of(tmp_path / "none.db")
