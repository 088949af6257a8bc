"""Every other call of the program about its files fails once: to open, read, flush, rename and delete."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.store.migrations import STEPS
from tests.support.crashes import NIGHTLY, old_database
from tests.support.faults import (
    FLUSH,
    NAMES,
    OPEN,
    PARTS,
    READ,
    RESIZE,
    FaultyProgram,
    most_calls,
    strike,
)
from tests.support.program import Program
from tests.support.tally import Note, note

pytestmark = [
    pytest.mark.crash,
    pytest.mark.usefixtures("strace"),
    pytest.mark.timeout(7200 if NIGHTLY else 600),
]

# calls -> how they fail, and each which one of them is tried when it is not nightly
KINDS = {
    FLUSH: ("error=EIO", 1),
    OPEN: ("error=EIO", 2),
    READ: ("error=EIO", 5),
    RESIZE: ("error=EIO", 1),
    NAMES: ("error=EIO", 1),
}


def test_no_other_call_that_fails_does_either(tmp_path: Path, record_property: Note) -> None:
    old = tmp_path / "old"
    old_database(old, STEPS.revisions[0])
    orders = []
    with FaultyProgram(tmp_path / "program") as program:
        for calls, (way, step) in KINDS.items():
            for part in PARTS:
                most = most_calls(program, old, part, calls)
                orders += [(part, calls, way, str(n)) for n in range(1, most + 1, 1 if NIGHTLY else step)]
                orders += [(part, calls, way, "1+")] if most else []
        found = strike(program, old, orders)
    note(record_property, failing_system_calls=found.failed, **found.faults.counts())
    assert not found.faults, found.faults
    assert not found.wrong, "\n".join(found.wrong)
    assert found.failed >= len(orders)
    assert found.refused > len(orders) / 4


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("pwrite64:error=ENOSPC:when=30+", "the disk is full"),
        ("fdatasync:error=EIO:when=3+", "the disk failed to read or write it"),
        ("ftruncate:error=ENOSPC:when=1+", "the disk"),
    ],
)
def test_a_person_at_a_terminal_is_told_what_to_do(tmp_path: Path, fault: str, says: str) -> None:
    program = Program.with_garden(tmp_path, "leeks dry")
    call = fault.partition(":")[0]
    strace = ["strace", "-f", "-qq", "-o", os.devnull, "-e", f"trace={call}", "-e", f"inject={fault}"]
    for name in (
        "askfirst.sqlite3",
        "askfirst.sqlite3-wal",
        "askfirst.sqlite3-shm",
        "askfirst.sqlite3-journal",
    ):
        strace += ["-P", str(tmp_path / "data" / name)]
    done = subprocess.run(
        [*strace, sys.executable, "-P", "-m", "daemon", "--once"],
        cwd=tmp_path,
        env=program.whole_environment({}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done
    assert says in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert program.run("--once").code == 0
