"""The real promtool, if it is here: $PROMTOOL, the PATH, or Debian's package unpacked into .tools/."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

UNPACKED = Path(__file__).parents[2] / ".tools/prometheus/usr/bin/promtool"
HOW_TO_GET_IT = (
    "promtool is missing; set PROMTOOL, or in the repository: apt-get download prometheus "
    "&& dpkg -x prometheus_*.deb .tools/prometheus"
)


def promtool() -> str:
    """The path of promtool; the test is skipped, with the reason, where there is none."""
    for candidate in (os.environ.get("PROMTOOL"), shutil.which("promtool"), str(UNPACKED)):
        if candidate and os.access(candidate, os.X_OK):
            return candidate
    pytest.skip(HOW_TO_GET_IT)


def complaints(text: str) -> str:
    """What `promtool check metrics` says against the metrics in `text`; empty when they are clean."""
    command = [promtool(), "check", "metrics"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)
    return "" if done.returncode == 0 else f"exit {done.returncode}: {done.stdout}{done.stderr}"


def samples(text: str) -> dict[str, float]:
    """Each series of the Prometheus text format with its value: 'name{a="b"}' -> 1.0."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}
