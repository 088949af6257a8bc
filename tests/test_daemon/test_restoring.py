"""Restoring: over whatever is in place, and a crash at any moment leaves the old database or the new one."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from daemon.errors import ExitCode, StoreError, StoreTooNew
from daemon.store.backups import make_backup
from daemon.store.contents import contents_of
from daemon.store.migrations import STEPS, prepare
from daemon.store.restoring import NUMBERS_LEFT_OUT, plan_restoration, restore
from tests.support.program import Ended, Program
from tests.support.stores import ROOT, START, bench, line

NAME = "askfirst.sqlite3"


def grow(folder: Path, *texts: str) -> Path:
    """Keep one proposal for each text in the database of `folder`."""

    async def fill() -> Path:
        async with bench(folder) as it:
            await it.keep(*map(line, texts))
            return it.db.path

    return asyncio.run(fill())


def titles(database: Path) -> list[str]:
    with closing(sqlite3.connect(database)) as connection:
        return [title for (title,) in connection.execute("SELECT title FROM proposals ORDER BY id")]


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A database with two proposals, of which `backup` below knows the first."""
    path = grow(tmp_path, "one")
    make_backup(path, path.parent / "backups", 4, now=START)
    return grow(tmp_path, "two")


@pytest.fixture
def backup(database: Path) -> Path:
    return database.parent / "backups" / "askfirst-20260301T120000Z.sqlite3"


def put_back(database: Path, backup: Path) -> Path | None:
    return restore(database, plan_restoration(database, backup, STEPS.revisions), now=START)


def test_the_backup_is_in_place_and_the_database_of_before_beside_it(database: Path, backup: Path) -> None:
    replaced = put_back(database, backup)
    assert titles(database) == ["Write one"]
    assert replaced == database.with_name(f"{NAME}.replaced-20260301T120000Z")
    assert titles(replaced) == ["Write one", "Write two"]
    assert database.stat().st_mode & 0o777 == 0o600
    assert prepare(database) == contents_of(backup).instance_id


def test_what_the_wal_of_before_held_is_kept_and_never_applied_to_the_new_file(
    database: Path, backup: Path
) -> None:
    as_killed(database, "three")
    assert database.with_name(f"{NAME}-wal").stat().st_size > 0
    replaced = put_back(database, backup)
    assert replaced is not None
    assert titles(database) == ["Write one"]
    assert titles(replaced) == ["Write one", "Write two", "Write three"]


def as_killed(database: Path, text: str) -> None:
    """Leave the files as a killed daemon does: what was written last is in the WAL alone."""
    keeper = database.parent.parent / "keeper"
    shutil.copytree(database.parent, keeper / "data")

    async def write() -> None:
        async with bench(keeper) as it:
            await it.keep(line(text))
            await asyncio.to_thread(copy_back, it.db.path)

    def copy_back(source: Path) -> None:
        for suffix in ("", "-wal"):
            shutil.copy(f"{source}{suffix}", f"{database}{suffix}")

    asyncio.run(write())


def test_no_number_is_given_twice(tmp_path: Path, database: Path, backup: Path) -> None:
    put_back(database, backup)
    grow(tmp_path, "three")
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("SELECT id FROM proposals ORDER BY id").fetchall() == [(1,), (3,)]


@pytest.mark.parametrize("damage", ["missing", "empty", "rubbish", "header", "pages"])
def test_it_works_over_a_database_that_cannot_be_used(
    tmp_path: Path, database: Path, backup: Path, damage: str
) -> None:
    harm(database, damage)
    harmed = database.read_bytes() if database.exists() else None
    replaced = put_back(database, backup)
    assert (replaced is None) is (damage == "missing")
    if replaced is not None:
        assert replaced.read_bytes() == harmed  # kept as it was, byte for byte
    assert titles(database) == ["Write one"]
    grow(tmp_path, "three")
    with closing(sqlite3.connect(database)) as connection:
        numbers = [number for (number,) in connection.execute("SELECT id FROM proposals ORDER BY id")]
    known = 3 if damage == "pages" else 1 + NUMBERS_LEFT_OUT + 1
    assert numbers in ([1, known], [1, 1 + NUMBERS_LEFT_OUT + 1])


def harm(database: Path, damage: str) -> None:
    match damage:
        case "missing":
            database.unlink()
        case "empty":
            os.truncate(database, 0)
        case "rubbish":
            database.write_bytes(b"These are my notes.\n" * 500)
        case "header":
            data = database.read_bytes()
            database.write_bytes(bytes(100) + data[100:])
        case "pages":
            data = database.read_bytes()
            database.write_bytes(data[: len(data) - 3 * 4096] + bytes(3 * 4096))


def test_an_older_schema_is_taken_and_migrated_at_the_next_start(database: Path, backup: Path) -> None:
    with closing(sqlite3.connect(backup)) as connection:
        for statement in (
            "DROP TABLE due_times",
            "DROP TABLE agent_states",
            "ALTER TABLE runs DROP COLUMN due",
            "ALTER TABLE runs DROP COLUMN attempt",
            "UPDATE alembic_version SET version_num = '0002'",
        ):
            connection.execute(statement)
        connection.commit()
    put_back(database, backup)
    assert contents_of(database).revision == "0002"
    prepare(database)
    assert contents_of(database, check=True).revision == STEPS.head
    assert titles(database) == ["Write one"]


def test_a_newer_schema_is_refused_and_nothing_changes(database: Path, backup: Path) -> None:
    with closing(sqlite3.connect(backup)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()
    before = snapshot(database.parent)
    with pytest.raises(StoreTooNew, match="has schema 9999") as caught:
        put_back(database, backup)
    assert caught.value.exit_code == ExitCode.CONFIGURATION
    assert snapshot(database.parent) == before


def snapshot(folder: Path) -> dict[str, bytes]:
    """Files and their bytes, without SQLite's shared memory, which readers come and go in."""
    files = [
        path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(("-shm", "-wal"))
    ]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_damaged_backup_is_refused_and_nothing_changes(database: Path, backup: Path) -> None:
    data = backup.read_bytes()
    backup.write_bytes(data[: len(data) // 2] + bytes(4096) + data[len(data) // 2 + 4096 :])
    before = snapshot(database.parent)
    with pytest.raises(StoreError):
        put_back(database, backup)
    assert snapshot(database.parent) == before


def test_the_database_itself_is_no_backup_of_itself(database: Path) -> None:
    with pytest.raises(StoreError, match="is the database itself"):
        put_back(database, database)


_STEPS = """
import os, pathlib, shutil, sqlite3, sys
from contextlib import closing
from datetime import datetime, timezone
from daemon.store.migrations import STEPS, prepare
from daemon.store.restoring import plan_restoration, restore

home, backup = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
watched = ("os.rename", "os.remove", "open", "sqlite3.connect", "os.listdir", "os.scandir")
left = None

def crash(event, arguments):
    global left
    if left is not None and event in watched:
        left -= 1
        if left < 0:
            os.kill(os.getpid(), 9)

sys.addaudithook(crash)

def in_child(work, at=None):
    child = os.fork()
    if child == 0:
        global left
        left = at
        try:
            work()
        finally:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]

def attempt():
    plan = plan_restoration(database, backup, STEPS.revisions)
    restore(database, plan)
    os._exit(0)

def opened():
    prepare(database)
    with closing(sqlite3.connect(database)) as connection:
        query = "SELECT title FROM proposals ORDER BY id"
        print([title for (title,) in connection.execute(query)], flush=True)
        assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    assert not list(folder.glob("askfirst.sqlite3*.new*"))
    os._exit(0)

def reopening():
    prepare(database)
    os._exit(0)

at, status = 0, None
while status != 0:
    folder = home.with_name(f"at{at}")
    shutil.copytree(home, folder)
    database = folder / "askfirst.sqlite3"
    status = in_child(attempt, at)
    # The next start is killed as well, a little further on, and the one after it succeeds.
    in_child(reopening, at % 7)
    assert in_child(opened) == 0, at
    shutil.rmtree(folder)
    at += 1
print(at)
"""


def test_killed_at_each_step_the_old_one_or_the_new_one_is_there(database: Path, backup: Path) -> None:
    as_killed(database, "three")
    aside = database.parent.parent / "backup.sqlite3"
    shutil.copy(backup, aside)
    command = [sys.executable, "-c", _STEPS, str(database.parent), str(aside)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *found, steps = done.stdout.splitlines()
    old, new = "['Write one', 'Write two', 'Write three']", "['Write one']"
    assert set(found) == {old, new}
    assert found == sorted(found, key=lambda state: state == new)  # once it is the new one, it stays so
    assert int(steps) > 15


# What a person types.


@pytest.fixture
def program(tmp_path: Path) -> Program:
    made = Program.with_garden(tmp_path, "leeks dry", "beans dry")
    assert made.call("--once").code == 0
    return made


def shown(ended: Ended) -> str:
    assert ended.code == 0, ended
    return ended.out


def test_backup_list_and_restore_from_the_command_line(program: Program) -> None:
    assert "There is no backup" in shown(program.call("backup", "list"))
    made = program.call("backup", "--json").data
    assert Path(made["backup"]).stat().st_size == made["bytes"]
    listed = program.call("backup", "list", "--json").data
    assert [each["backup"] for each in listed] == [made["backup"]]
    assert Path(made["backup"]).name in shown(program.call("backup", "list"))
    shown(program.call("proposals", "reject", "1"))
    refused = program.call("restore", "latest")
    assert (refused.code, "add --yes" in refused.err) == (1, True), refused
    out = shown(program.call("restore", "latest", "--yes"))
    assert "last decision" in out
    assert "is in place" in out
    waiting = program.call("proposals", "list", "--json").data
    assert [each["status"] for each in waiting] == ["pending", "pending"]


def test_in_json_it_tells_both_and_asks_nobody(program: Program) -> None:
    backup = program.call("backup", "--json").data["backup"]
    assert program.call("restore", backup, "--json").code == 1
    told = program.call("restore", backup, "--json", "--yes").data
    assert told["holds"]["rows"] == told["before"]["rows"]
    assert told["trouble"] is None
    assert Path(told["replaced"]).exists()


def test_a_person_at_a_terminal_is_asked(program: Program) -> None:
    backup = program.call("backup", "--json").data["backup"]
    for answer, code in (("n", 130), ("y", 0)):
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            program.command("restore", backup),
            cwd=program.folder,
            env=program.whole_environment({}),
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        os.write(ours, f"{answer}\n".encode())
        out, err = process.communicate(timeout=60)
        os.close(ours)
        os.close(theirs)
        assert process.returncode == code, err
        assert b"Put the backup in place?" in out + err
    assert len(list((program.folder / "data").glob("*.replaced-*Z"))) == 1


@contextmanager
def locked(path: Path, text: str = "") -> Iterator[None]:
    with path.open("w") as stream:
        stream.write(text)
        stream.flush()
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@pytest.mark.parametrize(
    ("lock", "said"),
    [("daemon.lock", "the daemon runs (pid 4711)"), (f"{NAME}.lock", "another command is writing")],
)
def test_it_is_refused_while_somebody_has_the_database(program: Program, lock: str, said: str) -> None:
    shown(program.call("backup"))
    before = snapshot(program.folder / "data")
    with locked(program.folder / "data" / lock, "4711 2026-03-01T12:00:00+00:00\n"):
        refused = program.call("restore", "latest", "--yes")
    assert refused.code == ExitCode.TEMPORARY
    assert said in refused.err
    after = snapshot(program.folder / "data")
    assert {name for name in after if "replaced" in name} == set()
    assert after[NAME] == before[NAME]


def test_the_backup_of_another_installation_has_to_be_meant(program: Program) -> None:
    backup = program.call("backup", "--json").data["backup"]
    elsewhere = program.folder / "elsewhere"
    elsewhere.mkdir()
    other = Program.with_garden(elsewhere, "leeks dry")
    assert other.call("--once").code == 0
    refused = other.call("restore", backup, "--yes")
    assert refused.code == 1
    assert "add --from-another" in refused.err
    assert "of another installation" in shown(other.call("restore", backup, "--yes", "--from-another"))
    assert len(other.call("proposals", "list", "--json").data) == 2
    marker = (elsewhere / "data" / "instance").read_text().strip()
    assert marker == contents_of(Path(backup)).instance_id


def test_on_a_new_machine_without_any_data_it_just_works(program: Program) -> None:
    backup = program.call("backup", "--json").data["backup"]
    elsewhere = program.folder / "elsewhere"
    elsewhere.mkdir()
    other = Program.with_garden(elsewhere, "leeks dry")
    told = other.call("restore", backup, "--json", "--yes").data
    assert (told["before"], told["trouble"], told["replaced"]) == (None, "it is missing", None)
    assert len(other.call("proposals", "list", "--json").data) == 2


def test_what_is_not_there_is_said(program: Program) -> None:
    assert "there is no backup in" in program.call("restore", "latest").err
    assert "there is no file" in program.call("restore", "none.sqlite3").err
    empty = program.folder / "empty"
    empty.mkdir()
    assert "there is no database at" in Program.with_garden(empty).call("backup").err
    assert not (empty / "data" / "backups").exists()
