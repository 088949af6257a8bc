"""What the tests about crashes, and those with a real Prometheus, counted, said in a line each at the end.

A test notes its counts with pytest's `record_property`, so they reach the process that prints, also when the
tests are spread over several.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

import pytest

KEY = "crash counts"
TRIED = ("power cuts", "kills", "replayed kills", "failing system calls", "interrupted migrations")
FOUND = ("lost", "duplicated", "corrupt")

Note = Callable[[str, object], None]


def note(record_property: Note, **counts: int) -> None:
    """Note these counts; the names are those of `TRIED` and `FOUND`, blanks written as underscores."""
    record_property(KEY, {name.replace("_", " "): count for name, count in counts.items()})


def summary(reports: Iterable[pytest.TestReport]) -> str:
    """The line, empty when nothing was counted."""
    total: Counter[str] = Counter()
    for report in reports:
        for key, counts in report.user_properties:
            if key == KEY and report.when == "call" and isinstance(counts, Mapping):
                total.update(counts)
    if not any(total[name] for name in TRIED):
        return ""
    tried = ", ".join(f"{total[name]:,} {name}" for name in TRIED)
    found = ", ".join(f"{total[name]:,} {name}" for name in FOUND)
    return f"crash: {tried}: {found}"


WATCHED = "monitoring counts"


def note_watched(record_property: Note, **counts: int) -> None:
    """Note what was watched: `metrics`, `panels`, `rules`, `alerts`, `spans`."""
    record_property(WATCHED, counts)


def watched_summary(reports: Iterable[pytest.TestReport]) -> str:
    """The line about what was watched, empty when nothing was."""
    total: Counter[str] = Counter()
    for report in reports:
        for key, counts in report.user_properties:
            if key == WATCHED and report.when == "call" and isinstance(counts, Mapping):
                total.update(counts)
    if not total:
        return ""
    metrics, panels, rules, alerts = (total[name] for name in ("metrics", "panels", "rules", "alerts"))
    seen = f"{metrics} metrics, {panels} panels, {rules} rules, {alerts} alerts fired"
    return f"monitoring: {seen}, {total['spans']} spans received"
