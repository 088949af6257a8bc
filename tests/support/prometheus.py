"""The real Prometheus and its family, if here: a variable, the PATH, or Debian's packages in .tools."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / ".tools"

PACKAGES = {
    "promtool": "prometheus",
    "prometheus": "prometheus",
    "prometheus-alertmanager": "prometheus-alertmanager",
    "amtool": "prometheus-alertmanager",
    "prometheus-pushgateway": "prometheus-pushgateway",
}
"""Each program with Debian's package of it."""


def tool(name: str) -> str:
    """The path of one of `PACKAGES`; the test is skipped, with the reason, where there is none."""
    package, variable = PACKAGES[name], name.upper().replace("-", "_")
    for candidate in (os.environ.get(variable), shutil.which(name), TOOLS / package / "usr/bin" / name):
        if candidate and os.access(candidate, os.X_OK):
            return str(candidate)
    pytest.skip(
        f"{name} is missing; set {variable}, or in the repository: apt-get download {package} "
        f"&& dpkg -x {package}_*.deb .tools/{package}"
    )


def complaints(text: str) -> str:
    """What `promtool check metrics` says against the metrics in `text`; empty when they are clean."""
    command = [tool("promtool"), "check", "metrics"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)
    return "" if done.returncode == 0 else f"exit {done.returncode}: {done.stdout}{done.stderr}"


def samples(text: str) -> dict[str, float]:
    """Each series of the Prometheus text format with its value: 'name{a="b"}' -> 1.0."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}
