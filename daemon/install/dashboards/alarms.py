"""The alarms of config/prometheus, and the way from a panel to what to do about one."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from daemon.install.dashboards.panels import Link, runbook

RULES = Path(__file__).parents[3] / "config" / "prometheus" / "askfirst.rules.yml"


@cache
def alarm_names() -> tuple[str, ...]:
    """The alerts that the rules make, in their order."""
    return tuple(re.findall(r"^ +- alert: (\w+)$", RULES.read_text(encoding="utf-8"), re.MULTILINE))


def alarm(name: str) -> Link:
    """The way to the alarm's runbook: a section of its name.

    Raises:
        LookupError: no rule makes such an alert.
    """
    if name not in alarm_names():
        raise LookupError(f"{RULES.name} has no alert {name}")
    return runbook(name.lower(), f"Runbook: {name}")
