"""The database file: who may read it, one writer at a time, and what is said when it cannot be used."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import re
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import insert, select, text

from daemon.errors import StoreError
from daemon.store.engine import Database, was_committed
from daemon.store.tables import meta
from tests.support.stores import ROOT

NAME = "askfirst.sqlite3"


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    database = await Database.open(tmp_path / "data" / NAME)
    yield database
    await database.aclose()


async def put(db: Database, key: str, value: str = "x") -> None:
    async with db.write() as connection:
        await connection.execute(insert(meta).values(key=key, value=value))


async def keys(db: Database) -> set[str]:
    async with db.read() as connection:
        return set(await connection.scalars(select(meta.c.key))) - {"instance_id"}


async def put_and_raise(db: Database) -> None:
    async with db.write() as connection:
        await connection.execute(insert(meta).values(key="a", value="x"))
        raise ZeroDivisionError


def names_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_what_was_written_is_read_again_after_reopening(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / NAME
    first = await Database.open(path)
    await put(first, "a")
    await first.aclose()
    second = await Database.open(path)
    assert await keys(second) == {"a"}
    assert second.instance_id == first.instance_id
    await second.aclose()


async def test_the_connection_is_set_up_to_survive_a_power_cut(db: Database) -> None:
    async with db.write() as connection:
        found = {
            name: (await connection.execute(text(f"PRAGMA {name}"))).scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 5000}


async def test_a_body_that_raises_leaves_nothing_behind(db: Database) -> None:
    with pytest.raises(ZeroDivisionError):
        await put_and_raise(db)
    assert await keys(db) == set()
    await put(db, "b")
    assert await keys(db) == {"b"}


async def test_a_reader_sees_one_moment_while_others_write(db: Database) -> None:
    await put(db, "a")
    async with db.read() as connection:
        before = set(await connection.scalars(select(meta.c.key)))
        await put(db, "b")
        assert set(await connection.scalars(select(meta.c.key))) == before
    assert await keys(db) == {"a", "b"}


async def test_a_reader_cannot_write(db: Database) -> None:
    with pytest.raises(StoreError, match="cannot be written"):
        async with db.read() as connection:
            await connection.execute(insert(meta).values(key="a", value="x"))


async def test_writers_take_turns(db: Database) -> None:
    inside = 0

    async def add(number: int) -> None:
        nonlocal inside
        async with db.write() as connection:
            inside += 1
            assert inside == 1
            await connection.execute(insert(meta).values(key=str(number), value="x"))
            await asyncio.sleep(0)
            inside -= 1

    await asyncio.gather(*(add(number) for number in range(20)))
    assert len(await keys(db)) == 20


def _write_many(path: Path, first: int, count: int) -> None:
    async def work() -> None:
        db = await Database.open(path)
        for number in range(first, first + count):
            await put(db, str(number))
        await db.aclose()

    asyncio.run(work())


async def test_two_processes_write_at_once_and_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "data" / NAME
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_write_many, args=(path, first, 60)) for first in (0, 1000)]
    for process in processes:
        process.start()
    for process in processes:
        await asyncio.to_thread(process.join)
    assert [process.exitcode for process in processes] == [0, 0]
    db = await Database.open(path)
    assert len(await keys(db)) == 120
    async with db.read() as connection:
        assert (await connection.execute(text("PRAGMA integrity_check"))).scalar_one() == "ok"
    await db.aclose()


async def test_cancellation_at_any_moment_loses_no_acknowledged_commit(db: Database) -> None:
    chance = random.Random(7)
    acknowledged: set[str] = set()
    told_committed: set[str] = set()
    told_not: set[str] = set()

    async def add(key: str) -> None:
        try:
            await put(db, key, "x" * 500)
        except asyncio.CancelledError as cancelled:
            (told_committed if was_committed(cancelled) else told_not).add(key)
            raise
        acknowledged.add(key)

    for number in range(400):
        task = asyncio.create_task(add(str(number)))
        await asyncio.sleep(chance.uniform(0, 0.003))
        task.cancel()
        await asyncio.wait({task})
    there = await keys(db)
    assert acknowledged <= there
    assert told_committed <= there
    assert not told_not & there
    assert len(told_not) > 10
    await put(db, "afterwards")


async def test_a_cancellation_during_the_commit_says_that_it_was_committed(db: Database) -> None:
    seen: list[bool] = []

    async def add(number: int) -> None:
        try:
            async with db.write() as connection:
                await connection.execute(insert(meta).values(key=str(number), value="x"))
                current = asyncio.current_task()
                assert current is not None
                asyncio.get_running_loop().call_soon(current.cancel)  # when the commit is waited for
        except asyncio.CancelledError as cancelled:
            seen.append(was_committed(cancelled))
            raise

    task = asyncio.create_task(add(1))
    await asyncio.wait({task})
    assert task.cancelled()
    assert seen == [True]
    assert await keys(db) == {"1"}


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
async def test_files_are_ours_alone_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        db = await Database.open(tmp_path / "data" / NAME)
        await put(db, "a")
        files = {path.name: mode(path) for path in db.path.parent.iterdir()}
        await db.aclose()
    finally:
        os.umask(before)
    assert set(files) == {NAME, f"{NAME}-wal", f"{NAME}-shm", f"{NAME}.lock", "instance"}
    assert set(files.values()) == {0o600}
    assert mode(tmp_path / "data") == 0o700


async def test_what_is_open_to_others_is_closed_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "data" / NAME
    await (await Database.open(path)).aclose()
    path.parent.chmod(0o755)
    path.chmod(0o644)
    await (await Database.open(path)).aclose()
    assert (mode(path.parent), mode(path)) == (0o700, 0o600)
    assert f"{path.parent} was open to other users (mode 0755)" in caplog.text
    assert f"{path} was open to other users (mode 0644)" in caplog.text


async def test_a_shared_folder_with_other_things_in_it_is_refused_and_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "home"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    (folder / "letter.txt").write_text("Dear all")
    with pytest.raises(StoreError, match=r"set daemon\.data_dir to a folder for Askfirst alone"):
        await Database.open(folder / NAME)
    assert mode(folder) == 0o755
    assert [entry.name for entry in folder.iterdir()] == ["letter.txt"]


async def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(StoreError, match=r"data is a file; set daemon\.data_dir"):
        await Database.open(tmp_path / "data" / NAME)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_a_folder_of_another_user_is_refused() -> None:
    with tempfile.TemporaryDirectory() as folder:  # everybody may look into it, unlike into tmp_path
        theirs = Path(folder) / "data"
        theirs.mkdir()
        for path, owner in ((Path(folder), 0), (theirs, 4711)):
            path.chmod(0o755)
            os.chown(path, owner, owner)
        script = (
            "import asyncio, concurrent.futures.thread, os, sys, pathlib\n"
            "import daemon.store.engine as engine\n"
            "os.setuid(4712)\n"
            "asyncio.run(engine.Database.open(pathlib.Path(sys.argv[1])))"
        )
        command = [sys.executable, "-c", script, str(theirs / NAME)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "belongs to the user 4711, not to 4712" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
async def test_what_root_makes_in_the_service_users_folder_belongs_to_that_user(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir(mode=0o700)
    os.chown(folder, 4711, 4711)
    db = await Database.open(folder / NAME)
    await put(db, "a")
    owners = {path.name: path.stat().st_uid for path in folder.iterdir()}
    await db.aclose()
    assert set(owners.values()) == {4711}, owners


@pytest.mark.parametrize("emptied", [True, False])
async def test_a_lost_or_emptied_database_is_not_taken_for_a_new_one(tmp_path: Path, emptied: bool) -> None:
    path = tmp_path / "data" / NAME
    await (await Database.open(path)).aclose()
    path.unlink()
    if emptied:
        path.touch(mode=0o600)
    with pytest.raises(StoreError, match="instance says that it held data") as caught:
        await Database.open(path)
    assert "delete that file to start with nothing" in str(caught.value)
    (path.parent / "instance").unlink()
    db = await Database.open(path)
    assert await keys(db) == set()
    await db.aclose()


async def test_an_empty_file_that_never_held_data_is_filled(tmp_path: Path) -> None:
    path = tmp_path / "data" / NAME
    path.parent.mkdir(mode=0o700)
    path.touch()
    db = await Database.open(path)
    assert (path.parent / "instance").read_text().strip() == db.instance_id
    assert mode(path) == 0o600
    await db.aclose()


async def test_without_create_a_missing_database_is_said_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no database at"):
        await Database.open(tmp_path / "data" / NAME, create=False)
    assert names_in(tmp_path) == []


async def test_a_file_that_is_no_database_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "data" / NAME
    path.parent.mkdir(mode=0o700)
    path.write_bytes(b"These are my notes.\n" * 500)
    path.chmod(0o600)
    with pytest.raises(StoreError, match="no SQLite database"):
        await Database.open(path)
    assert path.read_bytes() == b"These are my notes.\n" * 500


async def test_another_programs_database_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "data" / NAME
    path.parent.mkdir(mode=0o700)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE songs (title TEXT)")
    before = path.read_bytes()
    with pytest.raises(StoreError, match="is not a database of Askfirst"):
        await Database.open(path)
    assert path.read_bytes() == before


async def test_a_damaged_page_is_found_before_anything_is_written(tmp_path: Path) -> None:
    path = tmp_path / "data" / NAME
    db = await Database.open(path)
    for number in range(200):
        await put(db, f"{number:05}" + "k" * 300)
    await db.aclose()
    pages = bytearray(path.read_bytes())
    middle = len(pages) // 4096 // 2 * 4096
    for start in range(middle, len(pages), 4096):
        pages[start : start + 64] = os.urandom(64)
    path.write_bytes(pages)
    with pytest.raises(StoreError, match="damaged"):
        await Database.open(path)
    assert path.read_bytes() == bytes(pages)


async def test_rubbish_in_the_wal_costs_no_committed_row(tmp_path: Path) -> None:
    path = tmp_path / "data" / NAME
    db = await Database.open(path)
    await put(db, "a")
    await db.aclose()
    wal = path.with_name(f"{NAME}-wal")
    wal.write_bytes(random.Random(1).randbytes(40_000))
    wal.chmod(0o600)
    again = await Database.open(path)
    assert await keys(again) == {"a"}
    await again.aclose()


async def test_a_lock_held_by_another_program_is_told_in_time_and_blocks_nobody_else(db: Database) -> None:
    release = threading.Event()
    locked = threading.Event()

    def hold() -> None:
        with closing(sqlite3.connect(db.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            locked.set()
            release.wait(30)
            other.execute("ROLLBACK")

    holder = threading.Thread(target=hold)
    holder.start()
    await asyncio.to_thread(locked.wait)
    ticks = 0
    try:
        writing = asyncio.create_task(put(db, "a"))
        while not writing.done():
            await asyncio.sleep(0.05)
            ticks += 1
            await keys(db)
        with pytest.raises(StoreError, match=r"another program has locked it.*SQLITE_BUSY"):
            await writing
    finally:
        release.set()
        await asyncio.to_thread(holder.join)
    assert ticks > 20  # the loop went on, and others could read
    await put(db, "b")
    assert await keys(db) == {"b"}


_SMALL_FILES = """
import asyncio, pathlib, resource, signal, sys
from sqlalchemy import insert
from daemon.errors import StoreError
from daemon.store.engine import Database
from daemon.store.tables import meta

async def main():
    db = await Database.open(pathlib.Path(sys.argv[1]))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
    failed = 0
    for number in range(120):
        try:
            async with db.write() as connection:
                await connection.execute(insert(meta).values(key=str(number), value="x" * 9000))
        except StoreError as error:
            failed += 1
            print("refused", error, flush=True)
            if failed == 3:
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        else:
            print("acknowledged", number, flush=True)
    await db.aclose()

asyncio.run(main())
"""


async def test_a_full_disk_refuses_and_recovers_without_losing_what_was_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "data" / NAME
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _SMALL_FILES, str(path), cwd=ROOT, stdout=subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    lines = out.decode().splitlines()
    refused = [line for line in lines if line.startswith("refused")]
    acknowledged = {line.split()[1] for line in lines if line.startswith("acknowledged")}
    assert len(refused) == 3
    assert all("disk" in line for line in refused), refused
    db = await Database.open(path)
    assert await keys(db) == acknowledged
    assert lines[-1].startswith("acknowledged")
    await db.aclose()


_READ_ONLY = """
import asyncio, concurrent.futures.thread, os, pathlib, sys
from daemon.errors import StoreError
from daemon.store.engine import Database

if os.geteuid() == 0:
    os.setuid(4712)
try:
    asyncio.run(Database.open(pathlib.Path(sys.argv[1])))
except StoreError as error:
    print(error)
"""


@pytest.mark.parametrize("made_before", [True, False])
def test_a_folder_that_cannot_be_written_is_told_and_left_as_it_is(made_before: bool) -> None:
    with tempfile.TemporaryDirectory() as outer:
        Path(outer).chmod(0o755)
        folder = Path(outer) / "data"
        folder.mkdir()
        if made_before:
            asyncio.run(_made(folder / NAME))
        before = {path: path.read_bytes() for path in folder.iterdir()}
        folder.chmod(0o500)
        if os.geteuid() == 0:
            for path in (folder, *before):
                os.chown(path, 4712, 4712)
        command = [sys.executable, "-c", _READ_ONLY, str(folder / NAME)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert re.search(r"cannot be (opened|used|written).*check who owns", done.stdout), done.stdout
        assert {path: path.read_bytes() for path in folder.iterdir()} == before
        folder.chmod(0o700)


async def _made(path: Path) -> None:
    db = await Database.open(path)
    await put(db, "a")
    await db.aclose()


async def test_a_value_that_makes_no_sense_is_told_as_damage(db: Database) -> None:
    from daemon.store.proposals import ProposalStore
    from tests.support.stores import line

    store = ProposalStore(db)
    async with db.write() as connection:
        await store.save_new(
            connection,
            [line(run_id=None)],
            agent="ledger",
            run_id="r",
            now=line().expires_at,  # type: ignore[arg-type]
            max_new=1,
            max_open=1,
        )
        await connection.execute(
            text(
                "INSERT INTO runs VALUES ('r','ledger','once','succeeded','2026-01-01','2026-01-01',"
                "1,0,0,0,0,0,0,0,0,NULL,NULL,NULL,'[]',NULL,1)"
            )
        )
        await connection.execute(text("UPDATE proposals SET payload = '{broken'"))
    with pytest.raises(StoreError, match="damaged or edited by hand"):
        await store.list()


async def test_it_counts_what_was_committed_and_knows_its_size(db: Database) -> None:
    before = await asyncio.to_thread(db.size)
    await put(db, "one")
    await put(db, "two", "x" * 100_000)
    with pytest.raises(ZeroDivisionError):
        async with db.write():
            raise ZeroDivisionError
    assert db.writes == 2
    files = [db.path, db.path.with_name(f"{NAME}-wal")]
    size = await asyncio.to_thread(lambda: sum(file.stat().st_size for file in files))
    assert await asyncio.to_thread(db.size) == size > before + 100_000
