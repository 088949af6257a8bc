"""A real Prometheus scrapes the real program at work: no panel is empty, no rule lacks what it asks for."""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from daemon.observability.catalogue import METRICS
from tests.support.alarms import FACTOR, RULES, quickened, rules
from tests.support.dashboards import marks, queries
from tests.support.monitoring import JOB, Prometheus, prometheus
from tests.support.prometheus import complaints
from tests.support.tally import Note, note_watched
from tests.support.waiting import seen_now
from tests.support.workload import World, missing, watched

pytestmark = [pytest.mark.monitoring, pytest.mark.process]

MOST_SERIES, MOST_SERIES_OF_THE_WORK = 200, 400
MORE_SERIES = f"max_series = {MOST_SERIES_OF_THE_WORK}\n"

RARE = frozenset({"askfirst:llm_call_duration_seconds:p95_6h"})
"""Recorded only from ten calls on, so that one slow call is no figure."""


@dataclass(frozen=True)
class Scene:
    """The program after its work, and the Prometheus that watched it."""

    world: World
    prometheus: Prometheus

    @property
    def instance(self) -> str:
        """What Prometheus calls the program."""
        return urllib.parse.urlsplit(self.world.url).netloc


def _streamed_again(world: World, watching: Prometheus) -> bool:
    """Run the porter once more; the program notices within a second or so that its cache was cleared."""
    world.command("agents", "run", "porter")
    streams = "increase(gen_ai_client_operation_time_to_first_chunk_seconds_count[1m]) > 0"
    return bool(watching.query(streams))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("scene")
    home = folder / "program"
    home.mkdir()
    with watched(home) as world:
        address = urllib.parse.urlsplit(world.url).netloc
        with prometheus(folder / "prometheus", address, rules=quickened(RULES, factor=FACTOR)) as watching:
            # Counters have to be seen before they grow, or there is nothing to make a rate of.
            seen_now(lambda: watching.value("askfirst_build_info") == 1)
            world.work()
            # What happened before the first scrape is in no rate: it happens again, the cache being empty.
            seen_now(lambda: bool(watching.query("askfirst_proposal_apply_failures_total > 0")))
            world.command("llm", "cache", "clear")
            seen_now(lambda: _streamed_again(world, watching))
            seen_now(lambda: not missing(world.scrape()))
            yield Scene(world, watching)


def test_every_metric_of_the_catalogue_is_in_prometheus(scene: Scene) -> None:
    stored = set(scene.prometheus.api("label/__name__/values"))
    stored |= {name.removesuffix("_count") for name in stored}
    assert METRICS.keys() - stored == set()


def test_no_panel_is_empty(scene: Scene, record_property: Note) -> None:
    asked = queries(job=JOB, instance=scene.instance, window="30s", over="1m")
    empty = [
        f"{each.dashboard}, {each.panel}: {each.expr}"
        for each in asked
        if not scene.prometheus.query(each.expr)
    ]
    assert not empty, "\n".join(empty)
    shown = {(each.dashboard, each.panel) for each in asked}
    note_watched(record_property, metrics=len(METRICS), panels=len(shown))


def test_what_is_marked_in_graphs_can_be_asked_for(scene: Scene) -> None:
    for mark in marks(job=JOB, instance=scene.instance, window="30s"):
        scene.prometheus.query(mark.expr)


def test_every_rule_has_what_it_asks_for(scene: Scene, record_property: Note) -> None:
    figures = {name for name, rule in rules().items() if not rule.is_alarm}
    seen_now(lambda: all(scene.prometheus.query(name) for name in figures - RARE))
    without = {
        name: [
            selector
            for selector in rule.selectors
            if selector not in RARE and not scene.prometheus.query(_stored(selector))
        ]
        for name, rule in rules().items()
    }
    assert not {name: found for name, found in without.items() if found}
    note_watched(record_property, rules=len(rules()))


def _stored(selector: str) -> str:
    """The selector without matchers of values: those are what goes wrong, and all is well here."""
    name, brace, matchers = selector.partition("{")
    kept = [each for each in matchers.rstrip("}").split(",") if each.strip().startswith("job=")]
    return f"{name}{{{','.join(kept)}}}" if brace else name


def test_prometheus_found_every_rule_good_and_no_rule_fails(scene: Scene) -> None:
    groups = scene.prometheus.api("rules")["groups"]
    found = [rule for group in groups for rule in group["rules"]]
    assert len(found) == len(rules())
    assert [rule for rule in found if rule["health"] != "ok"] == []


def test_all_is_well_but_for_what_the_work_was_meant_to_show(scene: Scene) -> None:
    alerts = scene.prometheus.api("alerts")["alerts"]
    fire = {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}
    assert fire <= {"AskfirstApplyFailing", "AskfirstBudgetRefusing", "AskfirstModelErrors"}


def test_promtool_finds_the_metrics_clean(scene: Scene) -> None:
    assert complaints(scene.world.scrape()) == ""


def test_prometheus_keeps_which_run_a_call_belonged_to(scene: Scene) -> None:
    found = scene.prometheus.api(
        "query_exemplars",
        query="gen_ai_client_operation_duration_seconds_bucket",
        start="0",
        end="9999999999",
    )
    runs = {one["labels"].get("run_id") for series in found for one in series["exemplars"]}
    known = {run["run_id"] for run in scene.world.lines if run.get("event") == "run finished"}
    assert runs & known


def test_a_scrape_has_as_many_samples_as_it_may_and_200_unless_told_otherwise(scene: Scene) -> None:
    samples = scene.prometheus.value("scrape_samples_scraped")
    assert samples is not None
    assert MOST_SERIES < samples <= MOST_SERIES_OF_THE_WORK
    scene.world.process.kill()
    scene.world.process.wait()
    file = scene.world.program.folder / "config" / "askfirst.toml"
    text = file.read_text(encoding="utf-8")
    assert MORE_SERIES in text
    file.write_text(text.replace(MORE_SERIES, ""), encoding="utf-8")
    with scene.world.program.running("run") as process:
        seen_now(lambda: process.poll() is None and scene.world.program.call("status").code == 0)
        scene.world.command("agents", "run", "porter")
        scene.world.command("agents", "run", "locked", code=1)
        status = scene.world.command("--json", "status").data
        instance = urllib.parse.urlsplit(status["address"]).netloc
        scene.prometheus.targets(instance)
        ran = f'sum(askfirst_agent_runs_total{{instance="{instance}"}}) >= 2'
        seen_now(lambda: bool(scene.prometheus.query(ran)))
        samples = scene.prometheus.value(f'scrape_samples_scraped{{instance="{instance}"}}')
        assert samples is not None
        assert len(METRICS) < samples <= MOST_SERIES
