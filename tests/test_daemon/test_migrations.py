"""The way from nothing, or from an older schema, to today's; killed anywhere, it leaves one or the other."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory

from daemon.errors import ExitCode, StoreError, StoreTooNew
from daemon.store.engine import Database
from daemon.store.migrations import STEPS, Steps, migrate, prepare
from daemon.store.runs import RunStore
from tests.support.stores import AGENT, ROOT, START, bench, model_call

NAME = "askfirst.sqlite3"
LINES = 12


def schema(path: Path) -> dict[str, str]:
    """Every table and index, with white space evened out."""
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    return {name: re.sub(r"\s+", " ", sql).replace("( ", "(").replace(" )", ")") for name, sql in rows}


def revision(path: Path) -> str:
    with closing(sqlite3.connect(path)) as connection:
        return str(connection.execute("SELECT version_num FROM alembic_version").fetchone()[0])


def with_next(folder: Path, body: str) -> Steps:
    """Today's migrations and one more, whose upgrade() is `body`."""
    versions = folder / "versions"
    versions.mkdir(parents=True)
    for source in (STEPS.folder / "versions").glob("r*.py"):
        (versions / source.name).write_text(source.read_text())
    head = f"revision = 'next'\ndown_revision = {STEPS.head!r}\n"
    (versions / "next.py").write_text(f"from alembic import op\n{head}\n\ndef upgrade():\n{body}")
    return Steps(folder=folder, revisions=(*STEPS.revisions, "next"))


def test_the_migrations_lead_to_the_schema_of_the_tables(tmp_path: Path) -> None:
    prepare(tmp_path / "made" / NAME)
    (tmp_path / "migrated").mkdir()
    migrate(tmp_path / "migrated" / NAME)
    made, migrated = schema(tmp_path / "made" / NAME), schema(tmp_path / "migrated" / NAME)
    assert made == migrated
    assert "proposals" in made
    assert revision(tmp_path / "migrated" / NAME) == STEPS.head


FIRST = Steps(folder=STEPS.folder, revisions=("0001",))


def first_version(path: Path) -> None:
    """A database as the first version made it, with one run and one call."""
    migrate(path, FIRST)
    assert "template" not in schema(path)["model_calls"]
    run = ("r1", AGENT, "once", "succeeded", "", "", 0, 0, 0, 0, 0, 1, 0, 5, 2, None, None, None, "[]")
    at = START.isoformat(timespec="microseconds")
    call = ("c1", "r1", AGENT, at, "mock", "mock", None, "Which?", "This.", 5, 2, 0.0, 0, None)
    with closing(sqlite3.connect(path)) as connection:
        for table, row in (("runs", run), ("model_calls", call)):
            connection.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)
        connection.commit()


async def test_a_database_of_the_first_version_keeps_its_calls_which_had_no_template(tmp_path: Path) -> None:
    path, made = tmp_path / "old" / NAME, tmp_path / "made" / NAME
    path.parent.mkdir(mode=0o700)
    await asyncio.to_thread(first_version, path)
    database = await Database.open(path)
    try:
        assert await RunStore(database).calls_of("r1") == (model_call("c1", template=""),)
    finally:
        await database.aclose()
    await asyncio.to_thread(prepare, made)
    assert schema(path) == schema(made)
    assert revision(path.with_name(f"{NAME}.before-{STEPS.head}")) == "0001"


def test_the_known_revisions_are_those_that_alembic_finds() -> None:
    script = ScriptDirectory(str(STEPS.folder))
    found = [step.revision for step in script.walk_revisions()]
    assert tuple(reversed(found)) == STEPS.revisions
    assert script.get_heads() == [STEPS.head]


def test_a_new_database_is_made_without_alembic() -> None:
    script = (
        "import asyncio, pathlib, sys, tempfile\nfrom daemon.store.engine import Database\n"
        "async def main():\n"
        "    path = pathlib.Path(tempfile.mkdtemp()) / 'data' / 'askfirst.sqlite3'\n"
        "    for _ in range(2): await (await Database.open(path)).aclose()\n"
        "asyncio.run(main())\n"
        "print([name for name in sys.modules if name.startswith('alembic')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


async def test_a_newer_schema_is_refused_and_the_file_stays_untouched(tmp_path: Path) -> None:
    async with bench(tmp_path) as it:
        await it.one()
        path = it.db.path
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()
    os.utime(path, (1_000_000_000, 1_000_000_000))
    before = (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
    with pytest.raises(StoreTooNew, match=r"has schema 9999, and this program knows only up to") as caught:
        await Database.open(path)
    assert caught.value.exit_code == ExitCode.CONFIGURATION
    assert (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) == before


async def test_a_migration_keeps_the_data_and_leaves_a_backup(tmp_path: Path) -> None:
    async with bench(tmp_path) as it:
        await it.one(text="kept")
        path = it.db.path
    old = schema(path)
    steps = with_next(tmp_path / "steps", "    op.execute('ALTER TABLE proposals ADD COLUMN mood TEXT')\n")
    await asyncio.to_thread(prepare, path, steps=steps)
    assert revision(path) == "next"
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT title, mood FROM proposals").fetchall() == [("Write kept", None)]
    backup = path.with_name(f"{NAME}.before-next")
    assert schema(backup) == old
    assert backup.stat().st_mode & 0o777 == 0o600
    assert revision(backup) == STEPS.head


async def test_a_migration_that_would_break_a_reference_is_undone(tmp_path: Path) -> None:
    async with bench(tmp_path) as it:
        await it.one()
        path = it.db.path
    old = schema(path)
    steps = with_next(tmp_path / "steps", "    op.execute('DELETE FROM proposals')\n")
    with pytest.raises(StoreError, match="would break a reference in the table 'proposal_events'"):
        await asyncio.to_thread(prepare, path, steps=steps)
    assert (schema(path), revision(path)) == (old, STEPS.head)


_FAILS = "    op.execute('CREATE TABLE half (id INTEGER)')\n    op.execute('SELECT no_such_function()')\n"


async def test_a_migration_that_fails_leaves_the_old_schema(tmp_path: Path) -> None:
    path = tmp_path / "data" / NAME
    await (await Database.open(path)).aclose()
    old = schema(path)
    with pytest.raises(StoreError, match="no such function"):
        await asyncio.to_thread(prepare, path, steps=with_next(tmp_path / "steps", _FAILS))
    assert (schema(path), revision(path)) == (old, STEPS.head)


_MIGRATE_IN_CHILDREN = """
import os, pathlib, random, signal, sys, time
from daemon.store.migrations import STEPS, Steps, prepare
import alembic.operations, alembic.runtime.migration, alembic.script

path, steps, seed, kills = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
steps = Steps(pathlib.Path(steps), (*STEPS.revisions, "next"))
for suffix in ("", "-wal", "-shm"):
    pathlib.Path(f"{path}{suffix}.old").unlink(missing_ok=True)
old = path.read_bytes()
chance = random.Random(seed)
for _ in range(kills):
    for suffix in ("-wal", "-shm"):
        pathlib.Path(f"{path}{suffix}").unlink(missing_ok=True)
    path.write_bytes(old)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, b"x")
        prepare(path, steps=steps)
        os._exit(0)
    os.read(read, 1)
    time.sleep(chance.uniform(0, 0.05))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(read), os.close(write)
    import sqlite3
    connection = sqlite3.connect(path)
    query = "SELECT name FROM sqlite_master WHERE name LIKE 'extra%'"
    tables = {name for (name,) in connection.execute(query)}
    revision = connection.execute("SELECT version_num FROM alembic_version").fetchone()[0]
    whole = connection.execute("PRAGMA integrity_check").fetchone()[0]
    connection.close()
    print(revision, len(tables), whole, os.WIFSIGNALED(status), flush=True)
"""


async def test_a_migration_killed_anywhere_leaves_the_old_schema_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "data" / NAME
    await (await Database.open(path)).aclose()
    body = "".join(f"    op.execute('CREATE TABLE extra{n} (id INTEGER)')\n" for n in range(LINES))
    steps = with_next(tmp_path / "steps", body)
    command = [sys.executable, "-c", _MIGRATE_IN_CHILDREN, str(path), str(steps.folder), "3", "40"]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=subprocess.PIPE)
    out, _ = await process.communicate()
    assert process.returncode == 0
    found = [tuple(each.split()) for each in out.decode().splitlines()]
    assert len(found) == 40
    assert {state[:3] for state in found} <= {(STEPS.head, "0", "ok"), ("next", str(LINES), "ok")}
    assert any(state[3] == "True" for state in found)
    await asyncio.to_thread(prepare, path, steps=steps)
    assert revision(path) == "next"


_MAKE_IN_CHILDREN = """
import os, pathlib, random, signal, sqlite3, sys, time
from daemon.store.migrations import STEPS, prepare

folder, chance = pathlib.Path(sys.argv[1]), random.Random(5)
for number in range(60):
    path = folder / str(number) / "askfirst.sqlite3"
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, b"x")
        prepare(path)
        os._exit(0)
    os.read(read, 1)
    time.sleep(chance.uniform(0, 0.025))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(read), os.close(write)
    made = path.exists() and path.stat().st_size > 0
    prepare(path)
    connection = sqlite3.connect(path)
    print(made, connection.execute("SELECT version_num FROM alembic_version").fetchone()[0])
    connection.close()
"""


def test_making_a_new_database_killed_anywhere_can_be_tried_again(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _MAKE_IN_CHILDREN, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [tuple(each.split()) for each in done.stdout.splitlines()]
    assert len(found) == 60
    assert {revision for _, revision in found} == {STEPS.head}
    assert {made for made, _ in found} == {"True", "False"}  # some were killed before, some after


async def test_another_database_in_the_same_place_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "data" / NAME
    await (await Database.open(path)).aclose()
    (path.parent / "instance").write_text("someone else\n")
    db = await Database.open(path)
    assert "is another database" in caplog.text
    assert (path.parent / "instance").read_text().strip() == db.instance_id
    await db.aclose()
