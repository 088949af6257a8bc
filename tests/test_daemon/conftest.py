"""A running daemon that several files ask, with one small agent inside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.control import BEDS, Daemon, daemon_of
from tests.support.program import Program


@pytest.fixture
def garden(tmp_path: Path) -> Program:
    return Program.with_garden(tmp_path, *BEDS, settings='isolation = "none"')


@pytest.fixture
def running(garden: Program) -> Iterator[Daemon]:
    """A daemon that has proposed to water the leeks (1) and the beans (2)."""
    with daemon_of(garden) as daemon:
        daemon.wait_for("run finished")
        yield daemon
