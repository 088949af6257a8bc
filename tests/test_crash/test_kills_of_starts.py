"""kill -9 while the program starts, stops or migrates its database."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.crashes import NIGHTLY
from tests.support.kills import killings
from tests.support.tally import Note, note

pytestmark = [pytest.mark.crash, pytest.mark.timeout(7200 if NIGHTLY else 600)]

SHORT = 3_000 if NIGHTLY else 300
MIGRATIONS = 2_000 if NIGHTLY else 200


def test_a_kill_at_the_start_or_the_stop_loses_nothing(tmp_path: Path, record_property: Note) -> None:
    result = killings(tmp_path, "lives", SHORT, seed=5)
    note(record_property, kills=result.killed, **result.faults.counts())
    assert not result.faults, result.faults
    assert result.killed == SHORT
    assert result.words["ran"] > SHORT / 4
    assert min(result.last[part] for part in ("start", "run", "stop")) > 0


def test_a_kill_during_a_migration_leaves_the_old_schema_or_the_new_one(
    tmp_path: Path, record_property: Note
) -> None:
    result = killings(tmp_path, "migrations", MIGRATIONS, seed=5, old=True)
    note(record_property, kills=result.killed, **result.faults.counts())
    assert not result.faults, result.faults
    assert result.killed == MIGRATIONS
    assert len(result.revisions) > 1, "no kill came before a migration had ended, or none after it"
