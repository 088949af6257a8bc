"""The lines at the end of `pytest -m crash` and `-m monitoring`: what happened, added up; nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.stores import ROOT

CODE = """
import pytest
from tests.support.tally import note, note_watched

@pytest.mark.parametrize("times", [1, 2])
def test_kills(record_property, times):
    note(record_property, kills=1000 * times, lost=times - 1)
    assert times == 1

def test_cuts(record_property):
    note(record_property, power_cuts=7)

@pytest.mark.parametrize("name", ["one", "two"])
def test_alarms(record_property, name):
    note_watched(record_property, metrics=53 * (name == "one"), alerts=1)
"""


@pytest.mark.parametrize("workers", ["0", "2"])
def test_the_counts_of_all_tests_are_said_in_one_line_also_when_they_are_spread(
    tmp_path: Path, workers: str
) -> None:
    (tmp_path / "test_some.py").write_text(CODE)
    options = [
        "-q",
        "-p",
        "tests.conftest",
        "-n",
        workers,
        "-c",
        str(ROOT / "pyproject.toml"),
        "--rootdir",
        ".",
    ]
    command = [sys.executable, "-m", "pytest", *options, "-p", "no:cacheprovider", "test_some.py"]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    line = (
        "crash: 7 power cuts, 3,000 kills, 0 replayed kills, 0 failing system calls, "
        "0 interrupted migrations: 1 lost, 0 duplicated, 0 corrupt"
    )
    watched = "monitoring: 53 metrics, 0 panels, 0 rules, 2 alerts fired, 0 spans received"
    assert {line, watched} <= set(done.stdout.splitlines()), done.stdout + done.stderr


def test_nothing_is_said_when_nothing_was_counted(tmp_path: Path) -> None:
    (tmp_path / "test_none.py").write_text("def test_none(): pass")
    options = ["-q", "-p", "tests.conftest", "-c", str(ROOT / "pyproject.toml"), "--rootdir", "."]
    command = [sys.executable, "-m", "pytest", *options, "-p", "no:cacheprovider", "test_none.py"]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert "1 passed" in done.stdout
    assert "crash:" not in done.stdout
