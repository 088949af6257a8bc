"""Every panel of the dashboards in a real Prometheus that holds some hours of every metric."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.backfill import filled_prometheus
from tests.support.dashboards import boards, marks, panels, queries
from tests.support.monitoring import Prometheus

pytestmark = pytest.mark.monitoring

HOURS = 3
STRETCH = 300
"""Seconds that one point of a graph stands for."""

WINDOW = "6m"
"""What `$__rate_interval` would be for such stretches."""


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    with filled_prometheus(tmp_path_factory.mktemp("prometheus"), hours=HOURS) as filled:
        yield filled


def values(prometheus: Prometheus, expr: str, *, instant: bool) -> list[float]:
    """Every value that a panel would show."""
    if instant:
        return [float(series["value"][1]) for series in prometheus.query(expr)]
    now = time.time()
    found = prometheus.api(
        "query_range", query=expr, start=f"{now - HOURS * 3600}", end=f"{now}", step=f"{STRETCH}"
    )
    return [float(value) for series in found["result"] for _, value in series["values"]]


def test_every_query_of_every_panel_has_an_answer_that_can_be_drawn(prometheus: Prometheus) -> None:
    asked = [*queries(window=WINDOW, over=f"{HOURS}h"), *marks(window=WINDOW)]
    shown = {query: values(prometheus, query.expr, instant=query.instant) for query in asked}
    assert [query for query, found in shown.items() if not found] == []
    assert [query for query, found in shown.items() if not all(map(math.isfinite, found))] == []


def test_shares_are_between_nothing_and_everything(prometheus: Prometheus) -> None:
    kinds = {
        (uid, panel["title"]): panel["fieldConfig"]["defaults"].get("unit")
        for uid, board in boards().items()
        for panel in panels(board)
    }
    asked = queries(window=WINDOW, over=f"{HOURS}h")
    shares = [query for query in asked if kinds[query.dashboard, query.panel] == "percentunit"]
    assert len(shares) >= 8
    for query in shares:
        found = values(prometheus, query.expr, instant=query.instant)
        assert 0 <= min(found) <= max(found) <= 1, query


def test_a_number_at_the_top_is_one_number(prometheus: Prometheus) -> None:
    stats = {
        (uid, panel["title"])
        for uid, board in boards().items()
        for panel in panels(board)
        if panel["type"] == "stat"
    }
    asked = [query for query in queries(over=f"{HOURS}h") if (query.dashboard, query.panel) in stats]
    assert len(asked) == len(stats)
    assert {query: len(prometheus.query(query.expr)) for query in asked} == dict.fromkeys(asked, 1)


def test_a_table_has_one_row_for_each_key_whatever_the_column(prometheus: Prometheus) -> None:
    """Grafana merges the columns by their labels: one label too many would be a row too many."""
    rows: dict[str, set[frozenset[Any]]] = {}
    for query in queries(over=f"{HOURS}h"):
        if query.panel in {"Agents", "Budgets"}:
            found = prometheus.query(query.expr)
            rows.setdefault(query.panel, set()).update(
                frozenset(series["metric"].items()) for series in found
            )
    assert {panel: len(keys) for panel, keys in rows.items()} == {"Agents": 3, "Budgets": 2}


def test_the_dashboards_look_at_one_daemon(prometheus: Prometheus) -> None:
    """But for the alerts, of which each is told wherever it comes from."""
    elsewhere = queries(instance="127.0.0.1:9", over=f"{HOURS}h", window=WINDOW)
    seen = {query.expr for query in elsewhere if values(prometheus, query.expr, instant=query.instant)}
    assert all("ALERTS" in expr for expr in seen)
    assert seen


def test_nothing_is_told_of_a_daemon_that_is_not_reached(tmp_path: Path, prometheus: Prometheus) -> None:
    """A zero beside a dead daemon would look like good news."""
    gone = [
        query for query in queries(job="nobody", over="1h") if query.instant and "ALERTS" not in query.expr
    ]
    assert [query for query in gone if prometheus.query(query.expr)] == []
