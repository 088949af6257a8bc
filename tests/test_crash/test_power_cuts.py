"""The power fails at any moment: what was acknowledged is there, nothing happened twice, nobody has to help.

The real program is recorded with strace; then the disk is put together as a cut behind each system call could
leave it. The last tests turn off what the promise rests on, and the same search has to find the losses.
"""

from __future__ import annotations

import shutil
import sqlite3
import sys
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from daemon.runtime import DATABASE
from daemon.store.migrations import STEPS
from tests.support.crashes import (
    NIGHTLY,
    Faults,
    Story,
    after_a_start,
    faults_in,
    look,
    old_database,
)
from tests.support.powercut import Recording, Said, State, kills, record, states
from tests.support.stores import ROOT
from tests.support.tally import Note, note

pytestmark = [
    pytest.mark.crash,
    pytest.mark.usefixtures("strace"),
    pytest.mark.timeout(7200 if NIGHTLY else 600),
]

CUTS = 10_000 if NIGHTLY else 1_000
STARTS_EVERY = 50
OFTEN = "wal_autocheckpoint=20"
"""Writes the log back into the database every 20 pages, so that cuts in the middle of that are many."""


def _need_strace() -> None:
    if shutil.which("strace") is None:
        pytest.skip("needs strace: apt-get install strace")


def life(folder: Path, *pragmas: str, lives: int = 2) -> Recording:
    """The recording of a program that starts, works and stops in `folder`, and does so again."""
    command = [sys.executable, "-m", "tests.support.crashes", str(folder), str(lives), *pragmas]
    return record(command, folder, folder.with_suffix(".trace"), cwd=ROOT)


@dataclass
class Survey:
    """What was found in how many states."""

    states: int = 0
    starts: int = 0
    faults: Faults = field(default_factory=Faults)


def survey(recording: Recording, folder: Path, found_in: Iterable[State], *, old: bool) -> Survey:
    """Look at each of these states; into every fiftieth the real program is started."""
    found = Survey()
    said = [step.words for step in recording.steps if isinstance(step, Said)]
    stories = _stories(said, old=old)
    for state in found_in:
        state.write(folder)
        story = stories[state.said]
        found.states += 1
        if found.states % STARTS_EVERY:
            found.faults.add(faults_in(story, look(folder), settled=False))
        else:
            found.starts += 1
            found.faults.add(after_a_start(folder, story))
        _look_at_backup(folder, found.faults)
    return found


def _stories(said: list[tuple[object, ...]], *, old: bool) -> list[Story]:
    """What had been told after so many words."""
    stories = []
    for length in range(len(said) + 1):
        story = Story(old=old)
        for words in said[:length]:
            story.hear(words)
        stories.append(story)
    return stories


def _look_at_backup(folder: Path, faults: Faults) -> None:
    """A backup that has its final name is whole."""
    path = folder / "data" / f"{DATABASE}.before-{STEPS.head}"
    if not path.exists():
        return
    try:
        with closing(sqlite3.connect(path)) as connection:
            verdict = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
            rows = connection.execute("SELECT count(*) FROM runs").fetchone()[0]
    except sqlite3.DatabaseError as error:
        verdict, rows = str(error), 0
    if (verdict, rows) != ("ok", 1):
        faults.corrupt.append(f"the backup before the migration: {verdict}, {rows} runs")


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """Of a program that begins with nothing."""
    _need_strace()
    return life(tmp_path_factory.mktemp("recorded") / "new", OFTEN)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """Of a program that finds a database of the first schema."""
    _need_strace()
    folder = tmp_path_factory.mktemp("recorded") / "old"
    old_database(folder, STEPS.revisions[0])
    return life(folder)


def test_no_cut_of_the_power_loses_or_repeats_anything(
    new: Recording, memory: Path, record_property: Note
) -> None:
    found = survey(new, memory / "cut", states(new, CUTS, seed=7), old=False)
    note(record_property, power_cuts=found.states, **found.faults.counts())
    assert not found.faults, found.faults
    assert found.states >= CUTS
    assert found.starts >= CUTS // STARTS_EVERY


def test_nor_does_one_during_or_after_a_migration(
    old: Recording, memory: Path, record_property: Note
) -> None:
    found = survey(old, memory / "cut", states(old, CUTS, seed=7), old=True)
    note(record_property, power_cuts=found.states, **found.faults.counts())
    assert not found.faults, found.faults
    assert found.states >= CUTS


def test_nor_does_a_kill_behind_any_system_call(
    new: Recording, old: Recording, memory: Path, record_property: Note
) -> None:
    for recording in (new, old):
        found = survey(recording, memory / "killed", kills(recording), old=recording is old)
        note(record_property, replayed_kills=found.states, **found.faults.counts())
        assert not found.faults, found.faults
        assert found.states > 300


def test_the_search_finds_what_is_lost_without_a_flush_at_each_commit(tmp_path: Path, memory: Path) -> None:
    recording = life(tmp_path / "normal", "synchronous=NORMAL", lives=1)
    found = survey(recording, memory / "cut", states(recording, 300, seed=7), old=False)
    assert len(found.faults.lost) > 20
    assert not found.faults.corrupt


def test_the_search_finds_the_damage_of_writing_back_without_any_flush(tmp_path: Path, memory: Path) -> None:
    recording = life(tmp_path / "off", "synchronous=OFF", OFTEN, lives=1)
    found = survey(recording, memory / "cut", states(recording, 300, seed=7), old=False)
    assert len(found.faults.corrupt) > 10
