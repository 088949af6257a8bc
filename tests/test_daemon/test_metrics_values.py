"""What others tell the metrics: counts, observations, values that are read at a scrape, and exemplars."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from daemon.events import RunOutcome
from daemon.observability.catalogue import METRICS
from daemon.observability.metrics import Metrics, Reading
from daemon.observability.metrics.families import EXEMPLAR_CHARACTERS, fitting
from llm.events import CallFailed, CallFinished
from llm.types import Caller
from tests.test_daemon.test_metrics_room import a_run, a_usual_pi, scraped

STEPS = "askfirst_clock_steps_total"
FREE = "askfirst_disk_free_bytes"


@pytest.fixture
def metrics() -> Metrics:
    made = Metrics()
    made.expect_models([("ollama", "tiny")])
    made.expect_agents(["matchmaker"])
    return made


class TestTelling:
    async def test_a_counter_begins_when_nothing_is_added(self, metrics: Metrics) -> None:
        name = "askfirst_proposal_decisions_total"
        assert f'{name}{{action="undo"}}' not in await scraped(metrics)
        metrics.count(name, ("undo",), 0)
        assert (await scraped(metrics))[f'{name}{{action="undo"}}'] == 0
        metrics.count(name, ("undo",))
        metrics.count(name, ("undo",), 2.5)
        assert (await scraped(metrics))[f'{name}{{action="undo"}}'] == 3.5

    async def test_a_histogram_has_the_catalogues_buckets(self, metrics: Metrics) -> None:
        name = "askfirst_agent_run_lateness_seconds"
        metrics.observe(name, (), 42.0)
        found = await scraped(metrics)
        bounds = [f"{bound}" for bound in METRICS[name].buckets] + ["+Inf"]
        counts = [found[f'{name}_bucket{{le="{bound}"}}'] for bound in bounds]
        assert counts == [float(bound == "+Inf" or float(bound) >= 42) for bound in bounds]
        assert found[f"{name}_sum"] == 42.0

    async def test_a_gauge_is_what_it_was_set_to_last(self, metrics: Metrics) -> None:
        name = "askfirst_agent_last_run_duration_seconds"
        for seconds in (3.0, 1.0):
            metrics.set(name, ("matchmaker",), seconds)
        assert (await scraped(metrics))[f'{name}{{agent="matchmaker"}}'] == 1.0

    async def test_a_new_version_takes_the_place_of_the_old_one(self, metrics: Metrics) -> None:
        metrics.set_version("1.2.3")
        metrics.set_version("1.2.4")
        (series,) = [name for name in await scraped(metrics) if name.startswith("askfirst_build_info")]
        assert '"1.2.4"' in series

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    async def test_what_is_no_number_spoils_no_sum(self, metrics: Metrics, value: float) -> None:
        metrics.count(STEPS)
        metrics.count(STEPS, amount=value)
        metrics.observe("askfirst_agent_run_duration_seconds", (), 2.0)
        metrics.observe("askfirst_agent_run_duration_seconds", (), value)
        metrics.read_from(lambda: {FREE: value})
        found = await scraped(metrics)
        assert found[STEPS] == 1
        assert found["askfirst_agent_run_duration_seconds_sum"] == 2.0
        assert FREE not in found

    @pytest.mark.parametrize(
        ("name", "labels", "words"),
        [
            ("askfirst_clock_step_total", (), "no counter of the catalogue"),
            (FREE, (), "no counter of the catalogue"),
            ("askfirst_agent_run_duration_seconds", (), "no counter of the catalogue"),
            (STEPS, ("x",), "has the labels"),
            ("askfirst_agent_runs_total", ("matchmaker",), "has the labels"),
            ("askfirst_proposal_decisions_total", ("shred",), "action is one of approve, edit"),
        ],
    )
    def test_a_slip_of_the_pen_is_refused(
        self, metrics: Metrics, name: str, labels: tuple[str, ...], words: str
    ) -> None:
        with pytest.raises(ValueError, match=words):
            metrics.count(name, labels)

    def test_a_gauge_cannot_be_observed_nor_a_counter_set(self, metrics: Metrics) -> None:
        with pytest.raises(ValueError, match="no histogram"):
            metrics.observe(FREE, (), 1.0)
        with pytest.raises(ValueError, match="no gauge"):
            metrics.set(STEPS, (), 1.0)


class TestReading:
    async def test_it_is_asked_at_each_scrape_and_shows_only_what_it_says(self, metrics: Metrics) -> None:
        said: list[Reading] = [
            {FREE: 5.0, "askfirst_queue_length": {("runs",): 1.0, ("log",): 2.0}},
            {"askfirst_queue_length": {("runs",): 0.0}},
        ]
        metrics.read_from(lambda: said.pop(0))
        first, second = await scraped(metrics), await scraped(metrics)
        assert first[FREE] == 5.0
        assert first['askfirst_queue_length{queue="log"}'] == 2.0
        assert FREE not in second
        assert second['askfirst_queue_length{queue="runs"}'] == 0.0
        assert 'askfirst_queue_length{queue="log"}' not in second

    async def test_a_metric_that_nobody_tells_about_is_not_shown(self) -> None:
        body, _ = await Metrics().scrape()
        shown = {line.split()[2] for line in body.decode().splitlines() if line.startswith("# TYPE")}
        assert {name.partition("_")[0] for name in shown} == {"askfirst", "process"}
        assert [name for name in shown if name.startswith("askfirst")] == ["askfirst_log_lines_dropped_total"]

    async def test_a_source_that_fails_leaves_its_last_values_and_is_told_once(
        self, metrics: Metrics, caplog: pytest.LogCaptureFixture
    ) -> None:
        answers: list[Any] = [
            {FREE: 5.0},
            OSError("disk on fire"),
            OSError("still"),
            {FREE: 6.0},
            OSError("!"),
        ]

        def source() -> Reading:
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer  # type: ignore[no-any-return]

        metrics.read_from(source)
        values = [(await scraped(metrics))[FREE] for _ in range(5)]
        assert values == [5.0, 5.0, 5.0, 6.0, 6.0]
        assert len(caplog.messages) == 2
        assert "source failed: disk on fire" in caplog.messages[0]

    @pytest.mark.parametrize(
        "reading",
        [
            {"askfirst_disk_fre_bytes": 1.0},
            {FREE: {("sda",): 1.0}},
            {"askfirst_queue_length": 1.0},
            {"askfirst_queue_length": {("mail",): 1.0}},
            {"askfirst_agent_run_duration_seconds": 1.0},
        ],
        ids=["name", "labels", "no labels", "value", "histogram"],
    )
    async def test_a_slip_of_the_pen_fails_the_scrape(self, metrics: Metrics, reading: Reading) -> None:
        metrics.read_from(lambda: reading)
        with pytest.raises(ValueError, match=r"catalogue|labels|one of runs, log|cannot be read"):
            await metrics.scrape()


class TestReadingSlowly:
    async def test_it_is_asked_again_only_when_it_is_old_or_something_has_changed(
        self, metrics: Metrics
    ) -> None:
        asked = 0

        async def source() -> Reading:
            nonlocal asked
            asked += 1
            return {FREE: float(asked)}

        changed = metrics.read_slowly_from(source, 3600.0)
        assert [(await scraped(metrics))[FREE] for _ in range(3)] == [1, 1, 1]
        changed()
        assert [(await scraped(metrics))[FREE] for _ in range(2)] == [2, 2]
        metrics.read_slowly_from(source, 0.0)
        assert [(await scraped(metrics))[FREE] for _ in range(2)] == [3, 4]

    async def test_a_change_while_it_is_asked_is_not_forgotten(self, metrics: Metrics) -> None:
        asked = 0

        async def source() -> Reading:
            nonlocal asked
            asked += 1
            if asked == 1:
                changed()
            return {FREE: float(asked)}

        changed = metrics.read_slowly_from(source, 3600.0)
        assert [(await scraped(metrics))[FREE] for _ in range(3)] == [1, 2, 2]

    async def test_one_that_hangs_costs_a_second_and_its_news(
        self, metrics: Metrics, caplog: pytest.LogCaptureFixture
    ) -> None:
        ended = []

        async def hanging() -> Reading:
            try:
                await asyncio.sleep(3600)
            finally:
                ended.append(True)
            return {}

        async def another() -> Reading:
            return {FREE: 1.0}

        metrics.read_slowly_from(hanging, 3600.0)
        metrics.read_slowly_from(another, 3600.0)
        async with asyncio.timeout(60):
            assert (await scraped(metrics))[FREE] == 1.0
        assert ended == [True]
        (message,) = caplog.messages
        assert "hanging failed: TimeoutError" in message


def exemplars(text: str) -> dict[str, list[dict[str, str]]]:
    """The labels of all exemplars by the name of the sample; the text must be true OpenMetrics."""
    found: dict[str, list[dict[str, str]]] = {}
    for family in text_string_to_metric_families(text):  # type: ignore[no-untyped-call]
        for sample in family.samples:
            if sample.exemplar is not None:
                found.setdefault(sample.name, []).append(dict(sample.exemplar.labels))
    return found


OPENMETRICS = "application/openmetrics-text; version=1.0.0"


class TestExemplars:
    async def test_a_scraper_of_openmetrics_sees_which_run_and_call_it_was(self, metrics: Metrics) -> None:
        where: dict[str, Any] = {"backend": "ollama", "model": "tiny", "caller": Caller(run_id="run7")}
        metrics.observe_event(a_run("matchmaker", RunOutcome.FAILED))
        metrics.observe_call(
            CallFinished(**where, call_id="call1", latency=1.5, prompt_tokens=90, completion_tokens=12)
        )
        metrics.observe_call(CallFailed(**where, call_id="call2", latency=1.5, code="timeout"))
        metrics.count("askfirst_proposal_apply_failures_total", exemplar={"run_id": "run8"})
        body, content_type = await metrics.scrape(OPENMETRICS)
        assert content_type == "application/openmetrics-text; version=1.0.0; charset=utf-8"
        found = exemplars(body.decode())
        answered = {"run_id": "run7", "call_id": "call1"}
        assert found["askfirst_agent_runs_total"] == [{"run_id": "r1"}]
        assert found["askfirst_agent_run_duration_seconds_bucket"] == [{"run_id": "r1"}]
        assert found["gen_ai_client_operation_duration_seconds_bucket"] == [answered]
        assert found["gen_ai_client_token_usage_bucket"] == [answered, answered]
        assert found["askfirst_llm_prompt_tokens_total"] == [answered]
        assert found["askfirst_llm_errors_total"] == [{"run_id": "run7", "call_id": "call2"}]
        assert found["askfirst_proposal_apply_failures_total"] == [{"run_id": "run8"}]

    async def test_the_plain_text_has_none(self, metrics: Metrics) -> None:
        metrics.observe_event(a_run("matchmaker"))
        body, _ = await metrics.scrape()
        assert b"run_id" not in body

    async def test_everything_there_is_is_true_openmetrics(self) -> None:
        body, _ = await a_usual_pi().scrape(OPENMETRICS)
        names = {family.name for family in text_string_to_metric_families(body.decode())}  # type: ignore[no-untyped-call]
        assert {name.removesuffix("_total") for name in METRICS} == names

    @pytest.mark.parametrize("bad", ["x" * 1_000_000, 'quo"te\n\x00', "\ud800"])
    async def test_hostile_ones_are_made_fit(self, metrics: Metrics, bad: str) -> None:
        metrics.count(STEPS, exemplar={"run_id": bad, "call_id": bad})
        body, _ = await metrics.scrape(OPENMETRICS)
        (labels,) = exemplars(body.decode())[STEPS]
        assert set(labels) <= {"run_id", "call_id"}
        assert sum(len(name) + len(value) for name, value in labels.items()) <= EXEMPLAR_CHARACTERS

    def test_what_does_not_fit_is_left_out_the_first_counts_most(self) -> None:
        assert fitting({"run_id": "r" * 40, "call_id": "c" * 40}) == {"run_id": "r" * 40, "call_id": "c" * 40}
        assert fitting({"run_id": "r" * 100, "call_id": "c" * 40}) == {"run_id": "r" * 100}
        assert fitting({"run_id": "", "call_id": "c"}) == {"call_id": "c"}
        assert fitting({"run_id": ""}) is None
        assert fitting(None) is None
