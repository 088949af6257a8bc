"""kill -9 at any moment of the work: what was acknowledged is kept, nothing happens twice or half."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.crashes import NIGHTLY
from tests.support.kills import killings
from tests.support.tally import Note, note

pytestmark = [pytest.mark.crash, pytest.mark.timeout(7200 if NIGHTLY else 600)]

KILLS = 5_000 if NIGHTLY else 500


def test_what_was_acknowledged_survives_every_kill_and_nothing_happens_twice(
    tmp_path: Path, record_property: Note
) -> None:
    result = killings(tmp_path, "work", KILLS, seed=11)
    note(record_property, kills=result.killed, **result.faults.counts())
    assert not result.faults, result.faults
    assert result.killed == KILLS
    assert result.words["ran"] > KILLS / 10
    # How far a life gets before its kill depends on the machine; that each kind of work was there counts.
    assert min(result.words[word] for word in ("applied", "undone", "rejected")) > KILLS / 50
