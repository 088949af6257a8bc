"""A dashboard: rows of panels laid out on Grafana's 24 columns, its variables and links, and its JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from daemon.install.dashboards.panels import DATASOURCE, JSON, RUNBOOKS, Panel
from daemon.install.dashboards.promql import ALERTNAMES, SCOPE, Source, labels_of
from daemon.observability.catalogue import METRICS

COLUMNS = 24

SCHEMA = 41
"""Of Grafana 11.6 and 12.0; later ones bring it to their own when they read it."""

TAG = "askfirst"

TITLES: Mapping[str, str] = {
    "askfirst-overview": "Askfirst overview",
    "askfirst-models": "Askfirst models",
    "askfirst-inbox": "Askfirst inbox",
}
"""All dashboards: their uids, which are their files' names, and titles."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """A choice at the top of a dashboard: the values of a label.

    Attributes:
        name: of the variable.
        title: what stands beside the choice.
        metric: whose series have the label.
        label: the label.
    """

    name: str
    title: str
    metric: str
    label: str

    def json(self) -> JSON:
        """As Grafana wants it: any number of values, at first all."""
        if self.label not in labels_of(METRICS[self.metric]):
            raise ValueError(f"{self.metric} has no label {self.label}")
        query = f"label_values({self.metric}{{{SCOPE}}}, {self.label})"
        return _asked(self.name, self.title, query) | {
            "allValue": ".*",  # a series without the label is not left out
            "current": {"text": "All", "value": "$__all"},
            "includeAll": True,
            "multi": True,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Panels under one heading; each line of them fills the width."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """One dashboard.

    Attributes:
        uid: its name in addresses, one of `TITLES`.
        description: which question it answers.
        rows: its panels.
        variables: its choices, besides the data source and the daemon.
        since: how far back it looks at first, as Grafana writes it.
    """

    uid: str
    description: str
    rows: Sequence[Row]
    variables: Sequence[Variable] = ()
    since: str = "now-24h"
    tags: Sequence[str] = field(default=(TAG,))

    def text(self) -> str:
        """The dashboard's file."""
        return json.dumps(self.json(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    def json(self) -> JSON:
        """The dashboard in Grafana's classic model."""
        return {
            "annotations": {"list": _annotations()},
            "description": self.description,
            "editable": True,
            "fiscalYearStartMonth": 0,
            "graphTooltip": 1,  # the crosshair is shared: what happened at the same time is seen at once
            "links": list(self._links()),
            "panels": list(self._laid_out()),
            "preload": False,
            "refresh": "1m",
            "schemaVersion": SCHEMA,
            "tags": list(self.tags),
            "templating": {"list": [*_target_variables(), *(each.json() for each in self.variables)]},
            "time": {"from": self.since, "to": "now"},
            "timepicker": {},
            "timezone": "browser",
            "title": TITLES[self.uid],
            "uid": self.uid,
            "version": 1,
            "weekStart": "",
        }

    def _links(self) -> Iterator[JSON]:
        for uid, title in TITLES.items():
            if uid != self.uid:
                yield _link(title, f"/d/{uid}", icon="dashboard", carries=True)
        yield _link("Runbooks", "${runbooks:raw}#what-each-alarm-means", icon="doc", carries=False)

    def _laid_out(self) -> Iterator[JSON]:
        number, y = 1, 0
        for row in self.rows:
            yield {
                "collapsed": False,
                "gridPos": {"h": 1, "w": COLUMNS, "x": 0, "y": y},
                "id": number,
                "panels": [],
                "title": row.title,
                "type": "row",
            }
            number, y = number + 1, y + 1
            for line in _lines_of(row):
                x = 0
                for panel in line:
                    yield panel.json(number, x, y)
                    number, x = number + 1, x + panel.width
                y += line[0].height


def _lines_of(row: Row) -> Iterator[list[Panel]]:
    """The row's panels line by line.

    Raises:
        ValueError: a line does not fill the width, or its panels are not equally high.
    """
    line: list[Panel] = []
    for panel in row.panels:
        line.append(panel)
        width = sum(each.width for each in line)
        if width < COLUMNS:
            continue
        if width > COLUMNS or len({each.height for each in line}) > 1:
            raise ValueError(f"{row.title}: {[each.title for each in line]} do not make one line")
        yield line
        line = []
    if line:
        raise ValueError(f"{row.title}: {[each.title for each in line]} do not fill the width")


def _link(title: str, url: str, *, icon: str, carries: bool) -> JSON:
    return {
        "asDropdown": False,
        "icon": icon,
        "includeVars": carries,
        "keepTime": carries,
        "tags": [],
        "targetBlank": not carries,
        "title": title,
        "tooltip": "",
        "type": "link",
        "url": url,
    }


def _target_variables() -> list[JSON]:
    """Which data source, which daemon, and where its runbooks can be read."""
    source = {
        "current": {"text": "Askfirst Prometheus", "value": "askfirst-prometheus"},
        "hide": 0,
        "includeAll": False,
        "label": "Data source",
        "multi": False,
        "name": "datasource",
        "options": [],
        "query": "prometheus",
        "refresh": 1,
        "regex": "",
        "type": "datasource",
    }
    job = _asked("job", "Job", "label_values(askfirst_build_info, job)")
    instance = _asked("instance", "Daemon", 'label_values(askfirst_build_info{job="$job"}, instance)')
    runbooks = {
        "current": {"text": RUNBOOKS, "value": RUNBOOKS},
        "description": "Where docs/operations.md can be read; links to runbooks begin with this.",
        "hide": 0,
        "label": "Runbooks at",
        "name": "runbooks",
        "options": [{"selected": True, "text": RUNBOOKS, "value": RUNBOOKS}],
        "query": RUNBOOKS,
        "type": "textbox",
    }
    job["current"] = {"text": "askfirst", "value": "askfirst"}
    return [source, job, instance, runbooks]


def _asked(name: str, title: str, query: str) -> JSON:
    """A variable whose values Prometheus is asked for."""
    return {
        "current": {},
        "datasource": dict(DATASOURCE),
        "definition": query,
        "hide": 0,
        "includeAll": False,
        "label": title,
        "multi": False,
        "name": name,
        "options": [],
        "query": {"qryType": 1, "query": query, "refId": "PrometheusVariableQueryEditor-VariableQuery"},
        "refresh": 2,  # when the time range changes, too: a daemon may be new, or gone
        "regex": "",
        "sort": 1,
        "type": "query",
    }


def _annotations() -> list[JSON]:
    """What is marked in every graph: the daemon's starts, steps of the clock, and alerts if asked for."""
    source = Source()
    starts = source("process_start_time_seconds") * 1000
    steps = source("askfirst_clock_steps_total")
    return [
        {
            "builtIn": 1,
            "datasource": {"type": "grafana", "uid": "-- Grafana --"},
            "enable": True,
            "hide": True,
            "iconColor": "rgba(0, 211, 255, 1)",
            "name": "Annotations & Alerts",
            "type": "dashboard",
        },
        _annotation("Starts", starts.text, "blue", title="Askfirst started", useValueForTime=True),
        _annotation(
            "Clock set",
            f"increase({steps.text}[$__rate_interval]) > 0",
            "purple",
            title="The clock was set, or the machine slept",
        ),
        _annotation(
            "Alerts",
            f'ALERTS{{alertname=~"{ALERTNAMES}",alertstate="firing"}}',
            "red",
            title="{{alertname}}",
            enable=False,
        ),
    ]


def _annotation(name: str, expr: str, color: str, *, title: str, enable: bool = True, **more: Any) -> JSON:
    return {
        "datasource": dict(DATASOURCE),
        "enable": enable,
        "expr": expr,
        "hide": False,
        "iconColor": color,
        "name": name,
        "step": "60s",
        "titleFormat": title,
        **more,
    }
