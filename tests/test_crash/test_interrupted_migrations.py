"""A migration ended in front of each statement and behind each system call: the old schema or the new one."""

from __future__ import annotations

import sqlite3
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from daemon.runtime import DATABASE
from daemon.store.migrations import STEPS
from tests.support.crashes import NIGHTLY, OLD_RUN, Story, after_a_start, look, old_database
from tests.support.kills import killings
from tests.support.powercut import kills, record
from tests.support.stores import ROOT
from tests.support.tally import Note, note

pytestmark = [pytest.mark.crash, pytest.mark.timeout(7200 if NIGHTLY else 600)]


def schema(folder: Path) -> set[str]:
    """Every table and index as it was declared."""
    with closing(sqlite3.connect(folder / "data" / DATABASE)) as connection:
        return {sql for (sql,) in connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")}


def schemas(folder: Path) -> dict[str, set[str]]:
    """Revision -> what a database of that revision looks like."""
    for revision in STEPS.revisions:
        old_database(folder / revision, revision)
    return {revision: schema(folder / revision) for revision in STEPS.revisions}


def test_a_migration_killed_before_any_statement_leaves_one_schema_or_the_other(
    tmp_path: Path, record_property: Note
) -> None:
    known = schemas(tmp_path / "known")
    top = tmp_path / "killed"
    top.mkdir()
    result = killings(top, "statements", old=True, start=False)
    between = [f.name for f in top.iterdir() if schema(f) != known[look(f).revision]]
    ran_to_the_end = len(STEPS.revisions) - 1
    note(
        record_property,
        interrupted_migrations=result.killed,
        lost=len(result.faults.lost),
        corrupt=len(result.faults.corrupt) + len(between),
    )
    assert not between
    assert not result.faults, result.faults
    assert result.killed == len(list(top.iterdir())) - ran_to_the_end
    assert result.killed > 10 * ran_to_the_end
    assert result.revisions[STEPS.head] >= ran_to_the_end
    assert all(result.revisions[revision] > 10 for revision in STEPS.revisions[:-1])


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("revision", STEPS.revisions[:-1])
def test_a_migration_killed_behind_any_system_call_does_too(
    tmp_path: Path, memory: Path, revision: str, record_property: Note
) -> None:
    known = schemas(tmp_path / "known")
    folder, state_folder = tmp_path / "old", memory / "state"
    old_database(folder, revision)
    script = (
        "import pathlib, sys\nfrom daemon.store.migrations import prepare\n"
        f"prepare(pathlib.Path(sys.argv[1]) / 'data' / {DATABASE!r})\n"
    )
    recording = record([sys.executable, "-c", script, str(folder)], folder, tmp_path / "trace", cwd=ROOT)
    found, between = Counter[str](), []
    story, lost = Story(old=True), 0
    for state in kills(recording):
        state.write(state_folder)
        kept = look(state_folder)
        found[kept.revision] += 1
        lost += OLD_RUN not in kept.runs
        if kept.damage or schema(state_folder) != known[kept.revision]:
            between.append(state.step)
    last = after_a_start(state_folder, story)
    note(record_property, interrupted_migrations=found.total(), lost=lost, corrupt=len(between))
    assert (between, lost) == ([], 0)
    assert not last, last
    assert set(found) == {revision, STEPS.head}
