"""The dashboards: made from the catalogue, complete, laid out, and what is committed is what is made."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from daemon.install.dashboards.__main__ import FOLDER, files, write
from daemon.install.dashboards.alarms import alarm, alarm_names
from daemon.install.dashboards.boards import Board, Row
from daemon.install.dashboards.panels import RUNBOOKS, Column, Panel, Target, matrix, stat, table
from daemon.install.dashboards.promql import (
    NoSuchSeries,
    Source,
    increase,
    labels_of,
    largest,
    quantile,
    rate,
    ratio,
    total,
)
from daemon.observability.catalogue import METRICS, VALUES
from tests.support.dashboards import boards, panels

ROOT = Path(__file__).parents[2]
UIDS = ("askfirst-inbox", "askfirst-models", "askfirst-overview")
SELECTOR = re.compile(r"([A-Za-z_]+)\{([^}]*)\}")
PROMETHEUS_OWN = {"up": set[str](), "ALERTS": {"alertname", "alertstate", "severity"}}

own = Source({"agent": ("agent",)})


def every_panel() -> list[tuple[str, dict[str, Any]]]:
    return [(uid, panel) for uid, board in boards().items() for panel in panels(board)]


def every_target() -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    return [(uid, panel, target) for uid, panel in every_panel() for target in panel["targets"]]


def metric_of(name: str) -> str:
    """The metric whose series is called `name`: of a histogram they end with its parts."""
    return name if name in METRICS else re.sub(r"_(bucket|sum|count)$", "", name)


# What is committed.


def test_make_dashboards_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path)
    made = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    kept = {path.relative_to(FOLDER): path.read_bytes() for path in FOLDER.rglob("*") if path.is_file()}
    assert made == kept, "run make dashboards"


def test_what_is_no_dashboard_any_more_is_removed(tmp_path: Path) -> None:
    old = tmp_path / "dashboards" / "askfirst-old.json"
    old.parent.mkdir()
    old.write_text("{}", encoding="utf-8")
    write(tmp_path)
    assert not old.exists()
    assert len(list(tmp_path.rglob("*.json"))) == len(UIDS)


def test_every_file_ends_with_a_newline_and_its_name_is_its_uid() -> None:
    assert all(text.endswith("}\n") for name, text in files().items() if name.endswith(".json"))
    names = {
        path.stem: json.loads(path.read_text(encoding="utf-8"))["uid"] for path in FOLDER.rglob("*.json")
    }
    assert names == {uid: uid for uid in UIDS}


# What Grafana requires.


@pytest.mark.parametrize("uid", UIDS)
def test_panels_stand_side_by_side_and_fill_every_line(uid: str) -> None:
    board = boards()[uid]
    cells: dict[tuple[int, int], str] = {}
    for panel in board["panels"]:
        at = panel["gridPos"]
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert (x, y) not in cells, f"{panel['title']} lies on {cells[x, y]}"
                cells[x, y] = panel["title"]
    bottom = max(y for _, y in cells)
    assert set(cells) == {(x, y) for x in range(24) for y in range(bottom + 1)}


@pytest.mark.parametrize("uid", UIDS)
def test_every_panel_has_a_number_of_its_own_and_the_stats_come_first(uid: str) -> None:
    numbers = [panel["id"] for panel in boards()[uid]["panels"]]
    assert len(set(numbers)) == len(numbers)
    kinds = [panel["type"] for panel in boards()[uid]["panels"]]
    assert kinds[:9] == ["row", *["stat"] * 8]
    assert "stat" not in kinds[9:]


def test_every_panel_says_what_it_shows_and_in_which_unit() -> None:
    for uid, panel in every_panel():
        assert panel["title"], uid
        assert len(panel["description"]) > 20, panel["title"]
        if panel["type"] != "alertlist":
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
            assert panel["targets"], panel["title"]


def test_no_two_panels_of_a_dashboard_have_the_same_title() -> None:
    for board in boards().values():
        titles = [panel["title"] for panel in panels(board)]
        assert sorted(set(titles)) == sorted(titles)


def test_every_query_has_a_letter_a_legend_and_the_chosen_data_source() -> None:
    for _, panel in every_panel():
        letters = [target["refId"] for target in panel["targets"]]
        assert letters == [chr(ord("A") + place) for place in range(len(letters))]
    for _, panel, target in every_target():
        assert target["legendFormat"], panel["title"]
        assert target["datasource"] == panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert target["instant"] is not target["range"]


@pytest.mark.parametrize("uid", UIDS)
def test_the_data_source_and_the_daemon_can_be_chosen(uid: str) -> None:
    board = boards()[uid]
    variables = {each["name"]: each for each in board["templating"]["list"]}
    assert list(variables)[:4] == ["datasource", "job", "instance", "runbooks"]
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(board["panels"])))
    assert {name for name in used if not name.startswith("__")} == set(variables)


def test_colours_of_series_are_those_of_series_that_there_are() -> None:
    """An override finds its series by its whole name: a legend that changed would lose its colour."""
    closed = {f"{{{{{label}}}}}": set(VALUES[label]) for label in ("outcome", "action", "status")}
    for _, panel in every_panel():
        names = {
            override["matcher"]["options"]
            for override in panel["fieldConfig"]["overrides"]
            if any(each["id"] == "color" for each in override["properties"])
        }
        legends = {target["legendFormat"] for target in panel["targets"]}
        known = legends.union(*(closed.get(legend, set()) for legend in legends))
        assert names <= known, panel["title"]


# What is asked.


def test_queries_use_only_the_metrics_and_labels_of_the_catalogue() -> None:
    for _, panel, target in every_target():
        selectors = SELECTOR.findall(target["expr"])
        assert selectors, panel["title"]
        for name, matchers in selectors:
            known = PROMETHEUS_OWN.get(name)
            labels = labels_of(METRICS[metric_of(name)]) if known is None else known
            asked = set(re.findall(r'(\w+)=~?"', matchers))
            assert asked <= {*labels, "job", "instance"}, target["expr"]


def test_queries_ask_only_for_values_that_there_are() -> None:
    asked = {
        (label, value)
        for _, _, target in every_target()
        for label, values in re.findall(r'(\w+)=~"([^"$]+)"', target["expr"])
        for value in values.split("|")
        if label in VALUES
    }
    assert ("status", "needs_attention") in asked
    assert {(label, value) for label, value in asked if value not in VALUES[label]} == set()


def test_every_metric_of_the_catalogue_stands_in_a_panel() -> None:
    shown = {
        metric_of(name) for _, _, target in every_target() for name, _ in SELECTOR.findall(target["expr"])
    }
    assert METRICS.keys() - shown == set()


def test_rates_are_made_over_windows_that_grafana_chooses() -> None:
    for _, panel, target in every_target():
        windows = set(re.findall(r"\[([^\]]+)\]", target["expr"]))
        assert windows <= {"$__range" if target["instant"] else "$__rate_interval"}, panel["title"]


def test_a_query_for_what_is_not_there_is_refused() -> None:
    runs = own("askfirst_agent_runs_total")
    with pytest.raises(NoSuchSeries, match="no metric askfirst_agent_walks_total"):
        own("askfirst_agent_walks_total")
    with pytest.raises(NoSuchSeries, match=r"no label colour, only .'agent', 'outcome'."):
        own("askfirst_agent_runs_total", colour="red")
    with pytest.raises(NoSuchSeries, match="no label status"):
        total(runs, "status")
    with pytest.raises(NoSuchSeries, match="is a counter: it has no part 'bucket'"):
        own("askfirst_agent_runs_total", "bucket")
    with pytest.raises(NoSuchSeries, match="is a histogram: it has no part ''"):
        own("askfirst_agent_run_duration_seconds")


def test_a_query_that_means_nothing_is_refused() -> None:
    runs, quarantined = own("askfirst_agent_runs_total"), own("askfirst_agent_quarantined")
    with pytest.raises(ValueError, match=r"rate\(\) is for what only grows"):
        rate(quarantined)
    with pytest.raises(ValueError, match="these never match"):
        ratio(total(increase(runs), "agent"), total(increase(runs), "outcome"))
    with pytest.raises(ValueError, match="0 would stand beside"):
        total(quarantined, "agent").or_zero()
    with pytest.raises(ValueError, match=r"names .'status'., not in"):
        Target(expr=total(quarantined, "agent"), legend="{{status}}")
    with pytest.raises(ValueError, match=r"Runs has .'outcome'., not .'agent'."):
        table("t", "d", {"agent": "Agent"}, [Column(name="Runs", expr=total(runs, "outcome"), unit="short")])
    target = Target(expr=total(runs, "agent"), legend="x")
    with pytest.raises(ValueError, match="a matrix of agent and status"):
        matrix("t", "d", target, rows="agent", columns="status", width=8)


def test_a_query_reads_as_it_was_built() -> None:
    scope = 'job="$job",instance="$instance"'
    runs = own("askfirst_agent_runs_total", outcome="failed")
    assert total(increase(runs), "agent").text == (
        f'sum by (agent) (increase(askfirst_agent_runs_total{{{scope},agent=~"$agent",outcome=~"failed"}}'
        "[$__rate_interval]))"
    )
    lag = Source()("askfirst_loop_lag_seconds")
    assert ((lag + lag) / lag * 2).text == f"(({lag.text} + {lag.text}) / {lag.text}) * 2"
    share = quantile(0.5, Source()("askfirst_agent_run_duration_seconds", "bucket"))
    assert share.text.startswith("histogram_quantile(0.5, sum by (le) (rate(")
    assert largest(share + share).text.startswith("max ((histogram_quantile(")


def test_no_metric_has_a_label_that_is_the_targets_own() -> None:
    """Prometheus would rename ours to `exported_...` at each scrape."""
    for metric in METRICS.values():
        assert labels_of(metric) == set(metric.labels)
    with pytest.raises(ValueError, match="job"):
        labels_of(replace(METRICS["askfirst_housekeeping_failing"], labels=("job",)))


@pytest.mark.parametrize(
    ("widths", "heights", "reason"),
    [
        ((3, 3), (4, 4), "do not fill the width"),
        ((12, 13), (8, 8), "do not make one line"),
        ((12, 12), (8, 6), "do not make one line"),
    ],
)
def test_a_line_with_a_hole_is_refused(
    widths: tuple[int, int], heights: tuple[int, int], reason: str
) -> None:
    made = [
        Panel(kind="stat", title="t", description="d", width=width, height=height)
        for width, height in zip(widths, heights, strict=True)
    ]
    with pytest.raises(ValueError, match=reason):
        Board(uid="askfirst-inbox", description="d", rows=[Row(title="r", panels=made)]).json()


def test_no_value_is_said_in_words() -> None:
    shown = stat("t", "d", own("askfirst_storage_full"), unit="short").json(1, 0, 0)
    assert shown["fieldConfig"]["defaults"]["noValue"] == "unknown"


# Where a person goes from here.


def anchors() -> set[str]:
    """The sections of docs/operations.md, as links to them are written."""
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def test_every_link_to_a_runbook_leads_to_a_section_that_there_is() -> None:
    linked = set(re.findall(r"\$\{runbooks:raw\}#([\w-]+)", "".join(files().values())))
    assert len(linked) > 5
    assert linked - anchors() == set()


def test_every_alert_leads_to_its_runbook() -> None:
    """The rules' own annotations say the same."""
    text = (ROOT / "config" / "prometheus" / "askfirst.rules.yml").read_text(encoding="utf-8")
    rules = [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"] if "alert" in rule]
    (timeline,) = [panel for _, panel in every_panel() if panel["title"] == "Alerts over time"]
    links = {
        override["matcher"]["options"]: link["url"].replace("${runbooks:raw}", RUNBOOKS)
        for override in timeline["fieldConfig"]["overrides"]
        for link in override["properties"][0]["value"]
    }
    assert links == {rule["alert"]: rule["annotations"]["runbook_url"] for rule in rules}
    assert all(name.startswith("Askfirst") for name in links), "the panels show alerts of this name only"


def test_what_an_alarm_is_about_is_seen_in_a_panel_that_leads_to_its_runbook() -> None:
    linked = {link["title"] for _, panel in every_panel() for link in panel["links"]}
    assert {f"Runbook: {name}" for name in alarm_names()} - linked == set()
    with pytest.raises(LookupError, match=r"askfirst.rules.yml has no alert AskfirstBored"):
        alarm("AskfirstBored")


def test_the_dashboards_lead_to_each_other() -> None:
    for uid, board in boards().items():
        assert {link["url"] for link in board["links"] if link["url"].startswith("/d/")} == {
            f"/d/{other}" for other in UIDS if other != uid
        }
    inside = set(re.findall(r'"/d/([\w-]+)', "".join(files().values())))
    assert inside == set(UIDS)


# How Grafana finds them.


def test_grafana_is_told_where_prometheus_and_the_dashboards_are() -> None:
    sources = yaml.safe_load((FOLDER / "provisioning/datasources/askfirst.yaml").read_text(encoding="utf-8"))
    (source,) = sources["datasources"]
    assert (sources["apiVersion"], source["type"], source["isDefault"]) == (1, "prometheus", False)
    for board in boards().values():
        assert board["templating"]["list"][0]["current"]["value"] == source["uid"]
    providers = yaml.safe_load((FOLDER / "provisioning/dashboards/askfirst.yaml").read_text(encoding="utf-8"))
    (provider,) = providers["providers"]
    assert (provider["type"], provider["folder"], provider["allowUiUpdates"]) == ("file", "Askfirst", False)
    assert provider["options"]["path"].endswith("/dashboards/askfirst")


def test_the_shortest_window_fits_the_scrape_interval_of_the_example() -> None:
    text = (ROOT / "config" / "prometheus" / "prometheus.example.yml").read_text(encoding="utf-8")
    scraped = yaml.safe_load(text)["global"]["scrape_interval"]
    sources = yaml.safe_load((FOLDER / "provisioning/datasources/askfirst.yaml").read_text(encoding="utf-8"))
    assert sources["datasources"][0]["jsonData"]["timeInterval"] == scraped
