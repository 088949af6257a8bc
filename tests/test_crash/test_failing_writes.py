"""Each write of the program fails once: nothing is acknowledged that is not kept, and it says why."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.store.migrations import STEPS
from tests.support.crashes import NIGHTLY, old_database
from tests.support.faults import PARTS, SIZE, WRITE, FaultyProgram, most_calls, strike
from tests.support.tally import Note, note

pytestmark = [
    pytest.mark.crash,
    pytest.mark.usefixtures("strace"),
    pytest.mark.timeout(7200 if NIGHTLY else 600),
]

# An I/O error, a full disk, a disk that takes nothing, a signal. One of them for each write, nightly all.
WAYS = ("error=EIO", "error=ENOSPC", "retval=0", "error=EINTR")


def test_no_write_that_fails_makes_it_promise_what_it_does_not_keep(
    tmp_path: Path, record_property: Note
) -> None:
    old = tmp_path / "old"
    old_database(old, STEPS.revisions[0])
    with FaultyProgram(tmp_path / "program") as program:
        orders = [("start", WRITE, "error=EIO", "1+"), ("run", WRITE, "error=ENOSPC", "1+")]
        for part in PARTS:
            for number in range(1, most_calls(program, old, part, WRITE) + 1):
                ways = WAYS if NIGHTLY else (WAYS[number % len(WAYS)],)
                orders += [(part, WRITE, way, str(number)) for way in ways]
        found = strike(program, old, orders)
    note(record_property, failing_system_calls=found.failed, **found.faults.counts())
    assert not found.faults, found.faults
    assert not found.wrong, "\n".join(found.wrong)
    assert found.failed >= len(orders)
    assert found.refused > len(orders) / 4


def test_nor_does_a_write_that_gets_only_half_done(tmp_path: Path, record_property: Note) -> None:
    old = tmp_path / "old"
    old_database(old, STEPS.revisions[0])
    sizes = range(5_000, 220_000, 1_009 if NIGHTLY else 20_011)
    orders = [(part, WRITE, f"{SIZE}{size}", "") for size in sizes for part in ("start", "run", "approve")]
    with FaultyProgram(tmp_path / "program") as program:
        found = strike(program, old, orders)
    note(record_property, **found.faults.counts())
    assert not found.faults, found.faults
    assert not found.wrong, "\n".join(found.wrong)
    assert len(orders) / 4 < found.refused < len(orders)
