"""The dashboards as Grafana would read them, and their queries as Prometheus would be asked them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "config" / "grafana"


@dataclass(frozen=True, slots=True)
class Query:
    """One query of a panel.

    Attributes:
        dashboard: the dashboard's uid.
        panel: the panel's title.
        expr: PromQL without variables.
        instant: whether only its value now is shown.
    """

    dashboard: str
    panel: str
    expr: str
    instant: bool


def boards() -> dict[str, Any]:
    """The dashboards of config/grafana by uid."""
    texts = [path.read_text(encoding="utf-8") for path in sorted((FOLDER / "dashboards").glob("*.json"))]
    return {board["uid"]: board for board in map(json.loads, texts)}


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    """The dashboard's panels, without the headings of its rows."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def queries(
    *, job: str = "askfirst", instance: str = "127.0.0.1:8484", window: str = "1m", over: str = "1h"
) -> list[Query]:
    """Every query of every panel, with Grafana's variables replaced: one daemon, and all of what it has.

    Args:
        job: the job's name in Prometheus.
        instance: the daemon's address, as Prometheus calls it.
        window: what a rate is made over, as PromQL writes it.
        over: the time that the dashboard shows.
    """
    values = {"job": job, "instance": instance, "__rate_interval": window, "__range": over}
    return [
        Query(board["uid"], panel["title"], replaced(target["expr"], values), target["instant"])
        for board in boards().values()
        for panel in panels(board)
        for target in panel["targets"]
    ]


def marks(*, job: str = "askfirst", instance: str = "127.0.0.1:8484", window: str = "1m") -> list[Query]:
    """The queries of what is marked in every graph; most of the time there is nothing to mark."""
    values = {"job": job, "instance": instance, "__rate_interval": window}
    return list(_marks(values))


def _marks(values: dict[str, str]) -> Iterator[Query]:
    for board in boards().values():
        for mark in board["annotations"]["list"]:
            if "expr" in mark:
                yield Query(board["uid"], mark["name"], replaced(mark["expr"], values), instant=False)


def replaced(expr: str, values: dict[str, str]) -> str:
    """The expression without variables; those that are not in `values` stand for everything."""
    return re.sub(r"\$(\w+)", lambda found: values.get(found[1], ".*"), expr)
