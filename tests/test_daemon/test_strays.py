"""What a worker started is found by its parents and by its mark, on Linux and elsewhere alike."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from daemon.worker import strays
from daemon.worker.strays import find_strays
from tests.support.waiting import seen_now

# A parent, a child in a session and an environment of its own, and a marked orphan; it prints their numbers.
FAMILY = """
import os, subprocess, sys, time
sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
clean = subprocess.Popen(sleep, env={}, start_new_session=True)
middle = [sys.executable, "-c", (
    "import subprocess, sys;"
    "away = {'start_new_session': True, 'stdout': subprocess.DEVNULL};"
    "print(subprocess.Popen(sys.argv[1:], **away).pid)"
)]
orphan = subprocess.run([*middle, *sleep], stdout=subprocess.PIPE, text=True).stdout.strip()
print(os.getpid(), clean.pid, orphan, flush=True)
time.sleep(600)
"""


@pytest.fixture
def family(tmp_path: Path) -> Iterator[tuple[int, int, int]]:
    process = subprocess.Popen(
        [sys.executable, "-c", FAMILY],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "MARK_OF_A_TEST": str(tmp_path)},
    )
    with process:
        assert process.stdout is not None
        parent, clean, orphan = map(int, process.stdout.readline().split())
        try:
            yield parent, clean, orphan
        finally:
            for pid in (clean, orphan):
                os.kill(pid, 9)
            process.kill()


async def test_descendants_and_marked_orphans_are_found(family: tuple[int, int, int], tmp_path: Path) -> None:
    parent, clean, orphan = family
    assert await find_strays(parent, "MARK_OF_A_TEST", str(tmp_path)) == sorted([clean, orphan])
    assert await find_strays(parent, "MARK_OF_A_TEST", "another") == [clean]
    assert await find_strays(0x7FFFFFFF, "MARK_OF_A_TEST", str(tmp_path)) == sorted([parent, orphan])


def test_the_two_ways_to_look_see_the_same(
    family: tuple[int, int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent, clean, orphan = family
    monkeypatch.setattr("daemon.worker.strays.sys.platform", "another")
    assert strays._strays(parent, f"MARK_OF_A_TEST={tmp_path}") == sorted([clean, orphan])


def test_the_dead_are_no_strays(tmp_path: Path) -> None:
    """One that has ended and was not waited for yet is still listed by the system."""
    process = subprocess.Popen([sys.executable, "-c", ""], env={"MARK_OF_A_TEST": str(tmp_path)})
    seen_now(lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE)
    try:
        assert strays._strays(os.getpid(), f"MARK_OF_A_TEST={tmp_path}") == sorted(
            child.pid for child in psutil.Process().children(recursive=True) if child.pid != process.pid
        )
    finally:
        process.wait()
