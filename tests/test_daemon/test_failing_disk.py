"""A disk that fails: nothing is acknowledged that was not written; after too many failures it starts anew.

The failing disk is a limit on the size of files: each write beyond it is an I/O error to SQLite.
"""

from __future__ import annotations

import json
import resource
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from daemon.errors import ExitCode
from daemon.store.engine import GIVE_UP_AFTER
from tests.support.program import Program
from tests.support.stores import ROOT
from tests.support.waiting import seen_now

NAME = "askfirst.sqlite3"

_WRITES = """
import asyncio, json, logging, os, pathlib, resource, sys
from sqlalchemy import insert
from daemon.errors import StoreError
from daemon.store.engine import Database
from daemon.store.tables import meta

NO_LIMIT = resource.RLIM_INFINITY
logging.basicConfig(level="WARNING", format="%(message)s", stream=sys.stdout)

def tell(**what):
    print(json.dumps(what), flush=True)

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, NO_LIMIT))

async def put(db, key):
    try:
        async with db.write() as connection:
            await connection.execute(insert(meta).values(key=key, value="x" * 9000))
    except StoreError as error:
        tell(key=key, refused=str(error), given_up=db.given_up.is_set())
    else:
        tell(key=key, refused=None, given_up=db.given_up.is_set())

async def main():
    path = pathlib.Path(sys.argv[1])
    db = await Database.open(path)
    for number in range(200):
        await put(db, f"before {number}")
    for step in sys.argv[2].split():
        match step:
            case "limit": limit(4096)
            case "free": limit(NO_LIMIT)
            case "checkpoint":
                async with db._writer.connect() as connection:
                    await connection.exec_driver_sql("ROLLBACK")
                    await connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
            case "damage":
                size = path.stat().st_size // 4096
                with path.open("r+b") as stream:
                    for page in range(size // 2, size):
                        stream.seek(page * 4096)
                        stream.write(os.urandom(64))
            case _: await put(db, step)
    limit(NO_LIMIT)

asyncio.run(main())
os._exit(0)
"""


def written(path: Path, steps: str) -> tuple[list[dict[str, Any]], str]:
    """What became of each write after the first 200, and what else was said."""
    command = [sys.executable, "-c", _WRITES, str(path), steps]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = [json.loads(each) for each in done.stdout.splitlines() if each.startswith("{")]
    said = "\n".join(each for each in done.stdout.splitlines() if not each.startswith("{"))
    assert [each["refused"] for each in told[:200]] == [None] * 200
    return told[200:], said


def test_after_an_error_of_the_disk_the_database_is_looked_through_before_the_next_write(
    tmp_path: Path,
) -> None:
    told, said = written(tmp_path / "data" / NAME, "limit write write free write write")
    assert [each["refused"] is None for each in told] == [False, False, True, False]
    assert "the disk failed to read or write it" in told[0]["refused"]
    assert said.count("the database was looked through after an error of the disk: it is sound") >= 1
    assert "contradicts" in told[3]["refused"]  # the same key again: an error that says nothing of the disk


def test_one_that_was_damaged_meanwhile_is_written_no_more_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "data" / NAME
    told, _ = written(path, "checkpoint limit write free damage write write write write write")
    assert "disk failed" in told[0]["refused"]
    assert all("damaged" in each["refused"] for each in told[1:])
    assert [each["given_up"] for each in told] == [False] * (GIVE_UP_AFTER - 1) + [True] * 2
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",)
    assert not list(path.parent.glob("*.replaced*"))  # moved nowhere


def test_it_gives_up_after_so_many_failures_in_a_row_and_not_before(tmp_path: Path) -> None:
    told, said = written(tmp_path / "data" / NAME, "limit " + "write " * GIVE_UP_AFTER)
    assert [each["given_up"] for each in told] == [False] * (GIVE_UP_AFTER - 1) + [True]
    assert said.count(f"the disk failed {GIVE_UP_AFTER} writes to") == 1
    steps = "limit write write write write free write:2 limit write:3 write:3 write:3 write:3"
    told, _ = written(tmp_path / "other" / NAME, steps)
    assert [each["refused"] is None for each in told] == [False] * 4 + [True] + [False] * 4
    assert not any(each["given_up"] for each in told)


@pytest.mark.process
@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits of another process need Linux")
def test_the_daemon_ends_with_a_clear_line_and_the_next_start_goes_on(tmp_path: Path) -> None:
    program = Program.with_garden(tmp_path, "leeks dry", settings='every = "1s"')
    config = tmp_path / "config" / "askfirst.toml"
    config.write_text(config.read_text().replace("[daemon]", '[daemon]\nbackoff = ["1s"]'))
    database = tmp_path / "data" / NAME

    def runs() -> int:
        if not database.exists():
            return 0
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
            found = connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'runs'").fetchone()[0]
            return int(connection.execute("SELECT count(*) FROM runs").fetchone()[0]) if found else 0

    # Without coverage, which could not write its own file either, and says so with a traceback.
    silent = {"ASKFIRST_DAEMON__LOG_FORMAT": "json", "COVERAGE_PROCESS_CONFIG": ""}
    with program.running("run", **silent) as process:
        seen_now(lambda: runs() >= 2)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        _, err = process.communicate(timeout=60)
    assert process.returncode == ExitCode.FAILED
    assert "ending: the disk fails again and again; a new start looks through the database" in err
    assert "Traceback" not in err
    before = runs()
    with program.running("run") as process:
        seen_now(lambda: runs() > before)
        process.terminate()
        assert process.wait(30) == 0
