"""Panels: what each kind of panel is, as plain values that become Grafana's JSON.

A function for each kind takes what differs and knows the rest, so that all panels of a kind look alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from daemon.install.dashboards.promql import ALERTNAMES, Expr, names_in, whole

JSON = dict[str, Any]

STRETCH, STRETCHES = "5m", 96
"""What happens a few times an hour is counted in stretches of time: at least so long, at most so many."""

DATASOURCE: Mapping[str, str] = {"type": "prometheus", "uid": "${datasource}"}
"""The data source of the dashboard's variable."""

RUNBOOKS = "docs/operations.md"
"""Where the runbooks are, until somebody says where they can be read; the alert rules say the same."""

Steps = Sequence[tuple[float | None, str]]
"""Thresholds: from which value on which colour; the first has no value."""

Values = Mapping[float, tuple[str, str]]
"""What single values mean: a word and a colour."""

WELL = "green"
NOTICE = "yellow"
LATE = "orange"
BAD = "red"
CALM = "blue"
PLAIN = "text"

ALWAYS: Steps = ((None, PLAIN),)
"""No value is better than another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One query of a panel.

    Attributes:
        expr: what is asked.
        legend: what its series are called, a template of their labels.
        instant: only the value at the end of the time range, not a line.
        form: "time_series", "table" or "heatmap".
        exemplars: show single observations that Prometheus kept beside the series.
    """

    expr: Expr
    legend: str
    instant: bool = False
    form: str = "time_series"
    exemplars: bool = False

    def __post_init__(self) -> None:
        unknown = names_in(self.legend) - self.expr.labels
        if unknown:
            raise ValueError(f"the legend {self.legend!r} names {sorted(unknown)}, not in {self.expr.text}")

    def json(self, number: int) -> JSON:
        """As Grafana wants it; `number` is its place in the panel."""
        return {
            "datasource": dict(DATASOURCE),
            "editorMode": "code",
            "exemplar": self.exemplars,
            "expr": self.expr.text,
            "format": self.form,
            "instant": self.instant,
            "legendFormat": self.legend,
            "range": not self.instant,
            "refId": chr(ord("A") + number),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A way from a panel to elsewhere."""

    title: str
    url: str
    new_tab: bool = False

    def json(self) -> JSON:
        """As Grafana wants it."""
        return {"title": self.title, "url": self.url, "targetBlank": self.new_tab}


def runbook(section: str, title: str = "What to do") -> Link:
    """The way to a section of docs/operations.md."""
    return Link(title=title, url=f"${{runbooks:raw}}#{section}", new_tab=True)


def dashboard(uid: str, title: str) -> Link:
    """The way to another dashboard, with the same daemon, data source and time range."""
    return Link(title=title, url=f"/d/{uid}?${{__url_time_range}}&${{__all_variables}}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One panel; where it stands is the dashboard's to say.

    Attributes:
        kind: Grafana's name of the visualization.
        title: what it shows, in a few words.
        description: what it tells a person, and when to worry.
        width: in columns, 24 are a line.
        height: in rows of 30 pixels.
        targets: its queries.
        defaults: how values are shown: unit, thresholds, ...
        overrides: the same for some of the fields.
        options: of the visualization.
        links: where a person goes from here.
        interval: the shortest time that one point stands for.
        points: the most points that are asked for.
        transformations: of what the queries answer.
    """

    kind: str
    title: str
    description: str
    width: int
    height: int
    targets: Sequence[Target] = ()
    defaults: JSON = field(default_factory=dict)
    overrides: Sequence[JSON] = ()
    options: JSON = field(default_factory=dict)
    links: Sequence[Link] = ()
    interval: str = ""
    points: int = 0
    transformations: Sequence[JSON] = ()

    def linked(self, *links: Link) -> Panel:
        """The same with links."""
        return replace(self, links=(*self.links, *links))

    def json(self, number: int, x: int, y: int) -> JSON:
        """As Grafana wants it: with its number and its place."""
        made: JSON = {
            "datasource": dict(DATASOURCE),
            "description": self.description,
            "fieldConfig": {"defaults": self.defaults, "overrides": list(self.overrides)},
            "gridPos": {"h": self.height, "w": self.width, "x": x, "y": y},
            "id": number,
            "links": [link.json() for link in self.links],
            "options": self.options,
            "targets": [target.json(place) for place, target in enumerate(self.targets)],
            "title": self.title,
            "transformations": list(self.transformations),
            "type": self.kind,
        }
        if self.interval:
            made["interval"] = self.interval
        if self.points:
            made["maxDataPoints"] = self.points
        return made


def stat(
    title: str,
    description: str,
    expr: Expr,
    *,
    unit: str,
    steps: Steps = ALWAYS,
    values: Values | None = None,
    nothing: str = "unknown",
    legend: str = "",
    decimals: int | None = None,
    names: bool = False,
) -> Panel:
    """One number at the top.

    Args:
        title: of the panel.
        description: of the panel.
        expr: one series.
        unit: Grafana's name of it.
        steps: its thresholds.
        values: what single values mean.
        nothing: what is shown when there is no value.
        legend: the name of the series.
        decimals: how many are shown.
        names: show the series' name, not its value.
    """
    options: JSON = {
        "colorMode": "value",
        "graphMode": "none",
        "justifyMode": "auto",
        "orientation": "auto",
        "percentChangeColorMode": "standard",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "showPercentChange": False,
        "textMode": "name" if names else "value",
        "wideLayout": True,
    }
    return Panel(
        kind="stat",
        title=title,
        description=description,
        width=3,
        height=4,
        targets=[Target(expr=expr, legend=legend or title, instant=True)],
        defaults=_shown(unit, steps, values, decimals=decimals, nothing=nothing),
        options=options,
    )


def series(
    title: str,
    description: str,
    targets: Sequence[Target],
    *,
    unit: str,
    width: int = 12,
    steps: Steps | None = None,
    stacked: bool = False,
    most: float | None = None,
    colors: Mapping[str, str] | None = None,
    decimals: int | None = None,
    nothing: str = "",
    seldom: bool = False,
) -> Panel:
    """Lines over time.

    Args:
        title: of the panel.
        description: of the panel.
        targets: the queries.
        unit: Grafana's name of it.
        width: in columns.
        steps: limits that are drawn as dashed lines.
        stacked: one upon the other, because together they are a whole.
        most: the largest value that there can be.
        colors: of series by name; the others get theirs from the palette.
        decimals: how many are shown.
        nothing: what is shown when there is no value.
        seldom: there are values only where something happened: longer windows, lines from point to point.
    """
    shown = _shown(unit, steps or ALWAYS, None, decimals=decimals, nothing=nothing)
    shown |= {"color": {"mode": "palette-classic"}, "min": 0}
    shown["custom"] = _lines(dashed=steps is not None, stacked=stacked)
    if seldom:
        shown["custom"] |= {"showPoints": "always", "spanNulls": True}
    if most is not None:
        shown["max"] = most
    return Panel(
        kind="timeseries",
        title=title,
        description=description,
        width=width,
        height=8,
        targets=targets,
        defaults=shown,
        overrides=[_colored(name, color) for name, color in (colors or {}).items()],
        options=_legend("lastNotNull", "max"),
        interval=STRETCH if seldom else "",
        points=STRETCHES if seldom else 0,
    )


def bars(
    title: str,
    description: str,
    targets: Sequence[Target],
    *,
    unit: str = "short",
    width: int = 12,
    colors: Mapping[str, str] | None = None,
    decimals: int | None = None,
    nothing: str = "",
) -> Panel:
    """What happened in each stretch of time, as bars; for what happens a few times an hour.

    Args:
        title: of the panel.
        description: of the panel.
        targets: the queries: increases. Those that count things are shown as whole numbers.
        unit: Grafana's name of it; "short" counts things.
        width: in columns.
        colors: of series by name.
        decimals: how many are shown.
        nothing: what is shown when there is no value.
    """
    if unit == "short":
        targets = [replace(target, expr=whole(target.expr)) for target in targets]
    panel = series(
        title,
        description,
        targets,
        unit=unit,
        width=width,
        colors=colors,
        decimals=decimals,
        stacked=True,
        nothing=nothing,
    )
    custom = panel.defaults["custom"] | {"drawStyle": "bars", "fillOpacity": 80, "barAlignment": -1}
    return replace(
        panel,
        defaults=panel.defaults | {"custom": custom},
        options=_legend("sum"),
        interval=STRETCH,
        points=STRETCHES,
    )


def heatmap(title: str, description: str, buckets: Expr, *, unit: str, width: int = 12) -> Panel:
    """How a histogram's observations are spread, over time.

    Args:
        title: of the panel.
        description: of the panel.
        buckets: increases by `le`.
        unit: Grafana's name of it.
        width: in columns.
    """
    scheme = {"mode": "scheme", "scheme": "Blues", "reverse": False, "steps": 64, "fill": "blue"}
    options: JSON = {
        "calculate": False,
        "cellGap": 1,
        "color": {**scheme, "exponent": 0.5, "scale": "exponential"},
        "exemplars": {"color": "rgba(255,0,255,0.7)"},
        "filterValues": {"le": 1e-9},
        "legend": {"show": True},
        "rowsFrame": {"layout": "auto"},
        "tooltip": {"mode": "single", "showColorScale": False, "yHistogram": False},
        "yAxis": {"axisPlacement": "left", "reverse": False, "unit": unit},
    }
    return Panel(
        kind="heatmap",
        title=title,
        description=description,
        width=width,
        height=8,
        targets=[Target(expr=buckets, legend="{{le}}", form="heatmap")],
        defaults={"custom": {"hideFrom": {"legend": False, "tooltip": False, "viz": False}}, "unit": unit},
        options=options,
        interval=STRETCH,
        points=STRETCHES // 2,
    )


def bar_gauge(
    title: str,
    description: str,
    targets: Sequence[Target],
    *,
    unit: str,
    width: int,
    steps: Steps = ALWAYS,
    most: float | None = None,
    nothing: str = "",
) -> Panel:
    """A bar for each series, as long as its last value.

    Args:
        title: of the panel.
        description: of the panel.
        targets: the queries.
        unit: Grafana's name of it.
        width: in columns.
        steps: its thresholds.
        most: the value of a full bar.
        nothing: what is shown when there is no value.
    """
    shown = _shown(unit, steps, None, nothing=nothing) | {"min": 0}
    if most is not None:
        shown["max"] = most
    options: JSON = {
        "displayMode": "basic",
        "legend": {"calcs": [], "displayMode": "list", "placement": "bottom", "showLegend": False},
        "maxVizHeight": 40,
        "minVizHeight": 16,
        "minVizWidth": 8,
        "namePlacement": "left",
        "orientation": "horizontal",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "showUnfilled": True,
        "sizing": "auto",
        "valueMode": "color",
    }
    return Panel(
        kind="bargauge",
        title=title,
        description=description,
        width=width,
        height=8,
        targets=targets,
        defaults=shown,
        options=options,
    )


def state_timeline(
    title: str,
    description: str,
    targets: Sequence[Target],
    *,
    values: Values,
    width: int = 12,
    height: int = 8,
    nothing: str = "",
    series_links: Mapping[str, Sequence[Link]] = MappingProxyType({}),
) -> Panel:
    """In which state each series was, over time.

    Args:
        title: of the panel.
        description: of the panel.
        targets: the queries.
        values: the states.
        width: in columns.
        height: in rows.
        nothing: what is shown when there is no value.
        series_links: what a click on a series offers, by the series' name.
    """
    shown = _shown("short", ALWAYS, values, nothing=nothing)
    shown["custom"] = {"fillOpacity": 75, "insertNulls": False, "lineWidth": 0, "spanNulls": False}
    options: JSON = {
        "alignValue": "left",
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "mergeValues": True,
        "rowHeight": 0.8,
        "showValue": "auto",
        "tooltip": {"mode": "single", "sort": "none"},
    }
    return Panel(
        kind="state-timeline",
        title=title,
        description=description,
        width=width,
        height=height,
        targets=targets,
        defaults=shown,
        overrides=[_field(name, [_linked(links)]) for name, links in series_links.items()],
        options=options,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of a table: one query, one value for each row.

    Attributes:
        name: its heading.
        expr: series whose labels are the table's keys.
        unit: Grafana's name of it.
        steps: thresholds that colour the cell.
        values: what single values mean.
        decimals: how many are shown.
        width: in pixels; 0: as wide as there is room.
    """

    name: str
    expr: Expr
    unit: str
    steps: Steps = ALWAYS
    values: Values | None = None
    decimals: int | None = None
    width: int = 0


def table(
    title: str,
    description: str,
    keys: Mapping[str, str],
    columns: Sequence[Column],
    *,
    width: int = 24,
    height: int = 8,
    key_links: Sequence[Link] = (),
    nothing: str = "",
) -> Panel:
    """A table: a row for each set of the keys' values, a column for each query.

    Args:
        title: of the panel.
        description: of the panel.
        keys: labels that make a row, with their headings.
        columns: the values beside them.
        width: in columns of the dashboard.
        height: in rows of the dashboard.
        key_links: what a click on a key offers.
        nothing: what is shown when there is no row.
    """
    targets: list[Target] = []
    renamed = dict(keys)
    for place, column in enumerate(columns):
        if column.expr.labels != keys.keys():
            raise ValueError(f"{title}: {column.name} has {sorted(column.expr.labels)}, not {sorted(keys)}")
        targets.append(Target(expr=column.expr, legend=column.name, instant=True, form="table"))
        # One query alone is called "Value"; several carry their letters.
        renamed[f"Value #{chr(ord('A') + place)}" if len(columns) > 1 else "Value"] = column.name
    order = {name: place for place, name in enumerate(renamed)}
    organized = {"excludeByName": {"Time": True}, "indexByName": order, "renameByName": renamed}
    overrides = [_field(heading, [_linked(key_links)]) for heading in keys.values() if key_links]
    shown = _shown("short", ALWAYS, None, nothing=nothing)
    shown["custom"] = {
        "align": "auto",
        "cellOptions": {"type": "auto"},
        "filterable": False,
        "inspect": False,
    }
    return Panel(
        kind="table",
        title=title,
        description=description,
        width=width,
        height=height,
        targets=targets,
        defaults=shown,
        overrides=[*overrides, *(_field(column.name, _cell(column)) for column in columns)],
        options={"cellHeight": "sm", "showHeader": True},
        transformations=[
            {"id": "merge", "options": {}},
            {"id": "organize", "options": organized},
        ],
    )


def matrix(
    title: str,
    description: str,
    target: Target,
    *,
    rows: str,
    columns: str,
    width: int,
    steps: Steps = ALWAYS,
) -> Panel:
    """A table of one metric's values by two labels.

    Args:
        title: of the panel.
        description: of the panel.
        target: one query with these two labels.
        rows: the label of the rows.
        columns: the label of the columns.
        width: in columns of the dashboard.
        steps: thresholds that colour the cells.
    """
    if target.expr.labels != {rows, columns}:
        raise ValueError(f"{title}: a matrix of {rows} and {columns} needs series with these labels")
    pivot = {"columnField": columns, "emptyValue": "null", "rowField": rows, "valueField": "Value"}
    shown = _shown("short", steps, None, decimals=0)
    shown["custom"] = {"align": "auto", "cellOptions": {"type": "color-text"}, "inspect": False}
    return Panel(
        kind="table",
        title=title,
        description=description,
        width=width,
        height=8,
        targets=[replace(target, instant=True, form="table")],
        defaults=shown,
        options={"cellHeight": "sm", "showHeader": True},
        transformations=[
            {"id": "groupingToMatrix", "options": pivot},
            {"id": "organize", "options": {"renameByName": {f"{rows}\\{columns}": rows}}},
        ],
    )


def alert_list(title: str, description: str, *, width: int, height: int) -> Panel:
    """Our alerts that wait or fire, as Grafana lists them: those of its data sources, too.

    Args:
        title: of the panel.
        description: of the panel.
        width: in columns.
        height: in rows.
    """
    shown = {"error": True, "firing": True, "noData": False, "normal": False, "pending": True}
    options: JSON = {
        "alertInstanceLabelFilter": f'{{alertname=~"{ALERTNAMES}"}}',
        "alertName": "",
        "dashboardAlerts": False,
        "groupBy": [],
        "groupMode": "default",
        "maxItems": 20,
        "sortOrder": 3,  # the most important first
        "stateFilter": {**shown, "recovering": True},
        "viewMode": "list",
    }
    return Panel(
        kind="alertlist",
        title=title,
        description=description,
        width=width,
        height=height,
        options=options,
    )


def _shown(
    unit: str, steps: Steps, values: Values | None, *, decimals: int | None = None, nothing: str = ""
) -> JSON:
    """How values are shown, the same for every kind of panel."""
    shown: JSON = {
        "color": {"mode": "thresholds"},
        "mappings": _mappings(values or {}),
        "thresholds": _thresholds(steps),
        "unit": unit,
    }
    if decimals is not None:
        shown["decimals"] = decimals
    if nothing:
        shown["noValue"] = nothing
    return shown


def _thresholds(steps: Steps) -> JSON:
    return {"mode": "absolute", "steps": [{"color": color, "value": value} for value, color in steps]}


def _mappings(values: Values) -> list[JSON]:
    if not values:
        return []
    options = {
        f"{value:g}": {"color": color, "index": index, "text": word}
        for index, (value, (word, color)) in enumerate(values.items())
    }
    return [{"type": "value", "options": options}]


def _lines(*, dashed: bool, stacked: bool) -> JSON:
    return {
        "axisPlacement": "auto",
        "barAlignment": 0,
        "drawStyle": "line",
        "fillOpacity": 30 if stacked else 8,
        "gradientMode": "none",
        "hideFrom": {"legend": False, "tooltip": False, "viz": False},
        "lineInterpolation": "linear",
        "lineWidth": 1,
        "pointSize": 4,
        "showPoints": "auto",
        "spanNulls": False,
        "stacking": {"group": "A", "mode": "normal" if stacked else "none"},
        "thresholdsStyle": {"mode": "dashed" if dashed else "off"},
    }


def _legend(*calculations: str) -> JSON:
    legend = {"calcs": list(calculations), "displayMode": "table", "placement": "bottom", "showLegend": True}
    return {"legend": legend, "tooltip": {"hideZeros": False, "mode": "multi", "sort": "desc"}}


def _colored(name: str, color: str) -> JSON:
    return _field(name, [{"id": "color", "value": {"fixedColor": color, "mode": "fixed"}}])


def _field(name: str, properties: Sequence[JSON]) -> JSON:
    return {"matcher": {"id": "byName", "options": name}, "properties": list(properties)}


def _linked(links: Sequence[Link]) -> JSON:
    return {"id": "links", "value": [link.json() for link in links]}


def _cell(column: Column) -> list[JSON]:
    properties: list[JSON] = [{"id": "unit", "value": column.unit}]
    if column.steps != ALWAYS:
        properties.append({"id": "thresholds", "value": _thresholds(column.steps)})
    if column.values:
        properties.append({"id": "mappings", "value": _mappings(column.values)})
    if column.steps != ALWAYS or column.values:
        properties.append({"id": "custom.cellOptions", "value": {"type": "color-text"}})
    if column.decimals is not None:
        properties.append({"id": "decimals", "value": column.decimals})
    if column.width:
        properties.append({"id": "custom.width", "value": column.width})
    return properties
