"""Debian's libfaketime: a process whose clock on the wall is set while its other clocks go on."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest


@dataclass
class WallClock:
    """The clock of one process, set through a file.

    Attributes:
        file: what libfaketime reads at each look at the clock.
        offset: seconds between that clock and ours.
    """

    file: Path
    offset: float = 0.0

    @property
    def environment(self) -> dict[str, str]:
        """What the process must be started with."""
        self.step(0.0)
        return {
            "LD_PRELOAD": _library(),
            "FAKETIME_TIMESTAMP_FILE": str(self.file),
            "FAKETIME_CACHE_DURATION": "1",  # read anew at each look it costs the loop tenths of seconds
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }

    def step(self, seconds: float) -> None:
        """Set the clock by so much."""
        self.offset += seconds
        draft = self.file.with_suffix(".new")
        draft.write_text(f"{self.offset:+.3f}")
        draft.rename(self.file)

    def set(self, moment: datetime) -> None:
        """Set the clock to that moment."""
        self.step(moment.timestamp() - self.now().timestamp())

    def now(self) -> datetime:
        """What the process reads."""
        return datetime.fromtimestamp(time.time() + self.offset, UTC)


def _library() -> str:
    """The library; the test is skipped, with the reason, where there is none."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    if not found or shutil.which("faketime") is None:
        pytest.skip("libfaketime is missing; on Debian: apt-get install faketime")
    return str(found[0])
